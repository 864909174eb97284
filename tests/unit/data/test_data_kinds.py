"""Data files of the kinds that people publish, rebuilt small: accepted as they are, or with the parameter that the message names."""

from __future__ import annotations

import json

import pytest
from conversations import write_rows

from mac_lora_helpers import data
from mac_lora_helpers.config import resolve
from mac_lora_helpers.data.problems import DataError

Q, A = "Which city is the capital of Peru?", "Lima."
PAIR = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
CALL = {"name": "weather", "arguments": {"city": "Lima"}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": {"type": "object"}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
SQL = "table: cities\ncolumns: name, country\nQ: how many?\nA: SELECT COUNT(*) FROM cities"

#: kind → (a row, the parameters that the refusal names, what it becomes)
KINDS = {
    "Stanford Alpaca": ({"instruction": Q, "input": "", "output": A}, {}, PAIR),
    "LLaMA-Factory alpaca": (
        {"instruction": Q, "input": "", "output": A, "system": "Be brief.", "history": [["Hi", "Hello"]]},
        {},
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            *PAIR,
        ],
    ),
    "LLaMA-Factory identity": ({"instruction": "Who are you?", "input": "", "output": "I am {{name}}."}, {}, None),
    "LLaMA-Factory sharegpt with tools": (
        {
            "conversations": [
                {"from": "human", "value": Q},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "[1, 2]"},
                {"from": "gpt", "value": A},
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        {},
        [PAIR[0], CALLED, {"role": "tool", "content": "[1, 2]"}, PAIR[1]],
    ),
    "LLaMA-Factory parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": Q}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": A}], "loss_weight": 1.0},
            ]
        },
        {},
        [PAIR[0], {**PAIR[1], "reasoning_content": "Hm."}],
    ),
    "LLaMA-Factory dpo": (
        {
            "conversations": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": A},
            "rejected": {"from": "gpt", "value": "Quito."},
        },
        {"use_answer": "chosen"},
        PAIR,
    ),
    "mlx-examples wikisql": ({"text": SQL}, {}, SQL),
    "mlx-lm chat": ({"messages": [{"role": "system", "content": "Be brief."}, *PAIR]}, {}, None),
    "mlx-lm completions": ({"prompt": Q, "completion": A}, {}, PAIR),
    "mlx-lm tools": ({"messages": [PAIR[0], CALLED], "tools": [TOOL]}, {}, [PAIR[0], CALLED]),
    "Unsloth sharegpt": ({"conversations": SHAREGPT, "source": "web", "score": 5.1}, {}, PAIR),
    "OpenAI chat fine-tuning": ({"messages": [*PAIR, {**PAIR[0], "name": "ann"}, {**PAIR[1], "weight": 1}]}, {}, None),
    "OpenAI prompt fine-tuning": ({"prompt": f"{Q} ->", "completion": f" {A}\n"}, {}, None),
    "Dolly": (
        {"instruction": Q, "context": "Peru", "response": A, "category": "qa"},
        {},
        [{**PAIR[0], "content": f"{Q}\n\nPeru"}, PAIR[1]],
    ),
    "OpenOrca": ({"id": "1", "system_prompt": "", "question": Q, "response": A}, {}, PAIR),
    "GSM8K": ({"question": Q, "answer": A}, {}, PAIR),
    "MetaMath": ({"type": "AnsAug", "query": Q, "original_question": Q, "response": A}, {}, PAIR),
    "LIMA": ({"conversations": [Q, A], "source": "manual"}, {}, PAIR),
    "Guanaco": ({"text": f"### Human: {Q}### Assistant: {A}"}, {}, f"### Human: {Q}### Assistant: {A}"),
    "HH-RLHF": (
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: No."},
        {"use_answer": "chosen"},
        PAIR,
    ),
    "UltraFeedback": ({"prompt": Q, "chosen": PAIR, "rejected": [PAIR[0], {**PAIR[1], "content": "No."}]}, {"use_answer": "chosen"}, PAIR),
    "a table of another language": ({"frage": Q, "antwort": A}, {"columns": "prompt=frage, completion=antwort"}, PAIR),
}


@pytest.mark.parametrize("kind", KINDS)
def test_published_kinds_are_accepted(kind, tmp_path):
    row, named, becomes = KINDS[kind]
    path = write_rows(tmp_path / "r.jsonl", [row] * 3)
    if named:
        with pytest.raises(DataError) as caught:
            data.validate(data.load(resolve({"data_files": str(path)}, env={})), resolve({"data_files": str(path)}, env={}))
        assert all(name in caught.value.fix for name in named)
    config = resolve({"data_files": str(path), **named}, env={})
    found = data.validate(data.load(config), config)
    assert len(found.rows) == 3
    assert becomes is None or becomes in (found.rows[0].messages, found.rows[0].text)


def test_single_messages_of_a_tree_are_told_apart(tmp_path):
    """OpenAssistant's rows are messages, not conversations: there is nothing to train on in one of them."""
    row = {"message_id": "a", "parent_id": None, "role": "prompter", "lang": "en", "body": Q}
    path = write_rows(tmp_path / "r.jsonl", [row, {**row, "message_id": "b", "parent_id": "a"}])
    with pytest.raises(DataError, match="single messages of a tree"):
        data.validate(data.load(resolve({"data_files": str(path)}, env={})), resolve({"data_files": str(path)}, env={}))
