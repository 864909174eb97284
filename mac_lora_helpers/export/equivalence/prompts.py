"""Prompts of the check: held-out questions, and a few chats with a system turn, several turns and odd text."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import InputError

#: Held-out rows that are asked, at most, and chats made of them.
LIMIT, CHATS = 24, 3


@dataclass
class Prompt:
    """One prompt and the adapter's answer to it.

    Args:
        ids: token ids that the trained model sees. messages: the chat, or None for plain text. text: the plain text, or empty.
        tools: tool definitions of the chat, if any. today: the ids with today's date, where the template writes one.
        answer: the reference's greedy ids, end token included if it came. closed: whether it came.
        logprobs: the reference's, one per id.
    """

    ids: list[int]
    messages: list[dict[str, Any]] | None = None
    text: str = ""
    tools: list[Any] | None = None
    answer: list[int] = field(default_factory=list)
    closed: bool = False
    today: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def held_out(run: RunDir, tokenizer: Any, longest: int) -> tuple[list[Prompt], int]:
    """The prompts, questions and odd chats mixed so that the first few show both; and how many there could be.

    Args:
        longest: prompts with more tokens are left out.

    Raises:
        InputError: no held-out row gives a prompt.
    """
    rows = run.read_lines("test")
    chats = [row["messages"] for row in rows if "messages" in row]
    step = max(1, len(rows) // LIMIT)
    found = [_of_row(row, tokenizer) for row in rows[::step][:LIMIT]]
    found[1:1] = [_chat(messages, tokenizer) for messages in _mixed(chats)] if chats else []
    usable = [prompt for prompt in found if prompt is not None and 0 < len(prompt.ids) <= longest]
    if not usable:
        what = "no held-out row gives a prompt for the equivalence check"
        raise InputError(what, where="data/test.jsonl", fix="give the test split more rows")
    return usable, len(rows) + len(usable) - min(len(usable), len(rows[::step][:LIMIT]))


def render(tokenizer: Any, prompt: Prompt) -> list[int]:
    """A tokenizer's own ids of a prompt: the chat with its generation prompt, or the plain text."""
    from mac_lora_helpers.data import render_prompt

    if prompt.messages is None:
        return list(tokenizer(prompt.text).input_ids)
    return list(render_prompt(tokenizer, prompt.messages, **({"tools": prompt.tools} if prompt.tools else {})))


def with_todays_date(tokenizer: Any, prompts: list[Prompt]) -> None:
    """Training lets a template's clock stand still; an engine's own writes today's date."""
    if "strftime_now" not in str(tokenizer.chat_template):
        return
    kept = getattr(tokenizer, "chat_template_arguments", {})
    tokenizer.chat_template_arguments = {**kept, "today": datetime.date.today().isoformat()}
    try:
        for prompt in prompts:
            prompt.today = render(tokenizer, prompt)
    finally:
        tokenizer.chat_template_arguments = kept


def _of_row(row: dict[str, Any], tokenizer: Any) -> Prompt | None:
    """A conversation up to its last answer, or the first half of a text, cut at a space."""
    if "messages" not in row:
        text = row["text"]
        cut = text.rfind(" ", 0, max(2, len(text) // 2))
        prompt = Prompt([], text=text[: cut if cut > 0 else len(text)])
        prompt.ids = render(tokenizer, prompt)
        return prompt
    messages = row["messages"]
    last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    return _chat(messages[:last], tokenizer, row.get("tools"))


def _chat(messages: list[dict[str, Any]], tokenizer: Any, tools: list[Any] | None = None) -> Prompt | None:
    """None where the template refuses the chat (some know no system turn)."""
    from jinja2.exceptions import TemplateError

    if not messages:
        return None
    prompt = Prompt([], messages, tools=tools)
    try:
        prompt.ids = render(tokenizer, prompt)
    except (TemplateError, InputError):
        return None
    return prompt


def _mixed(conversations: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """A chat with a system turn and several turns, one with several turns, one with text that tokenizers trip over."""
    plain = [[turn for turn in chat if turn["role"] in ("user", "assistant") and turn.get("content")] for chat in conversations]
    plain = [chat[:2] for chat in plain if [turn["role"] for turn in chat[:2]] == ["user", "assistant"]]
    made: list[list[dict[str, Any]]] = []
    if len(plain) > 1:
        system = {"role": "system", "content": "You are a careful assistant.\nAnswer in one sentence."}
        made = [[system, *plain[0], plain[1][0]], [*plain[0], plain[1][0]]]
    odd = "  Größe: 3,5 km²?\n\n\tI'm sure it's 北京 🙂 – \"isn't it\"…  "
    return [*made, [{"role": "user", "content": odd}]][:CHATS]
