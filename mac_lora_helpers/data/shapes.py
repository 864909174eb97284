"""Shapes of rows: which one a source has, and how each becomes messages or text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.conversation import Faults, Message, check_order, read_messages, read_tools
from mac_lora_helpers.data.problems import DataError, Fault, brief, file_error, listed

Row = Mapping[str, Any]
#: What a row became: messages (with tools, if any) or text.
Parsed = tuple[list[Message] | None, str | None, list[dict[str, Any]] | None]

#: ShareGPT's names → roles.
_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bard": "assistant",
    "bing": "assistant", "model": "assistant", "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How rows are read: the shape's name, why it was chosen, its fields and the function that reads a row."""

    name: str
    reason: str
    fields: tuple[str, ...]
    parse: Callable[[Row, Faults], Parsed]


def detect(rows: list[Row], config: Config, where: str) -> Shape:
    """The shape of the first rows, or the one that the parameters ask for.

    Raises:
        DataError: no known shape; names the fields that are there.
    """
    if config.data_shape != "auto":
        return _shape(config.data_shape, config, f"{config.data_shape}, as the parameter data_shape says")
    votes = Counter(name for row in rows if (name := shape_of(row, config)))
    if not votes:
        fields = Counter(key for row in rows for key in row)
        known = "messages, text, prompt + completion, conversations (from/value), instruction + output"
        raise _unknown_shape(where, f"no known shape: the fields are {listed(fields) or 'none'}; known are {known}")
    name, count = votes.most_common(1)[0]
    fields = _shape(name, config, "").fields
    return _shape(name, config, f"{name}: {count} of the first {len(rows)} rows have the field{'s' * (len(fields) > 1)} {listed(fields)}")


def _unknown_shape(where: str, what: str) -> DataError:
    return file_error("unknown_shape", where, what)


def shape_of(row: Row, config: Config) -> str:
    """Name of the row's shape by its fields, empty if it has none; a field the caller named comes first."""
    text, messages = config.text_field, config.messages_field
    if text and isinstance(row.get(text), str):
        return "text"
    if messages and row.get(messages) is not None:
        return "conversations" if _has_from(row[messages]) else "messages"
    if row.get("conversations") is not None:
        return "conversations" if _has_from(row["conversations"]) else "messages"
    if row.get("prompt") is not None and row.get("completion") is not None:
        return "prompt_completion"
    if row.get("instruction") is not None and row.get("output") is not None:
        return "alpaca"
    return "text" if not text and isinstance(row.get("text"), str) else ""


def _has_from(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "from" in value[0]


def _shape(name: str, config: Config, reason: str) -> Shape:
    messages = config.messages_field or "messages"
    if name == "text":
        text = config.text_field or "text"
        return Shape(name, reason, (text,), lambda row, faults: (None, _text(row, text, faults), None))
    if name == "messages":
        return Shape(name, reason, (messages,), lambda row, faults: _messages(row, messages, faults))
    if name == "conversations":
        given = config.asked("messages_field") and config.messages_field
        turns = messages if given and messages != "messages" else "conversations"
        return Shape(name, reason, (turns,), lambda row, faults: _conversations(row, turns, messages, faults))
    if name == "prompt_completion":
        return Shape(name, reason, ("prompt", "completion"), _prompt_completion)
    return Shape(name, reason, ("instruction", "output"), _alpaca)


def _missing(row: Row, field: str, config_fields: Faults) -> bool:
    if row.get(field) is None:
        kind = "missing_field" if field in row else "mixed_shapes"
        what = f"the field {field} is empty" if field in row else f"the row has no field {field}; its fields are {listed(row) or 'none'}"
        config_fields.append(Fault(kind, field, what))
        return True
    return False


def _text(row: Row, field: str, faults: Faults) -> str | None:
    if _missing(row, field, faults):
        return None
    return _string(row[field], field, faults)


def _string(value: Any, field: str, faults: Faults, empty: bool = False) -> str:
    if not isinstance(value, str):
        faults.append(Fault("non_string_content", field, f"not text: {brief(value)}"))
        return ""
    if not empty and not value.strip():
        faults.append(Fault("empty_content", field, "the text is empty"))
    return value


def _messages(row: Row, field: str, faults: Faults) -> Parsed:
    if row.get(field) is None and row.get("conversations") is not None:
        field = "conversations"
    if _missing(row, field, faults):
        return None, None, None
    return read_messages(row[field], field, faults), None, read_tools(row.get("tools"), faults)


def _conversations(row: Row, field: str, other: str, faults: Faults) -> Parsed:
    field = field if row.get(field) is not None or row.get(other) is None else other
    if _missing(row, field, faults):
        return None, None, None
    turns = row[field]
    if isinstance(turns, list):
        turns = [_turn(item, f"{field}[{index}]", faults) for index, item in enumerate(turns)]
        system = row.get("system")
        if isinstance(system, str) and system.strip() and turns and turns[0].get("role") != "system":
            turns.insert(0, {"role": "system", "content": system})
    if any(fault.kind in ("not_a_message", "unknown_role", "missing_role", "bad_tool_call") for fault in faults):
        return None, None, None
    return read_messages(turns, field, faults), None, read_tools(row.get("tools"), faults)


def _turn(item: Any, field: str, faults: Faults) -> Message:
    """A ShareGPT turn as a message."""
    if not isinstance(item, dict):
        faults.append(Fault("not_a_message", field, f"not a turn: {brief(item)}"))
        return {}
    speaker, value = item.get("from", item.get("role")), item.get("value", item.get("content"))
    if speaker is None:
        faults.append(Fault("missing_role", f"{field}.from", "the turn does not say who speaks"))
    elif speaker == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": value}
    elif not isinstance(speaker, str) or speaker not in _SPEAKERS:
        faults.append(Fault("unknown_role", f"{field}.from", f"unknown speaker {brief(speaker)!r}"))
    else:
        return {"role": _SPEAKERS[speaker], "content": value}
    return {}


def _prompt_completion(row: Row, faults: Faults) -> Parsed:
    """Strings become a question and an answer; lists of messages are joined."""
    if any([_missing(row, field, faults) for field in ("prompt", "completion")]):
        return None, None, None
    prompt, completion = row["prompt"], row["completion"]
    tools = read_tools(row.get("tools"), faults)
    if isinstance(prompt, list) and isinstance(completion, list):
        own: Faults = []
        messages = read_messages(prompt + completion, "prompt+completion", own)
        if completion and not any(isinstance(m, dict) and m.get("role") == "assistant" for m in completion):
            own.append(Fault("no_assistant", "completion", "no assistant turn in the completion"))
        faults.extend(own)
        return messages, None, tools
    return _pair(row.get("system"), ("prompt", prompt), ("completion", completion), faults), None, tools


def _pair(system: Any, question: tuple[str, Any], answer: tuple[str, Any], faults: Faults) -> list[Message]:
    messages = [
        {"role": "user", "content": _string(question[1], question[0], faults)},
        {"role": "assistant", "content": _string(answer[1], answer[0], faults)},
    ]
    if isinstance(system, str) and system.strip():
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _alpaca(row: Row, faults: Faults) -> Parsed:
    """instruction, and input below it if there is one → user; output → assistant; history comes before."""
    if any([_missing(row, field, faults) for field in ("instruction", "output")]):
        return None, None, None
    question, extra = row["instruction"], row.get("input")
    if isinstance(extra, str) and extra.strip() and isinstance(question, str):
        question = f"{question}\n\n{extra}"
    elif extra is not None and not isinstance(extra, str):
        faults.append(Fault("non_string_content", "input", f"not text: {brief(extra)}"))
    messages = _pair(row.get("system"), ("instruction", question), ("output", row["output"]), faults)
    earlier = row.get("history") or []
    earlier = json.loads(earlier) if isinstance(earlier, str) and earlier.lstrip()[:1] == "[" else earlier
    for index, pair in enumerate(earlier if isinstance(earlier, list) else []):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            faults.append(Fault("not_a_message", f"history[{index}]", f"not a question and its answer: {brief(pair)}"))
            continue
        turns = _pair(None, (f"history[{index}][0]", pair[0]), (f"history[{index}][1]", pair[1]), faults)
        messages[-2:-2] = turns
    if not faults:
        check_order(messages, "history", faults)
    return messages, None, None
