"""What is asked and what is expected: the very tokens that a training trains, and the part of them that a person means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation.trained import Trained

#: How answers are taken apart where TRL does not know the chat template: thinking in tags, calls as Hermes and Qwen write them.
_COMMON = {
    "start_anchor": "\0",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"content": "text"},
    },
}


class Said(NamedTuple):
    """An answer taken apart: ``text`` is what a person means, calls as JSON in it; ``thinking`` is what stood before."""

    text: str
    thinking: str = ""


class Question(NamedTuple):
    """``row``: line of the split, from 0; ``kind``: chat or text; ``ids``: what the model sees; ``answer``: what was to be trained."""

    row: int
    kind: str
    prompt: str
    expected: Said
    ids: list[int]
    answer: list[int]


def read_answer(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int] = ()) -> Said:
    """Takes an answer apart as its chat template writes one: reasoning, calls, content.

    Args:
        ids: the answer, without its end token. prompt: the ids before it; some templates open the thinking there.
    """
    plain = tokenizer.decode(ids, skip_special_tokens=True)
    found = _parsed(tokenizer, list(ids), list(prompt), plain) if tokenizer.chat_template else {"content": plain}
    functions = [call.get("function") for call in found.get("tool_calls") or []]
    if not all(isinstance(function, dict) for function in functions):
        return Said(plain)
    calls = [{name: function.get(name) for name in ("name", "arguments")} for function in functions]
    parts = [found.get("content") or "", json.dumps(calls if calls[1:] else calls[0], sort_keys=True, ensure_ascii=False) if calls else ""]
    return Said("\n".join(part for part in parts if part), found.get("reasoning_content") or "")


def _parsed(tokenizer: Any, ids: list[int], prompt: list[int], plain: str) -> dict[str, Any]:
    """The answer as a message, by the parser of transformers; the plain text where it is none."""
    from trl.chat_template_utils import add_response_schema, parse_response

    if getattr(tokenizer, "response_template", None) is None:
        try:
            add_response_schema(tokenizer)
        except ValueError:
            tokenizer.response_template = _COMMON
    opened = tokenizer.decode(prompt[-16:]).rstrip().endswith("<think>")
    try:
        if tokenizer.response_template is not _COMMON:
            return parse_response(tokenizer, ids, prefix=prompt)
        return tokenizer.parse_response(plain, prefix="\0<think>" if opened else "\0")
    except (ValueError, TypeError, AttributeError):  # a call that is no JSON, or JSON that is no call
        return {"content": plain}


def trained_turn(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> tuple[list[int], list[int]]:
    """The ids before a conversation's last answer, and the answer's as training trains them, its end token among them.

    Without a chat template: the bare texts, a line each, and the EOS.
    """
    from mac_lora_helpers.data.masking import Masker
    from mac_lora_helpers.data.template import template_of

    if not tokenizer.chat_template:
        answer = tokenizer(str(messages[-1]["content"]), add_special_tokens=False)["input_ids"]
        return prompt_ids(tokenizer, messages[:-1]), [*answer, *[tokenizer.eos_token_id] * (tokenizer.eos_token_id is not None)]
    row = Masker(tokenizer, template_of(tokenizer, bool(tools))).exact_turn(list(messages), tools)
    start, end = row.spans[0]
    return row.ids[:start], row.ids[start:end]


def prompt_ids(tokenizer: Any, messages: str | Sequence[Mapping[str, Any]], room: int = 0) -> list[int]:
    """The ids that a model sees before it answers a question or a conversation.

    Args:
        room: tokens that the model can look at; 0: as many as there are.

    Raises:
        InputError: there is nothing to ask, or no room for an answer.
    """
    from mac_lora_helpers import data

    messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    if not any(str(message.get("content") or "").strip() for message in messages):
        raise InputError("there is nothing to ask", where="parameter prompt", fix="write a question into prompt")
    if tokenizer.chat_template:
        ids = list(data.render_prompt(tokenizer, messages))
    else:
        ids = tokenizer("".join(f"{message.get('content') or ''}\n" for message in messages))["input_ids"]
    if room and len(ids) >= room:
        raise InputError(f"the prompt has {len(ids):,} tokens, the model takes {room:,}", where="parameter prompt", fix="shorten it")
    return ids


def questions(trained: Trained, examples: Sequence[Mapping[str, Any]], config: Config) -> list[Question]:
    """What is asked: of more than ``eval_examples`` rows a seeded choice, in a seeded order.

    A row of messages is asked up to its last answer whose prompt fits into ``max_seq_length``. A row of plain text has no
    question: it is continued from its first line (or its first half), to be looked at.

    Raises:
        InputError: no row can be asked.
    """
    chosen = choose(list(enumerate(examples)), config.eval_examples, config.seed)
    asked = [found for row, example in chosen if (found := _question(trained, row, example, config))]
    if not asked:
        raise InputError(
            f"none of {len(chosen)} held-out rows can be asked: no answer in them, or the prompts are longer than max_seq_length",
            where="data/test.jsonl",
            fix=f"use rows with an assistant's answer, or a max_seq_length above {config.max_seq_length}",
        )
    return [asked[index] for index in np.random.default_rng(config.seed).permutation(len(asked))]


def choose(items: Sequence[Any], limit: int, seed: int) -> list[Any]:
    """All items, or a seeded choice of ``limit`` of them, in their order."""
    if len(items) <= limit:
        return list(items)
    picked = np.random.default_rng(seed).choice(len(items), size=limit, replace=False)
    return [items[index] for index in sorted(picked)]


def _question(trained: Trained, row: int, example: Mapping[str, Any], config: Config) -> Question | None:
    if "messages" in example:
        return _chat_question(trained, row, example, min(config.max_seq_length, (trained.context or 10**9) - 1))
    prefix, rest = split_text(str(example.get("text", "")))
    ids = trained.tokenizer(prefix)["input_ids"][: config.max_seq_length] if prefix else []
    answer = trained.tokenizer(rest, add_special_tokens=False)["input_ids"]
    return Question(row, "text", prefix, Said(rest), ids, answer) if ids else None


def _chat_question(trained: Trained, row: int, example: Mapping[str, Any], longest: int) -> Question | None:
    from mac_lora_helpers.data.masking import RowFault, TemplateRefuses, answer_turns, is_trained

    messages, tokenizer = example["messages"], trained.tokenizer
    for last in reversed([turn for turn in answer_turns(messages) if is_trained(messages[turn])]):
        try:
            prompt, answer = trained_turn(tokenizer, messages[: last + 1], example.get("tools"))
        except (RowFault, TemplateRefuses):
            continue
        expected = read_answer(tokenizer, without_end(answer, trained.end_ids), prompt)
        if len(prompt) <= longest and expected.text.strip():
            return Question(row, "chat", readable_prompt(messages[:last]), expected, prompt, answer)
    return None


def without_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first end token."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def readable_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """A single user message as it is; more than one message with the role before each."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


def split_text(text: str) -> tuple[str, str]:
    """(what to continue from, the rest): the first line if something follows it, else the first half of the words."""
    text = text.strip()
    line, newline, rest = text.partition("\n")
    if rest.strip():
        return line + newline, rest
    words = text.split(" ")
    half = max(1, len(words) // 2)
    return " ".join(words[:half]), " ".join(words[half:])
