"""Generation: batches like one by one, sampling, the end token, the template, streaming; and what is asked."""

import json

import pytest
import torch
from evaluation_runs import chat_rows, edit_json, make_run, resolved
from tiny import tiny_model

from mac_lora_helpers import data, evaluation
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation.answers import split_text
from mac_lora_helpers.evaluation.generation import prompt_ids


def prompts(trained, count=16):
    return [data.render_prompt(trained.tokenizer, row["messages"][:-1]) for row in chat_rows(count)]


def test_a_batch_answers_as_one_by_one_does(trained):
    """Through plain transformers, without padding, one prompt at a time."""
    ids = prompts(trained)
    assert len({len(row) for row in ids}) > 4
    for which in ("base", "tuned"):
        together = evaluation.generate(trained, ids, trained.config, which)
        with trained.base() if which == "base" else trained.tuned():
            for row, answer in zip(ids, together, strict=True):
                alone = trained.model.generate(input_ids=torch.tensor([row]), max_new_tokens=16, do_sample=False)[0, len(row) :]
                assert answer.text == trained.tokenizer.decode(alone, skip_special_tokens=True)
                assert answer.tokens == len(alone) - answer.stopped
    assert len({answer.text for answer in together}) > 1


@pytest.mark.parametrize("size", [1, 3, 16])
def test_the_batch_size_changes_nothing(trained, size):
    ids = prompts(trained)
    expected = evaluation.generate(trained, ids, resolved(trained.config.model_id, eval_batch_size=8), "tuned")
    assert evaluation.generate(trained, ids, resolved(trained.config.model_id, eval_batch_size=size), "tuned") == expected


class TestSampling:
    def config(self, trained, **values):
        return resolved(trained.config.model_id, do_sample=True, **values)

    def test_it_depends_on_the_seed_and_not_on_the_batch(self, trained):
        ids = prompts(trained)
        config = self.config(trained, temperature=2.0, top_p=1.0)
        first = evaluation.generate(trained, ids, config, "tuned")
        assert evaluation.generate(trained, ids, self.config(trained, temperature=2.0, top_p=1.0, eval_batch_size=3), "tuned") == first
        assert evaluation.generate(trained, ids, self.config(trained, temperature=2.0, top_p=1.0, seed=1), "tuned") != first
        assert evaluation.generate(trained, ids, trained.config, "tuned") != first

    def test_a_low_temperature_or_a_small_nucleus_is_greedy(self, trained):
        ids = prompts(trained)
        greedy = evaluation.generate(trained, ids, trained.config, "tuned")
        assert evaluation.generate(trained, ids, self.config(trained, temperature=1e-4, top_p=1.0), "tuned") == greedy
        assert evaluation.generate(trained, ids, self.config(trained, temperature=5.0, top_p=1e-6), "tuned") == greedy

    def test_frequencies_follow_the_softmax(self, trained):
        """The first token over 1,500 seeds against the model's own probabilities at temperature 0.7."""
        from mac_lora_helpers.evaluation.generation import _sampler

        row = prompts(trained)[0]
        with torch.inference_mode():
            scores = trained.model(input_ids=torch.tensor([row])).logits[:, -1]
        expected = torch.softmax(scores[0] / 0.7, -1)
        counts = torch.zeros_like(expected)
        for seed in range(1500):
            counts[_sampler([row], self.config(trained, temperature=0.7, top_p=1.0, seed=seed))(None, scores)[0].argmax()] += 1
        likely = expected > 0.02
        assert likely.sum() >= 3
        spread = (expected * (1 - expected) / 1500).sqrt()
        assert ((counts / 1500 - expected).abs()[likely] < 4 * spread[likely]).all()

    def test_an_adapter_without_effect_draws_the_same_words(self, useless):
        config = self.config(useless, temperature=1.5)
        said = evaluation.ask(useless, "Hello there?", config)
        assert said["base"] == said["tuned"]


@pytest.fixture(scope="module")
def stopping(tmp_path_factory):
    """A model whose end token is its likeliest first word: the embedding of the end token is made large."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("stopping")
    folder = tiny_model(root / "model", initializer_range=0.2, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    run = make_run(root / "run", folder, strength=1e-4)
    trained = evaluation.load(run, resolved(folder))
    ids = torch.tensor([prompt_ids(trained, "Hello there?")])
    with torch.inference_mode():
        hidden = trained.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
    tensors["lm_head.weight"][trained.tokenizer.eos_token_id] = 10 * hidden / hidden.norm()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return evaluation.load(run, resolved(folder))


def test_the_end_token_counts_and_is_not_part_of_the_answer(stopping):
    said = evaluation.ask(stopping, "Hello there?", stopping.config)
    assert said["base_stopped"]
    assert said["tuned_stopped"]
    assert "<|im_end|>" not in said["base"]


def test_an_answer_that_does_not_end(trained):
    said = evaluation.ask(trained, "Hello there?", trained.config)
    assert not said["tuned_stopped"]
    (answer,) = evaluation.generate(trained, [prompt_ids(trained, "Hello there?")], trained.config, "tuned")
    assert answer.tokens == 16


def test_the_prompt_goes_through_the_chat_template(trained):
    ids = prompt_ids(trained, "Hello?")
    assert trained.tokenizer.decode(ids) == "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(trained, prompt):
    with pytest.raises(InputError, match="nothing to ask"):
        evaluation.ask(trained, prompt, trained.config)


def test_a_prompt_that_fills_the_context(trained):
    with pytest.raises(InputError, match="the model takes 1,024"):
        evaluation.ask(trained, "capital " * 2000, trained.config)


def test_an_answer_ends_where_the_context_does(trained):
    ids = prompt_ids(trained, "Hello?")
    trained.model.config.max_position_embeddings = len(ids) + 5
    (answer,) = evaluation.generate(trained, [ids], trained.config, "tuned")
    assert answer.tokens == 5


def test_a_model_without_a_template_gets_the_bare_prompt(tmp_path):
    folder = tiny_model(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    trained = evaluation.load(make_run(tmp_path / "run", folder), resolved(folder))
    assert trained.tokenizer.decode(prompt_ids(trained, "Hello?")) == "Hello?\n"
    assert evaluation.ask(trained, "Hello?", trained.config)["tuned"]
    assert evaluation.compare_general(trained)["base"]["loss"] > 0


class TestStream:
    @pytest.mark.parametrize("which", ["base", "tuned"])
    @pytest.mark.parametrize("sample", [False, True])
    def test_the_pieces_are_the_answer(self, trained, which, sample):
        config = resolved(trained.config.model_id, do_sample=sample)
        pieces = list(evaluation.stream(trained, "What is the capital of France?", config, which))
        assert "".join(pieces) == evaluation.ask(trained, "What is the capital of France?", config)[which]

    def test_leaving_early_stops_and_leaves_the_adapter_on(self, trained):
        before = evaluation.ask(trained, "Hello?", trained.config)
        steps = []
        trained.model.get_base_model().lm_head.register_forward_hook(lambda *call: steps.append(1))
        pieces = evaluation.stream(trained, "Hello?", resolved(trained.config.model_id, max_new_tokens=900), "base")
        next(pieces)
        pieces.close()
        assert 0 < len(steps) < 600
        assert evaluation.ask(trained, "Hello?", trained.config) == before

    def test_an_error_reaches_the_caller(self, trained):
        pieces = evaluation.stream(trained, "Hello?", trained.config, "tuned")
        trained.model.get_base_model().model.norm.weight.data = torch.zeros(3)
        with pytest.raises(RuntimeError, match="must match"):
            list(pieces)


class TestQuestions:
    def test_every_row_side_by_side(self, trained, rows):
        answers = evaluation.compare_answers(trained, rows, trained.config)
        assert [answer["row"] for answer in answers] == list(range(24))
        first, second = answers[:2]
        assert second["prompt"] == "What is the capital of France 1?"
        assert first["prompt"] == "system: Be brief.\nuser: What is France 0?"
        assert first["expected"] == "It is Paris 0."
        assert first["base"] != first["tuned"]
        assert set(first["scores"]["base"]) == {"exact_match", "contains", "valid_json", "token_f1"}
        for answer in answers[::7]:
            ids = data.render_prompt(trained.tokenizer, rows[answer["row"]]["messages"][:-1])
            for which in ("base", "tuned"):
                assert answer[which] == evaluation.generate(trained, [ids], trained.config, which)[0].text

    def test_an_answer_as_expected_scores_one(self, trained, rows):
        said = evaluation.compare_answers(trained, rows[:3], trained.config)[1]["tuned"]
        rows[1]["messages"][-1]["content"] = said
        again = evaluation.compare_answers(trained, rows[:3], trained.config)
        assert [answer["scores"]["tuned"]["exact_match"] for answer in again] == [0, 1, 0]
        assert again[1]["scores"]["base"]["exact_match"] == 0

    def test_the_last_answer_whose_prompt_fits(self, trained):
        turns = [{"role": role, "content": f"{role} {index} " + "the capital " * 6} for index in range(6) for role in ("user", "assistant")]
        config = resolved(trained.config.model_id, max_seq_length=120)
        (answer,) = evaluation.compare_answers(trained, [{"messages": turns}], config)
        asked = [index for index in range(6) if turns[2 * index + 1]["content"] == answer["expected"]]
        length = len(data.render_prompt(trained.tokenizer, turns[: 2 * asked[0] + 1]))
        assert 0 < asked[0] < 5
        assert length <= 120 < len(data.render_prompt(trained.tokenizer, turns[: 2 * asked[0] + 3]))

    def test_no_row_can_be_asked(self, trained):
        long = [{"role": "user", "content": "capital " * 900}, {"role": "assistant", "content": "Paris"}]
        silent = [{"role": "user", "content": "Hello?"}]
        with pytest.raises(InputError, match="none of 2 held-out rows can be asked"):
            evaluation.compare_answers(trained, [{"messages": long}, {"messages": silent}], trained.config)

    def test_a_seeded_choice_of_examples(self, trained, rows):
        config = resolved(trained.config.model_id, eval_examples=5)
        asked = [answer["row"] for answer in evaluation.compare_answers(trained, rows, config)]
        assert len(asked) == 5
        assert asked == sorted(asked) != [0, 1, 2, 3, 4]
        assert asked == [answer["row"] for answer in evaluation.compare_answers(trained, rows, config)]

    def test_plain_text_is_continued(self, trained):
        rows = [{"text": "User: Hello\nAssistant: Hi there!"}, {"text": "What is the capital of France? It is Paris."}]
        answers = evaluation.compare_answers(trained, rows, trained.config)
        assert [(answer["prompt"], answer["expected"]) for answer in answers] == [
            ("User: Hello\n", "Assistant: Hi there!"),
            ("What is the capital", "of France? It is Paris."),
        ]
        assert all(answer["tuned"] and answer["scores"] == {"base": {}, "tuned": {}} for answer in answers)

    def test_a_metric_of_the_users_own(self, trained, rows, tmp_path, monkeypatch):
        (tmp_path / "own_score.py").write_text("def length(answer, expected):\n    return len(answer)\n")
        monkeypatch.chdir(tmp_path)
        config = resolved(trained.config.model_id, metric="own_score:length")
        answers = evaluation.compare_answers(trained, rows[:4], config)
        assert all(answer["scores"]["tuned"]["own_score:length"] == len(answer["tuned"]) for answer in answers)
        (text,) = evaluation.compare_answers(trained, [{"text": "The capital\nof France"}], config)
        assert text["scores"]["tuned"] == {"own_score:length": len(text["tuned"])}

    def test_a_bad_metric_stops_before_anything_is_generated(self, trained, rows):
        trained.model = None
        with pytest.raises(InputError, match="No module named"):
            evaluation.compare_answers(trained, rows, resolved(trained.config.model_id, metric="no_such_module:f"))

    def test_tools_reach_the_template(self, tmp_path):
        folder = tiny_model(tmp_path / "model")
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").write_text("{% if tools %}tools: {{ tools | length }}\n{% endif %}" + template)
        edit_json(folder / "tokenizer_config.json")
        trained = evaluation.load(make_run(tmp_path / "run", folder), resolved(folder))
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
        from mac_lora_helpers.evaluation.answers import _questions

        (question,) = _questions(trained, [{**chat_rows(2)[1], "tools": [tool]}], trained.config)
        assert trained.tokenizer.decode(question.ids).startswith("tools: 1\n")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a\nb\nc", ("a\n", "b\nc")),
        ("one two three four", ("one two", "three four")),
        ("single", ("single", "")),
        ("line\n\n", ("line", "")),
        ("", ("", "")),
    ],
)
def test_where_plain_text_is_cut(text, parts):
    assert split_text(text) == parts


def test_differences_are_marked_word_by_word():
    pieces = evaluation.mark_difference("The capital is Paris.", "The capital was Paris.")
    assert pieces == [("The capital ", True), ("is", False), (" Paris.", True)]
    assert "".join(piece for piece, _ in evaluation.mark_difference("<b>&x</b>", json.dumps({"a": 1}))) == "<b>&x</b>"
    assert evaluation.mark_difference("", "x") == []
