"""What is trained is the answers with their end tokens, behind exactly what inference sees; in every row."""

from __future__ import annotations

import pytest
from conversations import conversations, make, runs, text, write_rows
from tokenizer_kinds import (
    CHATML,
    INST,
    LAST_USER,
    MARKED,
    NO_PROMPT,
    PLAIN,
    REWRITES,
    SPACE,
    stock_names,
    stock_tokenizer,
    trl_template,
    write_kind,
)

from mac_lora_helpers import data
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError

#: name → (kind, template, end of a turn, how the answers are found, system turns allowed)
CASES = {
    "qwen2-trl": ("qwen2", trl_template("qwen2_5"), "<|im_end|>", "prefix rendering", True),
    "qwen2-own": ("qwen2", CHATML, "<|im_end|>", "prefix rendering", True),
    "qwen2-marked": ("qwen2", MARKED, "<|im_end|>", "prefix rendering", True),
    "llama3-trl": ("llama3", trl_template("llama3"), "<|eot_id|>", "prefix rendering", True),
    "llama3-trl-unknown": ("llama3", trl_template("llama3_1"), "<|eot_id|>", "prefix rendering", True),
    "llama2-own": ("llama2", INST, "</s>", "prefix rendering", False),
    "gpt2-chatml": ("gpt2", CHATML, "<|im_end|>", "prefix rendering", True),
    "gpt2-space": ("gpt2", SPACE, "<|endoftext|>", "prefix rendering", False),
}


def expected(messages: list[dict], end: str, trims: bool) -> list[str]:
    return [(m["content"].strip() if trims else m["content"]) + end for m in messages if m["role"] == "assistant"]


def check_rows(made, rows: list[list[dict]], end: str, trims: bool = False) -> int:
    """Every answer is trained once, whole, behind the ids that transformers itself gives for inference."""
    _, _, _, splits, tokenizer, encoded = made
    seen = 0
    for name, examples in splits.items():
        tokens = iter(encoded.splits[name])
        for example in examples:
            wanted = expected(example.messages, end, trims)
            prompts = [turn for turn, m in enumerate(example.messages) if m["role"] == "assistant"]
            while wanted:
                row = next(tokens)
                for start, stop in runs(row["labels"]):
                    assert row["labels"][start:stop] == row["input_ids"][start:stop]
                    assert tokenizer.decode(row["input_ids"][start:stop]).strip(" ") == wanted.pop(0)
                    prompt = tokenizer.apply_chat_template(example.messages[: prompts.pop(0)], add_generation_prompt=True)["input_ids"]
                    assert row["input_ids"][:start] == prompt
            seen += 1
        assert next(tokens, None) is None
    assert seen == len(rows)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_labels_are_the_answers_and_their_end_tokens(case, tmp_path):
    kind, template, end, masking, system = CASES[case]
    rows = conversations(1000, system=system)
    model = write_kind(tmp_path / "model", kind, template)
    made = make(model, write_rows(tmp_path / "rows.jsonl", [{"messages": row} for row in rows]))
    assert made[-1].masking == masking
    assert check_rows(made, rows, end, trims="trim" in template) == 1000


def test_embedded_data_set_is_masked_the_same_way():
    config = resolve({}, env={})
    found = data.validate(data.load(config), config)
    splits, tokenizer = data.split(found, config), data.load_tokenizer(config)
    made = (config, None, found, splits, tokenizer, data.encode(splits, tokenizer, config))
    assert check_rows(made, list(found.rows), "<|im_end|>") == 1175
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [956, 59, 160]


@pytest.mark.parametrize(("kind", "template", "end"), [("gpt2", PLAIN, "<|endoftext|>"), ("qwen2", PLAIN, "<|im_end|>")])
def test_template_without_end_token_gets_one_eos_after_the_last_answer(kind, template, end, tmp_path):
    rows = [row[-2:] for row in conversations(100, system=False)]
    made = make(write_kind(tmp_path / "model", kind, template), write_rows(tmp_path / "r.jsonl", [{"messages": r} for r in rows]))
    check_rows(made, rows, end)
    eos = made[4].eos_token_id
    assert all(row["input_ids"].count(eos) == 1 for row in made[-1].splits["train"])
    assert "eos_appended" in {lint.name for lint in made[-1].lints}


@pytest.mark.parametrize("template", [CHATML, MARKED, trl_template("qwen2_5"), SPACE])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_white_space_that_merges_across_the_boundary_is_encoded_as_inference_has_it(kind, template, tmp_path):
    answers = ["\nstarts with a line break", "\n\ntwo", " a space", "  two spaces", "\ttab", "ends \n", "    indented\n    code"]
    rows = [
        [m for turn in range(2) for m in ({"role": "user", "content": f"q{i} {turn}"}, {"role": "assistant", "content": a})]
        for i, a in enumerate(answers)
    ]
    made = make(write_kind(tmp_path / "model", kind, template), write_rows(tmp_path / "r.jsonl", [{"messages": r} for r in rows]))
    _, _, _, splits, tokenizer, encoded = made
    for name, examples in splits.items():
        tokens = iter(encoded.splits[name])
        for example in examples:
            turns = [turn for turn, m in enumerate(example.messages) if m["role"] == "assistant"]
            while turns:
                row = next(tokens)
                for start, stop in runs(row["labels"]):
                    turn = turns.pop(0)
                    prompt = tokenizer.apply_chat_template(example.messages[:turn], add_generation_prompt=True)["input_ids"]
                    assert row["input_ids"][:start] == prompt
                    whole = tokenizer.apply_chat_template(example.messages[: turn + 1], tokenize=False)
                    assert whole.startswith(tokenizer.decode(row["input_ids"][:stop]))
                    assert tokenizer.decode(row["input_ids"][start:stop]).startswith(example.messages[turn]["content"])
        assert next(tokens, None) is None


def test_history_that_the_template_rewrites_makes_one_row_a_turn(tmp_path):
    rows = conversations(50, system=False)
    path = write_rows(tmp_path / "r.jsonl", [{"messages": row} for row in rows])
    for template in (REWRITES, LAST_USER, trl_template("qwen3")):
        _, _, _, splits, tokenizer, encoded = make(write_kind(tmp_path / "model", "qwen2", template), path)
        tokens = iter(encoded.splits["train"])
        for example in splits["train"]:
            for turn in [turn for turn, m in enumerate(example.messages) if m["role"] == "assistant"]:
                row = next(tokens)
                ((start, stop),) = runs(row["labels"])
                prompt = tokenizer.apply_chat_template(example.messages[:turn], add_generation_prompt=True)["input_ids"]
                assert row["input_ids"][:start] == prompt
                assert example.messages[turn]["content"] in tokenizer.decode(row["labels"][start:stop])
                assert row["input_ids"][stop - 1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert next(tokens, None) is None
        assert "turn_by_turn" in {lint.name for lint in encoded.lints}


#: Families that small Macs train; TRL's other templates may be refused, but never be masked wrongly.
WANTED = {"qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "phi3", "lfm2", "cohere2"}


@pytest.mark.parametrize("name", stock_names())
def test_every_stock_template_of_trl_is_masked_rightly_or_refused(name, tmp_path):
    rows = conversations(12, system=False)
    try:
        made = make(stock_tokenizer(tmp_path / "model", name), write_rows(tmp_path / "r.jsonl", [{"messages": row} for row in rows]))
    except InputError:
        assert name not in WANTED
        return
    _, _, _, splits, tokenizer, encoded = made
    call = data.template_call(tokenizer)  # the date that some of them write is pinned
    for part, examples in splits.items():
        tokens = iter(encoded.splits[part])
        for example in examples:
            turns = [turn for turn, m in enumerate(example.messages) if m["role"] == "assistant"]
            while turns:
                row = next(tokens)
                for start, stop in runs(row["labels"]):
                    turn = turns.pop(0)
                    prompt = tokenizer.apply_chat_template(example.messages[:turn], add_generation_prompt=True, **call)["input_ids"]
                    assert row["input_ids"][:start] == prompt
                    trained = tokenizer.decode(row["input_ids"][start:stop])
                    assert example.messages[turn]["content"].strip() in trained
                    assert not trained[-1].isspace()
                    last = row["input_ids"][stop - 1]
                    assert last in tokenizer.added_tokens_decoder, "nothing ends the answer"
        assert next(tokens, None) is None


def test_templates_that_no_mask_is_right_for_are_refused(tmp_path):
    path = write_rows(tmp_path / "r.jsonl", [{"messages": row} for row in conversations(5)])
    for template, reason in (
        (NO_PROMPT, "ignores add_generation_prompt"),
        ("{{ messages[0]['content'] }}", "does not write each turn's text once"),
        ("{% if add_generation_prompt %}{{ 'Now:' }}{% endif %}" + CHATML, "does not start with the prompt"),
        ("{{ raise_exception('never') }}", "fails on a plain question"),
    ):
        with pytest.raises(InputError, match=reason):
            make(write_kind(tmp_path / "model", "qwen2", template), path)
    with pytest.raises(InputError, match="no chat template"):
        make(write_kind(tmp_path / "bare", "qwen2", None), path)


def test_completion_trains_the_last_answer_and_all_trains_everything(tmp_path):
    rows = conversations(30, system=False)
    model, path = write_kind(tmp_path / "model", "qwen2"), write_rows(tmp_path / "r.jsonl", [{"messages": row} for row in rows])
    _, _, _, splits, tokenizer, encoded = make(model, path, loss_on="completion")
    for example, row in zip(splits["train"], encoded.splits["train"], strict=True):
        assert tokenizer.decode([label for label in row["labels"] if label != -100]) == example.messages[-1]["content"] + "<|im_end|>"
    encoded = make(model, path, loss_on="all")[-1]
    assert all(row["labels"] == row["input_ids"] for row in encoded.splits["train"])


def test_tool_calls_are_trained_as_the_template_writes_them(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    messages = [
        {"role": "user", "content": "Weather in Zürich?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}}]
    rows = [
        {"messages": messages, "tools": tools},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ]
    model = write_kind(tmp_path / "model", "qwen2", trl_template("qwen2_5"))
    _, _, _, splits, tokenizer, encoded = make(model, write_rows(tmp_path / "r.jsonl", rows * 3))
    found = {}
    for name in splits:
        for example, row in zip(splits[name], encoded.splits[name], strict=True):
            found[bool(example.tools)] = [tokenizer.decode(row["labels"][a:b]) for a, b in runs(row["labels"])]
    assert found[True] == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>',
        "It is sunny.<|im_end|>",
    ]
    assert found[False] == ["Ho<|im_end|>"]


def test_render_prompt_is_what_transformers_gives(tmp_path):
    import random

    for kind, template in (("qwen2", trl_template("qwen2_5")), ("llama3", trl_template("llama3")), ("gpt2", SPACE)):
        config = resolve({"model_id": str(write_kind(tmp_path / kind, kind, template))}, env={})
        tokenizer = data.load_tokenizer(config)
        messages = [{"role": "user", "content": text(random.Random(3))}]
        assert data.render_prompt(tokenizer, messages) == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
