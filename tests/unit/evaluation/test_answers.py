"""Generation: batches like one by one, sampling, the end token, the template, streaming, the time it may take."""

import json

import pytest
import torch
from evaluation_runs import ask, chat_rows, make_run, resolved
from tiny import tiny_model

from mac_lora_helpers import data, evaluation
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation import answers as room
from mac_lora_helpers.evaluation import clock as watch
from mac_lora_helpers.evaluation import prompt_ids


def prompts(trained, count=16):
    return [data.render_prompt(trained.tokenizer, row["messages"][:-1]) for row in chat_rows(count)]


def test_a_batch_answers_as_one_by_one_does(trained):
    """Through plain transformers, without padding, one prompt at a time."""
    ids = prompts(trained)
    assert len({len(row) for row in ids}) > 4
    for which in ("base", "tuned"):
        together = evaluation.generate(trained, ids, trained.config, which)
        with trained.voice(which):
            for row, answer in zip(ids, together, strict=True):
                alone = trained.model.generate(input_ids=torch.tensor([row]), max_new_tokens=16, do_sample=False)[0, len(row) :]
                assert answer.tokens == len(alone) - answer.stopped
    assert len({answer.said.text for answer in together}) > 1


class TestSampling:
    def config(self, trained, **values):
        return resolved(trained.config.model_id, do_sample=True, **values)

    def test_it_depends_on_the_seed(self, trained):
        ids, config = prompts(trained), self.config(trained, temperature=2.0, top_p=1.0)
        first = evaluation.generate(trained, ids, config, "tuned")
        assert evaluation.generate(trained, ids, config, "tuned") == first
        assert evaluation.generate(trained, ids, self.config(trained, temperature=2.0, top_p=1.0, seed=1), "tuned") != first
        assert evaluation.generate(trained, ids, trained.config, "tuned") != first

    def test_a_low_temperature_or_a_small_nucleus_is_greedy(self, trained):
        ids = prompts(trained)
        greedy = evaluation.generate(trained, ids, trained.config, "tuned")
        assert evaluation.generate(trained, ids, self.config(trained, temperature=1e-4, top_p=1.0), "tuned") == greedy
        assert evaluation.generate(trained, ids, self.config(trained, temperature=5.0, top_p=1e-6), "tuned") == greedy

    def test_an_adapter_without_effect_draws_the_same_words(self, useless):
        values = {"do_sample": True, "temperature": 1.5}
        assert ask(useless, "Hello there?", "base", **values) == ask(useless, "Hello there?", "tuned", **values)


@pytest.fixture(scope="module")
def stopping(tmp_path_factory):
    """A model whose end token is its likeliest first word: the embedding of the end token is made large."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("stopping")
    folder = tiny_model(root / "model", initializer_range=0.2, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    run = make_run(root / "run", folder, strength=1e-4)
    trained = evaluation.load(run, resolved(folder))
    ids = torch.tensor([prompt_ids(trained.tokenizer, "Hello there?")])
    with torch.inference_mode():
        hidden = trained.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
    tensors["lm_head.weight"][trained.tokenizer.eos_token_id] = 10 * hidden / hidden.norm()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return evaluation.load(run, resolved(folder))


def test_the_end_token_counts_and_is_not_part_of_the_answer(stopping):
    for which in ("base", "tuned"):
        answer = ask(stopping, "Hello there?", which)
        assert answer.stopped
        assert "<|im_end|>" not in answer.said.text


def test_an_answer_ends_where_its_room_does(trained):
    answer = ask(trained, "Hello there?")
    assert (answer.stopped, answer.tokens) == (False, 16)
    trained.model.config.max_position_embeddings = len(prompt_ids(trained.tokenizer, "Hello?")) + 5
    assert ask(trained, "Hello?").tokens == 5


def test_what_cannot_be_asked(trained):
    ids = prompt_ids(trained.tokenizer, "Hello?")
    assert trained.tokenizer.decode(ids) == "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    for empty in ("", "  \n"):
        with pytest.raises(InputError, match="nothing to ask"):
            prompt_ids(trained.tokenizer, empty)
    with pytest.raises(InputError, match="the model takes 1,024"):
        prompt_ids(trained.tokenizer, "capital " * 2000, trained.context)


def test_a_model_without_a_template_gets_the_bare_prompt(tmp_path):
    folder = tiny_model(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    trained = evaluation.load(make_run(tmp_path / "run", folder), resolved(folder))
    assert trained.tokenizer.decode(prompt_ids(trained.tokenizer, "Hello?")) == "Hello?\n"
    assert ask(trained, "Hello?").said.text
    assert evaluation.compare_general(trained)["base"]["loss"] > 0


class TestStream:
    @pytest.mark.parametrize("which", ["base", "tuned"])
    @pytest.mark.parametrize("sample", [False, True])
    def test_the_pieces_are_the_answer(self, trained, which, sample):
        config = resolved(trained.config.model_id, do_sample=sample)
        pieces = list(evaluation.stream(trained, "What is the capital of France?", config, which))
        said = ask(trained, "What is the capital of France?", which, do_sample=sample).said
        assert "".join(pieces).strip() == said.text.strip()

    def test_leaving_early_stops_and_leaves_the_adapter_on(self, trained):
        before, steps = ask(trained, "Hello?"), []
        trained.model.get_base_model().lm_head.register_forward_hook(lambda *call: steps.append(1))
        pieces = evaluation.stream(trained, "Hello?", resolved(trained.config.model_id, max_new_tokens=900), "base")
        next(pieces)
        pieces.close()
        assert 0 < len(steps) < 600
        assert ask(trained, "Hello?") == before

    def test_an_error_reaches_the_caller(self, trained):
        pieces = evaluation.stream(trained, "Hello?", trained.config, "tuned")
        trained.model.get_base_model().model.norm.weight.data = torch.zeros(3)
        with pytest.raises(RuntimeError, match="must match"):
            list(pieces)


class TestTime:
    @pytest.fixture
    def clock(self, monkeypatch):
        """An answer takes a second."""
        now = [0.0]
        monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
        generate = room.generate

        def slow(trained, prompts, config, which):
            now[0] += len(prompts)
            return generate(trained, prompts, config, which)

        monkeypatch.setattr(room, "generate", slow)

    def test_the_cost_is_said_and_what_is_there_counts(self, trained, rows, clock, capsys):
        config = resolved(trained.config.model_id, eval_batch_size=2, eval_minutes=0.9, max_new_tokens=2)
        answers = evaluation.compare_answers(trained, rows, config)
        assert answers.coverage == {"examples": 18, "of": 24, "seconds": 36.0}
        first, second, last = capsys.readouterr().out.splitlines()
        assert first == "2 of 24 questions answered by both, about 32 s left: time for about 18 of them"
        assert second == "10 of 24 questions answered by both, about 16 s left: time for about 18 of them"
        assert last == "18 of 24 questions answered by both; eval_minutes are over, so these count."
        asked = [answer["row"] for answer in answers]
        assert asked == sorted(asked) != list(range(18))

    def test_short_work_says_nothing(self, trained, rows, capsys):
        answers = evaluation.compare_answers(trained, rows[:4], trained.config)
        assert (answers.coverage["examples"], capsys.readouterr().out) == (4, "")


def test_differences_are_marked_word_by_word():
    pieces = evaluation.mark_difference("The capital is Paris.", "The capital was Paris.")
    assert pieces == [("The capital ", True), ("is", False), (" Paris.", True)]
    assert "".join(piece for piece, _ in evaluation.mark_difference("<b>&x</b>", json.dumps({"a": 1}))) == "<b>&x</b>"
    assert evaluation.mark_difference("", "x") == []
