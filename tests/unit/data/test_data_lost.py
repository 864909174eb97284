"""Nothing is lost in silence: whatever a row says stands in the rendered text, or in the report; with every stock template of TRL."""

from __future__ import annotations

import random

import pytest
from conversations import make, write_rows
from tokenizer_kinds import stock_names, stock_tokenizer

from mac_lora_helpers.errors import InputError

#: Pieces whose loss is counted, and under which name; a lost turn or answer is an error by row.
COUNTED = {"reasoning": "reasoning", "call": "tool calls", "argument": "arguments of tool calls", "tool": "tool schemas"}


def conversation(rng: random.Random, number: int) -> tuple[dict, list[tuple[str, str]]]:
    """A random row, and what it says: (kind, text) with a word of its own for each piece."""
    said: list[tuple[str, str]] = []

    def word(kind: str) -> str:
        said.append((kind, f"{kind}{number}x{len(said)}"))
        return said[-1][1]

    messages: list[dict] = []
    if rng.random() < 0.5:
        messages.append({"role": rng.choice(["system", "developer"]), "content": word("turn")})
    tools = [
        {"type": "function", "function": {"name": word("tool"), "description": "d", "parameters": {"type": "object", "properties": {}}}}
    ]
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": word("turn")})
        answer = {"role": "assistant", "content": word("turn")}
        if rng.random() < 0.4:
            answer[rng.choice(["reasoning_content", "reasoning", "thinking"])] = word("reasoning")
        if rng.random() < 0.3:
            answer["weight"] = 0
        messages.append(answer)
        if rng.random() < 0.4:
            call = {"type": "function", "function": {"name": word("call"), "arguments": {"city": word("argument")}}}
            messages[-1] = {"role": "assistant", "content": "", "tool_calls": [call]}
            said[:] = [piece for piece in said if piece[1] != answer["content"] and piece[1] not in answer.values()]
            messages.append({"role": "tool", "name": call["function"]["name"], "content": word("turn")})
            messages.append({"role": "assistant", "content": word("turn")})
    messages[-1].pop("weight", None)
    return {"messages": messages, "tools": tools}, said


@pytest.mark.parametrize("name", stock_names())
def test_what_a_row_says_stands_in_the_text_or_in_the_report(name, tmp_path):
    rng = random.Random(name)
    rows = [conversation(rng, number) for number in range(16)]
    model = stock_tokenizer(tmp_path / "model", name)
    for number, (row, said) in enumerate(rows):
        path = write_rows(
            tmp_path / f"{number}.jsonl", [row, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
        )
        try:
            made = make(model, path, test_share=0.5)
        except InputError as error:  # by row, with the turn or the template's own reason; or a template that no mask is right for
            if getattr(error, "counts", {}).keys() - {"turn_lost", "answer_lost", "template_refuses", "template_changes_history"}:
                raise
            continue
        encoded, tokenizer = made[-1], made[4]
        text = "\n".join(tokenizer.decode(row["input_ids"]) for split in encoded.splits.values() for row in split)
        for kind, piece in said:
            assert piece in text or COUNTED.get(kind) in encoded.lost, (kind, piece, encoded.lost)
