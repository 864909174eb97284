"""Conversations → token ids and the spans to train on.

The fast way encodes each whole conversation once, in batches, and traces the answers' characters to
tokens. A row for which that would differ from what inference sees at some turn (a template that
renders history differently, white space that merges across the boundary) is encoded the exact way:
one row a turn, its inference prompt followed by its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mac_lora_helpers.data.conversation import Message, is_greeting
from mac_lora_helpers.data.problems import Fault
from mac_lora_helpers.data.template import ChatTemplate, TemplateRefuses
from mac_lora_helpers.data.tokenizer import added_tokens, backend


class Plan(NamedTuple):
    """A conversation as text, and the half-open character spans of its answers."""

    text: str
    spans: list[tuple[int, int]]


class Row(NamedTuple):
    """Token ids, the half-open token spans of the answers with their end tokens, and the plan that they come from.

    ``skipped``: the spans of answers that are marked as not trained.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    plan: Plan = Plan("", [])
    skipped: tuple[tuple[int, int], ...] = ()


class RowFault(Exception):
    """A conversation that cannot be turned into tokens; ``fault`` says why."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault)


class Masker:
    """Turns conversations into rows with one tokenizer and one template."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        self.template = template
        self.rust = backend(tokenizer)
        self.added = added_tokens(tokenizer)
        self.eos = tokenizer.eos_token or ""
        self._headers: dict[str, list[int]] = {}

    def plans(self, conversations: Sequence[list[Message]], tools: Any = None) -> list[Plan | None]:
        """A plan for each conversation; None where the exact way is needed."""
        turns = [answer_turns(messages) for messages in conversations]
        cuts = [messages[:turn] for messages, found in zip(conversations, turns, strict=True) for turn in found]
        texts = self.template.render(conversations, tools)
        prompts = iter(self.template.render(cuts, tools, prompt=True))
        return [
            self._plan(messages, tools, text, found, [next(prompts) for _ in found])
            for messages, text, found in zip(conversations, texts, turns, strict=True)
        ]

    def _plan(self, messages: list[Message], tools: Any, text: str, turns: list[int], prompts: list[str]) -> Plan | None:
        if not self.template.end and len(turns) > 1:  # nothing would end the earlier answers: a row each, with the EOS
            return None
        spans = []
        for turn, prompt in zip(turns, prompts, strict=True):
            start = len(prompt)
            end = self._answer_end(messages, turn, tools, text, start) if text.startswith(prompt) else -1
            if end < 0:
                return None
            spans.append((start, end))
        if not self.template.end:  # no token ends a turn: the last answer gets the EOS that stops generation
            start, end = spans[-1]
            text, spans[-1] = text[:end] + self.eos, (start, end + len(self.eos))
        return Plan(text, spans)

    def _answer_end(self, messages: list[Message], turn: int, tools: Any, text: str, start: int) -> int:
        """Where the answer's end token ends; -1 if the text is not what the template writes up to there."""
        template, content, last = self.template, messages[turn]["content"], turn == len(messages) - 1
        begin = start + len(template.lead)
        if len(messages[turn]) == 2 and text.startswith(template.lead, start):
            for body in (content, content.strip()):
                after = begin + len(body)
                if text.startswith(body, begin) and text.startswith(template.tail, after):
                    return after + len(template.end) if not last or len(text) == after + len(template.tail) else -1
        upto = template.render([messages[: turn + 1]], tools)[0]
        if not text.startswith(upto) or (last and text != upto):
            return -1
        return start + len(self.trained_part(upto[start:]))

    def trained_part(self, answer: str) -> str:
        """An answer as rendered, without what follows its end token."""
        stripped = answer.rstrip()
        end = self.template.end.strip()
        if end and stripped.endswith(end):
            return stripped
        return answer.removesuffix(self.template.tail) if not end else answer

    def trace(self, plan: Plan, encoding: Any) -> Row | None:
        """The plan's spans as token spans; None if a boundary is not where inference has it."""
        ids = encoding.ids
        spans = []
        for start, end in plan.spans:
            first = _token_at(encoding, plan.text, start, end)
            last = encoding.char_to_token(end - 1)
            if first is None or last is None or not self._clean(plan.text, encoding, ids, start, first):
                return None
            spans.append((first, last + 1))
        return Row(ids, spans, plan)

    def _clean(self, text: str, encoding: Any, ids: list[int], start: int, first: int) -> bool:
        """Whether the prompt alone gives the same tokens up to ``first``.

        Added tokens are cut out before anything else, so only the piece from the last one on can
        differ; it is the same few characters in every row and is encoded once.
        """
        index = first - 1
        while index >= 0 and ids[index] not in self.added:
            index -= 1
        begin = encoding.token_to_chars(index)[0] if index >= 0 else 0
        header = text[begin:start]
        if header not in self._headers:
            if len(self._headers) > 1000:
                self._headers.clear()
            self._headers[header] = self.rust.encode(header, add_special_tokens=False).ids
        return ids[max(index, 0) : first] == self._headers[header]

    def exact(self, messages: list[Message], tools: Any = None) -> list[Row]:
        """One row for each turn that is trained; see ``exact_turn``."""
        return [self.exact_turn(messages[: turn + 1], tools) for turn in answer_turns(messages) if is_trained(messages[turn])]

    def exact_turn(self, messages: list[Message], tools: Any) -> Row:
        """The last turn: the ids that inference has before it, then the answer.

        Raises:
            RowFault: the template changes the turn itself, so no mask would be right.
        """
        prompt = self.template.render([messages[:-1]], tools, prompt=True)[0]
        whole = self.template.render([messages], tools)[0]
        if not whole.startswith(prompt):
            what = "the template renders the prompt differently once answered"
            raise RowFault(Fault("template_changes_history", f"messages[{len(messages) - 1}]", what))
        answer = self.trained_part(whole[len(prompt) :])
        answer += "" if self.template.end else self.eos
        before = self.rust.encode(prompt, add_special_tokens=False).ids
        joined = self.rust.encode(prompt + answer, add_special_tokens=False).ids
        if joined[: len(before)] != before:
            joined = before + self.rust.encode(answer, add_special_tokens=False).ids
        plan = Plan(prompt + answer, [(len(prompt), len(prompt) + len(answer))])
        return Row(joined, [(len(before), len(joined))], plan)


def answer_turns(messages: list[Message]) -> list[int]:
    """Indices of the assistant turns; a greeting that nobody asked for is none."""
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return turns[1:] if turns and is_greeting(messages, turns[0]) else turns


def is_trained(message: Message) -> bool:
    """Whether an answer is trained, as its mark says."""
    return message.get("weight") != 0


def _token_at(encoding: Any, text: str, start: int, end: int) -> int | None:
    """The token that holds the character, or the next one after white space that offsets leave out."""
    while start < end:
        found = encoding.char_to_token(start)
        if found is not None or not text[start].isspace():
            return found
        start += 1
    return None


__all__ = ["ChatTemplate", "Masker", "Plan", "Row", "RowFault", "TemplateRefuses", "answer_turns", "is_trained"]
