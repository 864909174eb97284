"""What a held-out row expects: the trained span as text, with thinking and calls apart, as answers are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mac_lora_helpers.data.conversation import Message, split_thinking
from mac_lora_helpers.data.masking import Masker, RowFault, answer_turns, is_trained
from mac_lora_helpers.data.template import TemplateRefuses, template_of

#: Calls as Qwen, Hermes and others write them, for models that TRL has no parser for.
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


class Parts(NamedTuple):
    """An answer in parts: what a person means by the answer, the thinking before it, the calls in it."""

    text: str
    thinking: str
    calls: list[dict[str, Any]]

    @property
    def compared(self) -> str:
        """What is compared: the calls (names and arguments, as JSON with sorted keys) where there are any, else the text."""
        return json.dumps(self.calls, sort_keys=True, ensure_ascii=False) if self.calls else self.text


class Expected(NamedTuple):
    """One question of a held-out row: the turn that answers it, the ids that inference sees, the ids that were trained."""

    turn: int
    prompt_ids: list[int]
    answer_ids: list[int]
    parts: Parts


def expected_answers(tokenizer: Any, messages: list[Message], tools: Any = None) -> Iterator[Expected]:
    """Every trained answer of a conversation as the chat template renders it, the last one first; 02 refused rows without one."""
    masker = Masker(tokenizer, template_of(tokenizer, bool(tools)))
    for turn in reversed([turn for turn in answer_turns(messages) if is_trained(messages[turn])]):
        try:
            row = masker.exact_turn(messages[: turn + 1], tools)
        except (TemplateRefuses, RowFault):
            continue
        start = row.spans[0][0]
        yield Expected(turn, row.ids[:start], row.ids[start:], answer_parts(tokenizer, row.ids[start:], row.ids[:start]))


def answer_parts(tokenizer: Any, ids: list[int], prompt_ids: list[int] | None = None) -> Parts:
    """The parts of an answer, generated or expected, from its token ids; a special token is no part of the text."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    thinking, rest = split_thinking(text)
    calls = _calls(tokenizer, ids, prompt_ids or [], rest)
    return Parts(rest, thinking, calls)


def _calls(tokenizer: Any, ids: list[int], prompt_ids: list[int], text: str) -> list[dict[str, Any]]:
    """Calls as [{"name", "arguments"}]: read by TRL's parser of the model's family, else by the commonest marks."""
    if not any(mark in tokenizer.decode(ids) for mark in ("call", '"name"', "to=functions")):
        return []
    found = _parsed(tokenizer, ids, prompt_ids)
    if found is None:
        found = []
        for body in _CALL.findall(text):
            try:
                found.append(json.loads(body))
            except ValueError:
                return []
    inner = [call.get("function", call) for call in found if isinstance(call, dict)]
    return [{"name": call.get("name"), "arguments": call.get("arguments", {})} for call in inner if isinstance(call, dict)]


def _parsed(tokenizer: Any, ids: list[int], prompt_ids: list[int]) -> list[Any] | None:
    """The calls that TRL reads; None where it does not know the family."""
    from trl.chat_template_utils import add_response_schema, parse_response

    known = getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None)
    try:
        if not known:
            add_response_schema(tokenizer)
        return parse_response(tokenizer, ids, prefix=prompt_ids).get("tool_calls") or []
    except Exception:  # an unknown family; or a parser that stumbles over what a model made up
        return None
