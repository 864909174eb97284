"""What of a row the chat template leaves out: every turn, reasoning, call and tool is looked for in the rendered text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mac_lora_helpers.data.conversation import Message, split_thinking
from mac_lora_helpers.data.masking import Row, answer_turns, is_trained
from mac_lora_helpers.data.problems import Fault, brief
from mac_lora_helpers.data.store import Example
from mac_lora_helpers.data.template import ChatTemplate


class Lost:
    """Counts what templates leave out; ``counts``: what → rows."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def check(self, example: Example, rows: list[Row], template: ChatTemplate) -> Fault | None:
        """The fault of a row that lost a turn or an answer; anything less is counted.

        Args:
            rows: the example's rows before the length limit; the last one holds the whole conversation.
        """
        messages = example.messages or []
        plan = rows[-1].plan
        said = [(turn, text) for turn, text in zip(reversed(_turns(messages, rows)), reversed(_answers(rows)), strict=False)]
        missing: set[str] = set()
        for turn, text in said:
            if fault := _answer(messages[turn], turn, text, template):
                return fault
            _look(messages[turn], text, missing)
        answered = {turn for turn, _ in said}
        if fault := _turns_there(messages, answered, plan.text):
            return fault
        for turn, message in enumerate(messages):
            if len(message) > 2 and turn not in answered:
                _look(message, plan.text, missing)
        names = [name for tool in example.tools or [] if (name := _tool_name(tool))]
        if any(name not in plan.text for name in names):
            missing.add("tool schemas")
        self.counts.update(missing)
        return None


def _answer(message: Message, turn: int, text: str, template: ChatTemplate) -> Fault | None:
    """Whether an answer's text stands in what is trained of it."""
    bare = text.strip().removesuffix(template.end.strip()).removeprefix(template.lead.strip()).strip()
    if not bare:
        what = "tool call" if message.get("tool_calls") else "answer"
        return Fault("answer_lost", f"messages[{turn}]", f"the chat template writes nothing of this {what}")
    content = split_thinking(message["content"])[1]
    if not stands_in(content, text):
        return Fault("turn_lost", f"messages[{turn}]", f"the chat template leaves out (part of) this answer: {brief(content)!r}")
    return None


def _look(message: Message, text: str, missing: set[str]) -> None:
    """Looks for a turn's reasoning and calls in the text."""
    for thought in filter(None, (split_thinking(message["content"])[0], message.get("reasoning_content", "").strip())):
        if not stands_in(thought, text):
            missing.add("reasoning")
    for call in message.get("tool_calls", []):
        function = call["function"]
        if function["name"] not in text:
            missing.add("tool calls")
        elif not all(stands_in(value, text) for value in _leaves(function["arguments"])):
            missing.add("arguments of tool calls")


def _turns(messages: list[Message], rows: list[Row]) -> list[int]:
    """The turns whose answers the rows hold: all of them in one row, the trained ones in a row each."""
    turns = answer_turns(messages)
    return turns if len(rows) == 1 and len(rows[0].plan.spans) == len(turns) else [turn for turn in turns if is_trained(messages[turn])]


def _answers(rows: list[Row]) -> list[str]:
    return [row.plan.text[start:end] for row in rows for start, end in row.plan.spans]


def _turns_there(messages: list[Message], answered: set[int], text: str) -> Fault | None:
    """Whether each other turn stands in the text, each in a place of its own."""
    at, ordered = 0, True
    for message in messages:
        content = split_thinking(message["content"])[1].strip()
        found = text.find(content, at) if content else at
        if found < 0:
            ordered = False
            break
        at = found + len(content)
    if ordered:
        return None
    pieces = [message["content"] for message in messages]
    for turn, message in enumerate(messages):
        content = split_thinking(message["content"])[1].strip()
        there = content and text.count(content) >= sum(piece.count(content) for piece in pieces)
        if turn in answered or not content or there or (content not in text and stands_in(content, text)):
            continue
        role = message["role"]
        return Fault("turn_lost", f"messages[{turn}]", f"the chat template leaves out the {role} turn {brief(content)!r}")
    return None


def stands_in(piece: str, text: str) -> bool:
    """Whether a piece stands in the text: as it is, escaped as JSON, or with other white space."""
    piece = piece.strip()
    if piece in text:
        return True
    escaped = (json.dumps(piece, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    return any(form in text for form in escaped) or " ".join(piece.split()) in " ".join(text.split())


def _leaves(value: Any) -> Iterator[str]:
    """The names and values in a call's arguments, as text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        yield value if isinstance(value, str) else json.dumps(value)


def _tool_name(tool: dict[str, Any]) -> str:
    inner = tool.get("function", tool)
    return str(inner.get("name") or "") if isinstance(inner, dict) else ""
