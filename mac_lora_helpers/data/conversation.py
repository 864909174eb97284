"""Checks of one conversation, and its messages in the one form that everything later uses."""

from __future__ import annotations

import json
import re
from typing import Any

from mac_lora_helpers.data.problems import Fault, Faults, brief
from mac_lora_helpers.data.readers import python_literal

ROLES = ("system", "developer", "user", "assistant", "tool")
#: Names that other programs give to who speaks → roles.
_SPEAKERS = {role: role for role in ROLES} | {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant", "model": "assistant",
    "bot": "assistant", "ai": "assistant", "observation": "tool", "function_response": "tool", "function": "tool", "ipython": "tool",
    "function_call": "assistant",
}  # fmt: skip
_REASONING = ("reasoning_content", "reasoning", "thinking")
#: What marks a turn as trained or not, in the words of different programs.
_WEIGHTS = ("weight", "train", "loss", "trainable", "loss_weight", "loss_mask")
_USED = {"role", "from", "content", "value", "name", "tool_calls", "tool_call_id", "function_call", *_REASONING, *_WEIGHTS}
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
Message = dict[str, Any]


def read_messages(raw: Any, field: str, faults: Faults, unused: set[str] | None = None) -> list[Message]:
    """A list of messages with role, content and what else templates read.

    Every problem is added to ``faults``, with the field it stands in (``messages[2].content``); keys of messages that
    nothing reads are added to ``unused``.
    """
    raw = from_json(raw)
    if not isinstance(raw, list):
        faults.append(Fault("not_a_list", field, f"not a list of messages: {brief(raw)}"))
        return []
    if raw and all(isinstance(item, str) for item in raw):  # LIMA's way: the speakers take turns
        raw = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(raw)]
    if raw and _empty_system(raw[0]) and len(raw) > 1:
        faults.append(Fault("empty_system", f"{field}[0]", "an empty system turn was left out"))
        raw = raw[1:]
    if not raw:
        faults.append(Fault("empty_messages", field, "the list of messages is empty"))
    return [_read_message(item, f"{field}[{index}]", faults, unused) for index, item in enumerate(raw)]


def from_json(value: Any) -> Any:
    """A list or object that stands there as JSON text (or as Python prints it), parsed; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        literal = python_literal(value, (list, dict))  # type: ignore[arg-type]
        return value if literal is None else literal


def _empty_system(item: Any) -> bool:
    """Many data sets give every row a system turn, empty where there is nothing to say."""
    return isinstance(item, dict) and item.get("role", item.get("from")) == "system" and not item.get("content", item.get("value"))


def _read_message(item: Any, field: str, faults: Faults, unused: set[str] | None) -> Message:
    if type(item) is not dict:
        faults.append(Fault("not_a_message", field, f"not a message: {brief(item)}"))
        return {"role": "", "content": ""}
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if len(item) == 2 and role in ROLES and type(content) is str and content and not content.isspace():
        return {"role": role, "content": content}  # nearly every message of most files
    if unused is not None:
        unused.update(f"{field.split('[')[0]}[].{key}" for key, value in item.items() if key not in _USED and value not in (None, "", []))
    message: Message = {"role": _role(role, field, faults), "content": content}
    message |= {key: item[key] for key in ("name", "tool_call_id") if item.get(key) is not None}
    if reasoning := next((item[key] for key in _REASONING if isinstance(item.get(key), str) and item[key].strip()), ""):
        message["reasoning_content"] = reasoning
    calls = item.get("tool_calls") or item.get("function_call")
    if role == "function_call":
        calls, message["content"] = content, None
    if isinstance(content, list):
        calls = [*(calls or []), *_join_parts(message, field, faults)]
    if calls:
        message["tool_calls"] = _tool_calls(calls, f"{field}.tool_calls", faults)
    _weight(item, message, field, faults)
    if type(message["content"]) is not str or not message["content"].strip():
        there = "content" in item or "value" in item
        message["content"] = _unusual_content(message, there, f"{field}.content", faults)
    return message


def _role(role: Any, field: str, faults: Faults) -> str:
    if role is None or role == "":
        faults.append(Fault("missing_role", f"{field}.role", "the message does not say who speaks"))
    elif not isinstance(role, str) or role.lower() not in _SPEAKERS:
        faults.append(Fault("unknown_role", f"{field}.role", f"unknown role {brief(role)!r}"))
    return _SPEAKERS.get(str(role).lower(), "")


def _weight(item: dict[str, Any], message: Message, field: str, faults: Faults) -> None:
    """``weight: 0`` where a mark of any name says that the turn is not trained."""
    for key in (key for key in _WEIGHTS if item.get(key) is not None):
        value = item[key]
        text = str(value).strip().lower()
        if text not in ("0", "1", "true", "false", "0.0", "1.0"):
            faults.append(Fault("bad_weight", f"{field}.{key}", f"neither 0 nor 1: {brief(value)}"))
        elif text in ("0", "false", "0.0") and message["role"] == "assistant":
            message["weight"] = 0
        elif text in ("1", "true", "1.0") and message["role"] != "assistant":
            faults.append(Fault("marked_prompt", f"{field}.{key}", f"a {message['role']} turn is marked to be trained"))


def _unusual_content(message: Message, there: bool, field: str, faults: Faults) -> str:
    """Content that is no plain text: nothing beside a tool call, or a problem."""
    content = message["content"]
    if content is None or isinstance(content, str):
        if "tool_calls" in message or (message["role"] == "tool" and content is not None):
            return content or ""
        kind = "empty_content" if isinstance(content, str) else "missing_content"
        what = "the content is empty" if isinstance(content, str) else "the content is null" if there else "the message has no content"
        faults.append(Fault(kind, field, what))
    elif message["role"] == "tool" and isinstance(content, (dict, list)):
        return json.dumps(content, ensure_ascii=False)
    else:
        faults.append(Fault("non_string_content", field, f"the content is not text: {brief(content)}"))
    return ""


def _join_parts(message: Message, field: str, faults: Faults) -> list[Any]:
    """Joins the text parts into the content, keeps reasoning apart, and returns the parts that are tool calls."""
    texts, thoughts, calls = [], [], []
    if message["role"] == "tool" and not all(isinstance(part, dict) and "type" in part for part in message["content"]):
        return []  # a tool may answer with any JSON
    for index, part in enumerate(message["content"]):
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type", "text") if isinstance(part, dict) else ""
        text = next((part[key] for key in ("text", "value", kind, "content") if part.get(key) is not None), None) if kind else None
        if kind in ("tool_call", "tool_use", "function_call"):
            calls.append(part.get("value") or {"name": part.get("name"), "arguments": part.get("input", part.get("arguments", {}))})
        elif kind in ("text", "input_text", "output_text", "reasoning", "thinking") and isinstance(text, str):
            (thoughts if kind in ("reasoning", "thinking") else texts).append(text)
        else:
            faults.append(Fault("not_text", f"{field}.content[{index}]", f"not text: a part of type {brief(kind or part)!r}"))
    faults.append(Fault("content_parts", f"{field}.content", f"{len(message['content'])} parts joined"))
    left_out = any(fault.kind == "not_text" and fault.field.startswith(field) for fault in faults)
    message["content"] = "\n".join(texts) or (None if calls else "…" if left_out else "")
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return calls


def _tool_calls(raw: Any, field: str, faults: Faults) -> list[dict[str, Any]]:
    """Tool calls as ``{"type": "function", "function": {"name", "arguments"}}``, arguments as an object."""
    calls = from_json(raw)
    result = []
    for index, call in enumerate(calls if isinstance(calls, list) else [calls]):
        call = from_json(call)
        inner = call.get("function", call) if isinstance(call, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        arguments = from_json(inner.get("arguments", {})) if isinstance(inner, dict) else None
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            faults.append(Fault("bad_tool_call", f"{field}[{index}]", f"not a tool call: {brief(call)}"))
            continue
        known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        result.append({**known, "type": "function", "function": {"name": name, "arguments": _in_order(arguments)}})
    return result


def read_tools(raw: Any, faults: Faults) -> list[dict[str, Any]] | None:
    """The row's tools: a list of function schemas, or its JSON text; bare functions get the form that templates expect."""
    if raw is None or raw == "" or raw == []:
        return None
    tools = from_json(raw)
    tools = [from_json(tool) for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        faults.append(Fault("bad_tools", "tools", f"not a list of function schemas: {brief(raw)}"))
        return None
    bare = [isinstance(tool.get("name"), str) and "function" not in tool for tool in tools]
    tools = [_properties_in_order(tool) for tool in tools]
    return [{"type": "function", "function": tool} if is_bare else tool for tool, is_bare in zip(tools, bare, strict=True)]


def _in_order(value: Any) -> Any:
    """Keys in alphabetical order: Arrow files do not keep a row's own, and equal rows shall give equal tokens."""
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value)}
    return [_in_order(item) for item in value] if isinstance(value, list) else value


def _properties_in_order(value: Any) -> Any:
    """The same for the parameters that a schema names; the schema's own words keep their places."""
    if isinstance(value, list):
        return [_properties_in_order(item) for item in value]
    if not isinstance(value, dict):
        return value
    sort = {key: sorted(item) for key, item in value.items() if key == "properties" and isinstance(item, dict)}
    return {
        key: {name: _properties_in_order(item[name]) for name in sort[key]} if key in sort else _properties_in_order(item)
        for key, item in value.items()
    }


def check_order(messages: list[Message], field: str, faults: Faults) -> None:
    """Who may speak after whom; also leaves out turns after the last answer."""
    for index, message in enumerate(messages):
        if fault := _order_fault(message, index, messages):
            faults.append(Fault(fault[0], f"{field}[{index}].role", fault[1]))
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    trained = [index for index in answers if messages[index].get("weight") != 0]
    if not trained:
        greeting = bool(answers) and is_greeting(messages, answers[-1])
        kind = "assistant_first" if greeting else "nothing_trained" if answers else "no_assistant"
        faults.append(Fault(kind, field, _NOTHING[kind]))
    elif trained[-1] + 1 < len(messages):
        faults.append(Fault("unanswered_turn", f"{field}[{len(messages) - 1}]", "no answer that is trained follows this turn"))
        del messages[trained[-1] + 1 :]


_NOTHING = {
    "assistant_first": "the assistant speaks before any user turn",
    "nothing_trained": "every answer is marked as not trained",
    "no_assistant": "no assistant turn: nothing to train on",
}


def _order_fault(message: Message, index: int, messages: list[Message]) -> tuple[str, str] | None:
    role, before = message["role"], messages[index - 1]["role"] if index else ""
    if role in ("system", "developer") and index:
        return "system_later", "a system turn in the middle of the conversation"
    if role == "assistant" and is_greeting(messages, index):
        message["weight"] = 0
        return "greeting", "the assistant speaks before any user turn"
    if role == before == "assistant":
        return "same_role_twice", "two assistant turns in a row"
    if role == before == "user":
        return "two_user_turns", "two user turns in a row"
    if role == "tool" and before != "tool" and not (before == "assistant" and messages[index - 1].get("tool_calls")):
        return "tool_without_call", "a tool's answer without an assistant's tool call before it"
    return None


def is_greeting(messages: list[Message], index: int) -> bool:
    """Whether an assistant's turn stands before anybody asked."""
    return index == next((at for at, message in enumerate(messages) if message["role"] not in ("system", "developer")), -1)


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, the rest) of an answer that begins with ``<think>…</think>``; no thinking: ("", text)."""
    found = _THINK.match(text)
    if not found and "</think>" in text and "<think>" not in text:  # the prompt opened it already
        before, _, rest = text.partition("</think>")
        return before.strip(), rest.lstrip("\n")
    return (found[1].strip(), text[found.end() :]) if found else ("", text)
