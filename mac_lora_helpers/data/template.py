"""The chat template: conversations rendered as inference renders them, and where the answers stand.

Masks come from generation markers (the template's own, or TRL's training template for a known
family) or from prefix rendering; either way each answer must start exactly where the inference
prompt of its turn ends, and each row is checked for it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mac_lora_helpers.data.conversation import Message
from mac_lora_helpers.data.problems import brief
from mac_lora_helpers.data.tokenizer import added_tokens
from mac_lora_helpers.errors import InputError

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER, _SYSTEM = "Question5127", "Answer7319", "System2846"


class TemplateRefuses(Exception):
    """The template raised on a conversation; the message is the template's."""


class ChatTemplate:
    """One chat template of a tokenizer.

    Attributes:
        name: the family's name if TRL knows it, else 'own'.
        masking: 'generation markers', 'TRL training template' or 'prefix rendering'.
        end: what ends a turn, such as ``<|im_end|>``; empty if the template writes no token there.
        tail: everything the template writes after an answer's text.
        lead: what it writes between the inference prompt and the answer (empty thinking tags).

    Raises:
        InputError: no template, or one that hides where an answer starts.
    """

    def __init__(self, tokenizer: Any, tools: bool = False) -> None:
        self.text = template_text(tokenizer, tools)
        self.specials = tokenizer.special_tokens_map
        self.name, self.marked = _family(self.text)
        markers = _MARKER.search(self.text) is not None
        self.masking = "generation markers" if markers else "TRL training template" if self.marked else "prefix rendering"
        self.marked = self.text if markers else self.marked
        self.lead, self.tail = self._probe()
        self.end = self._end_marker(added_tokens(tokenizer).values())

    def render(self, conversations: Sequence[list[Message]], tools: Any = None, prompt: bool = False) -> list[str]:
        """The conversations as text; ``prompt`` adds what precedes the next answer.

        Raises:
            TemplateRefuses: the template raised.
        """
        return self._render(self.text, conversations, tools, prompt, False)[0]

    def render_marked(self, conversations: Sequence[list[Message]], tools: Any = None) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """The conversations through the marked template, with the character spans of the answers."""
        return self._render(self.marked, conversations, tools, False, True)

    def _render(self, text: str, conversations: Any, tools: Any, prompt: bool, marks: bool) -> tuple[list[str], list[Any]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            return render_jinja_template(
                conversations, tools, None, text, return_assistant_tokens_mask=marks, add_generation_prompt=prompt, **self.specials
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise TemplateRefuses(brief(error, 200)) from None

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
        if _SYSTEM not in other:
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


def _useless(why: str) -> InputError:
    return InputError(
        f"the chat template cannot be used to train on answers: {why}",
        where="the tokenizer's chat_template",
        fix="use a model whose template writes a prompt for the answer, or loss_on=all with text rows",
    )


@lru_cache
def _families() -> dict[str, tuple[str, str]]:
    """Stock template → (family, TRL's training template), read from TRL's files without importing TRL."""
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else Path("/nonexistent")
    found = {}
    for path in sorted(folder.glob("*.jinja")):
        training = path.with_name(f"{path.stem}_training.jinja")
        marked = training.read_text(encoding="utf-8") if training.exists() else ""
        if not path.stem.endswith("_training"):
            found[path.read_text(encoding="utf-8")] = (path.stem, marked)
    return found


def _family(text: str) -> tuple[str, str]:
    return _families().get(text, ("own", ""))


def render_prompt(tokenizer: Any, messages: list[Message], tools: Any = None) -> list[int]:
    """Token ids of the conversation with the generation prompt: what inference sees.

    Raises:
        InputError: no template, or one that refuses this conversation.
    """
    from mac_lora_helpers.data.tokenizer import backend

    template = _cached_template(tokenizer, bool(tools))
    try:
        text = template.render([messages], tools, prompt=True)[0]
    except TemplateRefuses as error:
        raise InputError(
            f"the chat template refuses this conversation: {error}", where="the prompt", fix="change its turns as the message says"
        ) from None
    return backend(tokenizer).encode(text, add_special_tokens=False).ids


def _cached_template(tokenizer: Any, tools: bool) -> ChatTemplate:
    key = template_text(tokenizer, tools), str(tokenizer.special_tokens_map)
    cache = tokenizer.__dict__.setdefault("_mac_lora_templates", {})
    if key not in cache:
        cache[key] = ChatTemplate(tokenizer, tools)
    return cache[key]
