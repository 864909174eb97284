"""What is asked and what is expected: what a training trains, read as a person reads it."""

import pytest
from evaluation_runs import make_run, resolved
from tiny import tiny_model
from trl import chat_template_utils as templates

from mac_lora_helpers import data, evaluation
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation.questions import Said, questions, read_answer, trained_turn

CALL = {"type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}}
WRITTEN = '{"arguments": {"a": 1, "b": 2}, "name": "add"}'


def with_template(tmp_path, text):
    folder = tiny_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(text)
    return evaluation.load(make_run(tmp_path / "run", folder), resolved(folder, max_seq_length=2048))


def conversation(**answer):
    return {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", **answer}]}


def test_every_row_side_by_side(trained, rows):
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
            assert answer[which] == evaluation.generate(trained, [ids], trained.config, which)[0].said.text


def test_expected_is_what_notebook_02_trains(trained, rows):
    """The same tokens as the data stage's labels, end token and all."""
    for row in rows[:4]:
        prompt, answer = trained_turn(trained.tokenizer, row["messages"])
        assert prompt == data.render_prompt(trained.tokenizer, row["messages"][:-1])
        assert trained.tokenizer.decode(answer) == row["messages"][-1]["content"] + "<|im_end|>"


def test_thinking_that_the_template_writes_is_compared_apart(tmp_path):
    """Qwen3's template trains empty thinking tags before the answer; a model that writes them, or none, says 4 all the same."""
    trained = with_template(tmp_path, templates.qwen3_chat_template)
    (question,) = questions(trained, [conversation(content="4")], trained.config)
    assert trained.tokenizer.decode(question.answer) == "<think>\n\n</think>\n\n4<|im_end|>"
    assert question.expected == Said("4")
    for written in ("<think>\n\n</think>\n\n4", "4", "<think>\nTwo and two.\n</think>\n\n4"):
        ids = trained.tokenizer(written)["input_ids"]
        assert read_answer(trained.tokenizer, ids, question.ids).text == "4"
    assert read_answer(trained.tokenizer, ids, question.ids).thinking == "Two and two."


@pytest.mark.parametrize("text", [templates.qwen3_chat_template, None], ids=["known to TRL", "own"])
def test_a_call_is_compared_as_a_call(tmp_path, text):
    own = templates.qwen3_chat_template.replace("# Tools", "# Tools that you have")
    trained = with_template(tmp_path, text or own)
    row = {**conversation(content="", tool_calls=[CALL]), "tools": [TOOL]}
    (question,) = questions(trained, [row], trained.config)
    assert question.expected.text == WRITTEN
    written = '<tool_call>\n{"name":"add",   "arguments":{"a":1,"b":2}}\n</tool_call>'
    assert read_answer(trained.tokenizer, trained.tokenizer(written)["input_ids"], question.ids).text == WRITTEN
    broken = '<tool_call>\n{"name": "add", "arguments": {\n</tool_call>'
    assert read_answer(trained.tokenizer, trained.tokenizer(broken)["input_ids"], question.ids).text == broken
    no_call = "<tool_call>\n[1]\n</tool_call>"
    assert read_answer(trained.tokenizer, trained.tokenizer(no_call)["input_ids"], question.ids).text == no_call
    twice = read_answer(trained.tokenizer, trained.tokenizer(f"Two: {written}\n{written}")["input_ids"], question.ids)
    assert twice.text == f"Two:\n[{WRITTEN}, {WRITTEN}]"


def test_thinking_in_tags_under_a_template_of_ones_own(trained):
    for opened, written in (("", "<think>\nhm\n</think>\n\nYes."), ("<think>\n", "hm\n</think>\n\nYes.")):
        prompt = trained.tokenizer(f"<|im_start|>assistant\n{opened}")["input_ids"]
        assert read_answer(trained.tokenizer, trained.tokenizer(written)["input_ids"], prompt) == Said("Yes.", "hm")
    assert read_answer(trained.tokenizer, trained.tokenizer(' {"a": 1} ')["input_ids"]).text.strip() == '{"a": 1}'


def test_thinking_is_kept_beside_the_answer(trained, rows):
    rows[0]["messages"][-1]["content"] = "<think>\nhm\n</think>\n\nIt is Paris."
    (answer,) = evaluation.compare_answers(trained, rows[:1], trained.config)
    assert answer["expected"] == "It is Paris."
    assert answer["thinking"] == {"expected": "hm", "base": "", "tuned": ""}


def test_the_last_answer_whose_prompt_fits(trained):
    turns = [{"role": role, "content": f"{role} {index} " + "the capital " * 6} for index in range(6) for role in ("user", "assistant")]
    turns.append({"role": "user", "content": "and then?"})
    config = resolved(trained.config.model_id, max_seq_length=120)
    (answer,) = evaluation.compare_answers(trained, [{"messages": turns}], config)
    asked = [index for index in range(6) if turns[2 * index + 1]["content"].strip() == answer["expected"].strip()]
    length = len(data.render_prompt(trained.tokenizer, turns[: 2 * asked[0] + 1]))
    assert 0 < asked[0] < 5
    assert length <= 120 < len(data.render_prompt(trained.tokenizer, turns[: 2 * asked[0] + 3]))


def test_no_row_can_be_asked(trained):
    long = [{"role": "user", "content": "capital " * 900}, {"role": "assistant", "content": "Paris"}]
    silent = [{"role": "user", "content": "Hello?"}]
    with pytest.raises(InputError, match="none of 2 held-out rows can be asked"):
        evaluation.compare_answers(trained, [{"messages": long}, {"messages": silent}], trained.config)


def test_a_seeded_choice_of_examples(trained, rows):
    config = resolved(trained.config.model_id, eval_examples=5)
    asked = [question.row for question in questions(trained, rows, config)]
    assert len(asked) == 5
    assert asked == [question.row for question in questions(trained, rows, config)]
    assert sorted(asked) != asked
    assert sorted(asked) != [0, 1, 2, 3, 4]


def test_plain_text_is_continued(trained):
    rows = [{"text": "User: Hello\nAssistant: Hi there!"}, {"text": "What is the capital of France? It is Paris."}]
    answers = evaluation.compare_answers(trained, rows, trained.config)
    assert [(answer["prompt"], answer["expected"]) for answer in answers] == [
        ("User: Hello\n", "Assistant: Hi there!"),
        ("What is the capital", "of France? It is Paris."),
    ]
    assert all(answer["tuned"] and answer["scores"] == {"base": {}, "tuned": {}} for answer in answers)


def test_a_bad_metric_stops_before_anything_is_generated(trained, rows):
    trained.model = None
    with pytest.raises(InputError, match="No module named"):
        evaluation.compare_answers(trained, rows, resolved(trained.config.model_id, metric="no_such_module:f"))
