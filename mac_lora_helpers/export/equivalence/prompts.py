"""Prompts of the equivalence check: held-out questions, and chats with a system turn and several turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.equivalence.engines import Prompt

LIMIT = 50
_CHATS = 6


def prompts(run: RunDir, tokenizer: Any, longest: int) -> list[Prompt]:
    """At most 50 held-out prompts and a few chats made of them.

    Args:
        longest: prompts with more tokens are left out.

    Raises:
        InputError: no held-out row gives a prompt.
    """
    rows = run.read_lines("test")
    if rows and "messages" not in rows[0]:
        found = [_plain(row["text"], tokenizer) for row in rows[:LIMIT]]
    else:
        found = [_question(row, tokenizer) for row in rows[:LIMIT]]
        found += [_chat(messages, tokenizer) for messages in _mixed([row["messages"] for row in rows])]
    usable = [prompt for prompt in found if prompt is not None and 0 < len(prompt.ids) <= longest]
    if not usable:
        what = "no held-out row gives a prompt for the equivalence check"
        raise InputError(what, where="data/test.jsonl", fix="give the test split more rows")
    return usable


def render(tokenizer: Any, prompt: Prompt) -> list[int]:
    """A tokenizer's own ids of a prompt: the chat with its generation prompt, or the plain text."""
    from mac_lora_helpers.data import render_prompt

    if prompt.messages is None:
        return list(tokenizer(prompt.text).input_ids)
    return list(render_prompt(tokenizer, prompt.messages, **({"tools": prompt.tools} if prompt.tools else {})))


def _question(row: dict[str, Any], tokenizer: Any) -> Prompt | None:
    """The conversation up to its last answer, which is what is expected."""
    messages = row["messages"]
    last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    return _chat(messages[:last], tokenizer, tools=row.get("tools"), whole=messages[: last + 1])


def _chat(messages: list[dict], tokenizer: Any, tools: list | None = None, whole: list[dict] | None = None) -> Prompt | None:
    """None where the template refuses the chat (some know no system turn)."""
    from jinja2.exceptions import TemplateError

    if not messages:
        return None
    prompt = Prompt((), messages, tools=tools)
    try:
        ids = render(tokenizer, prompt)
        full = _whole(tokenizer, whole, tools) if whole and len(whole) > len(messages) else []
    except (TemplateError, InputError):
        return None
    expected = full[len(ids) :] if full[: len(ids)] == ids else []
    return Prompt(tuple(ids), messages, tools=tools, expected=_up_to_end(expected, tokenizer.eos_token_id))


def _whole(tokenizer: Any, messages: list[dict], tools: list | None) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True)["input_ids"])


def _up_to_end(ids: Sequence[int], end: int | None) -> tuple[int, ...]:
    return tuple(ids[: ids.index(end) + 1]) if end in ids else tuple(ids)


def _plain(text: str, tokenizer: Any) -> Prompt | None:
    """The first half of a text, cut at a space; its second half is what is expected."""
    cut = text.rfind(" ", 0, max(2, len(text) // 2))
    head = text[: cut if cut > 0 else len(text)]
    ids, full = list(tokenizer(head).input_ids), list(tokenizer(text).input_ids)
    expected = full[len(ids) :] if full[: len(ids)] == ids else []
    return Prompt(tuple(ids), None, head, expected=tuple(expected)) if ids else None


def _mixed(conversations: list[list[dict]]) -> list[list[dict]]:
    """Chats with a system turn, with several turns, with both, and with text that tokenizers trip over."""
    plain = [[turn for turn in chat if turn["role"] in ("user", "assistant") and turn.get("content")] for chat in conversations]
    plain = [chat[:2] for chat in plain if len(chat) >= 2 and chat[0]["role"] == "user" and chat[1]["role"] == "assistant"]
    made = []
    for index in range(min(_CHATS // 2, len(plain) // 3)):
        first, second, third = plain[3 * index : 3 * index + 3]
        system = {"role": "system", "content": "You are a careful assistant.\nAnswer in one sentence."}
        made += [[system, *first, *second, third[0]], [*first, second[0]]]
    odd = "  Größe: 3,5 km²?\n\n\tI'm sure it's 北京 🙂 – \"isn't it\"…  "
    return [*made, [{"role": "user", "content": odd}]]
