"""Checks of one conversation, and its messages in the one form that everything later uses."""

from __future__ import annotations

import json
from typing import Any

from mac_lora_helpers.data.problems import Fault, brief

ROLES = ("system", "developer", "user", "assistant", "tool")
#: Message keys that chat templates read; others are left out.
_EXTRA = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
Message = dict[str, Any]
Faults = list[Fault]


def read_messages(raw: Any, field: str, faults: Faults) -> list[Message]:
    """A list of messages with role, content and what else templates read.

    Every problem is added to ``faults``, with the field it stands in (``messages[2].content``).
    """
    if isinstance(raw, str) and raw.lstrip()[:1] == "[":
        raw = _from_json(raw)
    if not isinstance(raw, list):
        faults.append(Fault("not_a_list", field, f"not a list of messages: {brief(raw)}"))
        return []
    if not raw:
        faults.append(Fault("empty_messages", field, "the list of messages is empty"))
        return []
    if _empty_system(raw[0]) and len(raw) > 1:
        faults.append(Fault("empty_system", f"{field}[0]", "an empty system turn was left out"))
        raw = raw[1:]
    before = len(faults)
    messages = [_read_message(item, f"{field}[{index}]", faults) for index, item in enumerate(raw)]
    if len(faults) == before or all(fault.kind == "content_parts" for fault in faults[before:]):
        check_order(messages, field, faults)
    return messages


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _empty_system(item: Any) -> bool:
    """Many data sets give every row a system turn, empty where there is nothing to say."""
    return isinstance(item, dict) and item.get("role") == "system" and item.get("content") in ("", None)


def _read_message(item: Any, field: str, faults: Faults) -> Message:
    if type(item) is not dict:
        faults.append(Fault("not_a_message", field, f"not a message: {brief(item)}"))
        return {}
    role, content = item.get("role"), item.get("content")
    if role not in ROLES if isinstance(role, str) else True:
        _bad_role(role, field, faults)
    message = {"role": role, "content": content}
    if len(item) > 2 or content is None:
        for key in _EXTRA:
            if item.get(key) is not None:
                message[key] = item[key]
        if message.get("tool_calls"):
            message["tool_calls"] = _tool_calls(message["tool_calls"], f"{field}.tool_calls", faults)
        elif "tool_calls" in message:
            del message["tool_calls"]
    if type(content) is not str or not content or content.isspace():
        message["content"] = _unusual_content(message, "content" in item, f"{field}.content", faults)
    return message


def _bad_role(role: Any, field: str, faults: Faults) -> None:
    if role is None or role == "":
        faults.append(Fault("missing_role", f"{field}.role", "the message has no role"))
    else:
        faults.append(Fault("unknown_role", f"{field}.role", f"unknown role {brief(role)!r}"))


def _unusual_content(message: Message, there: bool, field: str, faults: Faults) -> str:
    """Content that is no plain text: joined text parts, nothing beside a tool call, or a problem."""
    content = message["content"]
    if content is None or isinstance(content, str):
        if "tool_calls" in message or (message["role"] == "tool" and content is not None):
            return content or ""
        kind = "empty_content" if isinstance(content, str) else "missing_content"
        what = "the content is empty" if isinstance(content, str) else "the content is null" if there else "the message has no content"
        faults.append(Fault(kind, field, what))
        return ""
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        faults.append(Fault("content_parts", field, f"{len(content)} text parts joined"))
        return "\n".join(part["text"] for part in content)
    faults.append(Fault("non_string_content", field, f"the content is not text: {brief(content)}"))
    return ""


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str) and bool(part["text"].strip())
    )


def _tool_calls(raw: Any, field: str, faults: Faults) -> list[dict[str, Any]]:
    """Tool calls as ``{"type": "function", "function": {"name", "arguments"}}``, arguments as an object."""
    calls = _from_json(raw) if isinstance(raw, str) else raw
    result = []
    for index, call in enumerate(calls if isinstance(calls, list) else [calls]):
        inner = call.get("function", call) if isinstance(call, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        arguments = inner.get("arguments", {}) if isinstance(inner, dict) else None
        arguments = _from_json(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            faults.append(Fault("bad_tool_call", f"{field}[{index}]", f"not a tool call: {brief(call)}"))
            continue
        known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        result.append({**known, "type": "function", "function": {"name": name, "arguments": _no_nulls(arguments)}})
    return result


def _no_nulls(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arrow files fill keys that other rows have with null; a call never passed them."""
    return {key: value for key, value in arguments.items() if value is not None}


def read_tools(raw: Any, faults: Faults) -> list[dict[str, Any]] | None:
    """The row's tools: a list of function schemas, or its JSON text."""
    if raw is None or raw == "" or raw == []:
        return None
    tools = _from_json(raw) if isinstance(raw, str) else raw
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        faults.append(Fault("bad_tools", "tools", f"not a list of function schemas: {brief(raw)}"))
        return None
    return tools


def check_order(messages: list[Message], field: str, faults: Faults) -> None:
    """Who may speak after whom; also leaves out turns after the last answer."""
    before = ""
    for index, message in enumerate(messages):
        role = message["role"]
        fault = _order_fault(role, before, index, messages)
        if fault:
            faults.append(Fault(fault[0], f"{field}[{index}].role", fault[1]))
        before = role
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        faults.append(Fault("no_assistant", field, "no assistant turn: nothing to train on"))
    elif answers[-1] + 1 < len(messages):
        faults.append(Fault("unanswered_turn", f"{field}[{len(messages) - 1}]", "no answer follows this turn"))
        del messages[answers[-1] + 1 :]


def _order_fault(role: str, before: str, index: int, messages: list[Message]) -> tuple[str, str] | None:
    if role in ("system", "developer"):
        return ("system_not_first", "a system turn in the middle of the conversation") if index else None
    if role == "assistant" and index == (messages[0]["role"] in ("system", "developer")):
        return "assistant_first", "the assistant speaks before any user turn"
    if role == before and role != "tool":
        return "same_role_twice", f"two {role} turns in a row"
    if role == "tool" and before != "tool" and not (before == "assistant" and messages[index - 1].get("tool_calls")):
        return "tool_without_call", "a tool's answer without an assistant's tool call before it"
    return None
