"""The chat template: conversations rendered as inference renders them.

Every answer must start exactly where the inference prompt of its turn ends; templates for which that
cannot be are refused. A date that a template writes is pinned, so that equal rows give equal tokens
on any day.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mac_lora_helpers.data.conversation import Message
from mac_lora_helpers.data.problems import brief
from mac_lora_helpers.data.tokenizer import added_tokens, backend
from mac_lora_helpers.errors import InputError

_QUESTION, _ANSWER, _SYSTEM = "Question5127", "Answer7319", "System2846"
#: The date that templates write: the one that Llama 3's own template falls back to.
PINNED_DATE = "2024-07-26"
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
#: Seconds that one rendering of some conversations may take, and characters that it may write for each character of input.
_SECONDS, _GROWTH = 60, 200


class TemplateRefuses(Exception):
    """The template raised on a conversation; the message is the template's."""


class ChatTemplate:
    """One chat template of a tokenizer, with the arguments that ``load_tokenizer`` gave it.

    Attributes:
        text: the template, its date pinned. name: the family's name if TRL knows it, else 'own'.
        date: the pinned date, empty if it writes none. unused: arguments that the template never mentions.
        end: what ends a turn, such as ``<|im_end|>``; empty if the template writes no token there.
        tail: everything the template writes after an answer's text.
        lead: what it writes between the inference prompt and the answer (empty thinking tags).

    Raises:
        InputError: no template, or one that hides where an answer starts.
    """

    def __init__(self, tokenizer: Any, tools: bool = False) -> None:
        own = template_text(tokenizer, tools)
        self.arguments = dict(getattr(tokenizer, "chat_template_arguments", {}))
        self.unused = [name for name in self.arguments if name not in own and name != "today"]
        self.text, self.date = _pinned(own, self.arguments)
        self.specials = tokenizer.special_tokens_map
        self.name = _families().get(own, "own")
        self.lead, self.tail = self._probe()
        self.end = self._end_marker(added_tokens(tokenizer).values())

    @property
    def digest(self) -> str:
        """SHA-256 of the template, and of its arguments if it has any."""
        given = repr(sorted(self.arguments.items())) if self.arguments else ""
        return hashlib.sha256((self.text + given).encode()).hexdigest()

    def render(self, conversations: Sequence[list[Message]], tools: Any = None, prompt: bool = False) -> list[str]:
        """The conversations as text; ``prompt`` adds what precedes the next answer.

        Raises:
            TemplateRefuses: the template raised, or takes too long, or writes too much.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with _within(_SECONDS):
                texts = render_jinja_template(
                    conversations, tools, None, self.text, add_generation_prompt=prompt, **self.specials, **self.arguments
                )[0]
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, TimeoutError) as error:
            raise TemplateRefuses(brief(error, 200) or type(error).__name__) from None
        if sum(map(len, texts)) > 100_000 and sum(map(len, texts)) > _GROWTH * len(str((conversations, tools))) + len(self.text) * len(
            texts
        ):
            raise TemplateRefuses(f"it writes {sum(map(len, texts)):,} characters")
        return texts

    def _probe(self) -> tuple[str, str]:
        """Lead and tail of an answer, from a conversation with known texts."""
        question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
        try:
            bare = self.render([[question]])[0]
            prompt, whole = self.render([[question]], prompt=True)[0], self.render([[question, answer]])[0]
        except TemplateRefuses as error:
            raise _useless(f"it fails on a plain question and answer: {error}") from None
        if whole.count(_ANSWER) != 1 or prompt.count(_QUESTION) != 1:
            raise _useless("it does not write each turn's text once")
        if not whole.startswith(prompt):
            raise _useless("the answer's turn does not start with the prompt that inference uses")
        lead, tail = whole[len(prompt) :].split(_ANSWER)
        if prompt == bare and lead.strip():
            raise _useless(f"it ignores add_generation_prompt, so inference would not write {lead!r} before the answer")
        return lead, tail

    def _end_marker(self, tokens: Any) -> str:
        """The tail up to its first added token, and those that follow it directly; none if the tail has no such token."""
        pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)"
        found = re.search(f"(?:{pattern})+", self.tail)
        return self.tail[: found.end()] if found else ""

    def injected_system(self) -> str:
        """The system prompt that the template writes where a conversation has none."""
        question, system = {"role": "user", "content": _QUESTION}, {"role": "system", "content": _SYSTEM}
        try:
            without, with_system = self.render([[question], [system, question]])
        except TemplateRefuses:
            return ""
        head, other = without.split(_QUESTION)[0], with_system.split(_QUESTION)[0]
        if other.count(_SYSTEM) != 1:
            return ""
        before, after = other.split(_SYSTEM)
        if not head.startswith(before) or after not in head[len(before) :]:
            return ""
        return head[len(before) : head.rindex(after)].strip() if before.strip() else ""


def template_text(tokenizer: Any, tools: bool = False) -> str:
    """The tokenizer's chat template as Jinja source.

    Raises:
        InputError: it has none.
    """
    try:
        return tokenizer.get_chat_template(tools=[{}] if tools else None)
    except ValueError:
        raise InputError(
            "the tokenizer has no chat template, so conversations cannot be written as its model expects them",
            where="parameter model_id",
            fix="use an instruct model, or train on plain text (text_field=text)",
        ) from None


def _pinned(text: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """The template with its clock standing still, and the date that it then writes (``today`` among the arguments sets it)."""
    today = str(arguments.get("today", PINNED_DATE))
    try:
        date = datetime.datetime.fromisoformat(today)
    except ValueError:
        where, fix = "parameter chat_template_kwargs", 'write it as {"today": "2026-01-31"}'
        raise InputError(f"today={brief(today)} is not a date", where=where, fix=fix) from None
    pinned = _CLOCK.sub(lambda call: f"'{date.strftime(call[2])}'", text)
    return pinned, today if pinned != text else ""


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """A limit on the time that Python code may take; only a process's main thread can keep one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it does not come to an end in {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _useless(why: str) -> InputError:
    return InputError(
        f"the chat template cannot be used to train on answers: {why}",
        where="the tokenizer's chat_template",
        fix="use a model whose template writes a prompt for the answer, or loss_on=all with text rows",
    )


@lru_cache
def _families() -> dict[str, str]:
    """Stock template → family, read from TRL's files without importing TRL."""
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else Path("/nonexistent")
    files = (path for path in sorted(folder.glob("*.jinja")) if not path.stem.endswith("_training"))
    return {path.read_text(encoding="utf-8"): path.stem for path in files}


def render_prompt(tokenizer: Any, messages: list[Message], tools: Any = None) -> list[int]:
    """Token ids of the conversation with the generation prompt: what inference sees.

    Raises:
        InputError: no template, or one that refuses this conversation.
    """
    try:
        text = template_of(tokenizer, bool(tools)).render([messages], tools, prompt=True)[0]
    except TemplateRefuses as error:
        raise InputError(
            f"the chat template refuses this conversation: {error}", where="the prompt", fix="change its turns as the message says"
        ) from None
    return backend(tokenizer).encode(text, add_special_tokens=False).ids


def template_of(tokenizer: Any, tools: bool = False) -> ChatTemplate:
    """The tokenizer's chat template, probed once."""
    key = template_text(tokenizer, tools), str(tokenizer.special_tokens_map), str(getattr(tokenizer, "chat_template_arguments", ""))
    cache = tokenizer.__dict__.setdefault("_mac_lora_templates", {})
    if key not in cache:
        cache[key] = ChatTemplate(tokenizer, tools)
    return cache[key]


def template_call(tokenizer: Any, tools: Any = None) -> dict[str, Any]:
    """The arguments with which ``tokenizer.apply_chat_template`` writes what is trained here: its date pinned, thinking as asked."""
    template = template_of(tokenizer, bool(tools))
    return ({"chat_template": template.text} if template.date else {}) | ({"tools": tools} if tools else {}) | template.arguments
