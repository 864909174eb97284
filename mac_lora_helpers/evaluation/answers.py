"""Held-out examples asked of base and tuned, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation.generation import Answer, context_length, generate, prompt_ids, render
from mac_lora_helpers.evaluation.loading import Trained
from mac_lora_helpers.evaluation.losses import choose
from mac_lora_helpers.evaluation.metrics import BUILT_IN, find_metric, score_answer


@dataclass(frozen=True)
class Question:
    """What is asked and what is expected. ``row``: line of the split, from 0; ``kind``: chat or text."""

    row: int
    kind: str
    prompt: str
    expected: str
    ids: list[int]


def compare_answers(trained: Trained, examples: Sequence[Mapping[str, Any]], config: Config) -> list[dict[str, Any]]:
    """Answers of base and tuned to held-out examples, with the score of each.

    A row of messages is asked up to its last answer whose prompt fits into ``max_seq_length``. A row of plain
    text has no question: it is continued from its first line (or its first half), to be looked at; only a
    metric of the user's own is counted on it.

    Args:
        examples: rows ``{"messages": […]}`` or ``{"text": …}``; of more than ``eval_examples`` a seeded choice is taken.

    Returns:
        A dict a row: ``row kind prompt expected base tuned base_stopped tuned_stopped base_tokens tuned_tokens
        expected_tokens scores``; ``scores`` is ``{"base": {metric: value}, "tuned": {…}}``.

    Raises:
        InputError: no row can be asked, or the metric cannot be used.
    """
    metrics = {**BUILT_IN, config.metric: find_metric(config.metric)}
    questions = _questions(trained, examples, config)
    prompts = [question.ids for question in questions]
    base, tuned = generate(trained, prompts, config, "base"), generate(trained, prompts, config, "tuned")
    return [_row(trained, metrics, *triple) for triple in zip(questions, base, tuned, strict=True)]


def _row(trained: Trained, metrics: dict[str, Any], question: Question, base: Answer, tuned: Answer) -> dict[str, Any]:
    counted = metrics if question.kind == "chat" else {name: metric for name, metric in metrics.items() if name not in BUILT_IN}
    answers = {"base": base, "tuned": tuned}
    return {
        "row": question.row,
        "kind": question.kind,
        "prompt": question.prompt,
        "expected": question.expected,
        **{name: answer.text for name, answer in answers.items()},
        **{f"{name}_stopped": answer.stopped for name, answer in answers.items()},
        **{f"{name}_tokens": answer.tokens for name, answer in answers.items()},
        "expected_tokens": len(trained.tokenizer(question.expected, add_special_tokens=False)["input_ids"]),
        "scores": {name: score_answer(answer.text, question.expected, counted) for name, answer in answers.items()},
    }


def _questions(trained: Trained, examples: Sequence[Mapping[str, Any]], config: Config) -> list[Question]:
    chosen = choose(list(enumerate(examples)), config.eval_examples, config.seed)
    asked = [question for question in (_question(trained, row, example, config) for row, example in chosen) if question]
    if not asked:
        raise InputError(
            f"none of {len(chosen)} held-out rows can be asked: no answer in them, or the prompts are longer than max_seq_length",
            where="data/test.jsonl",
            fix=f"use rows with an assistant's answer, or a max_seq_length above {config.max_seq_length}",
        )
    return asked


def _question(trained: Trained, row: int, example: Mapping[str, Any], config: Config) -> Question | None:
    if "messages" in example:
        return _chat_question(trained, row, example, config)
    text = str(example.get("text", ""))
    prefix, rest = split_text(text)
    ids = trained.tokenizer(prefix)["input_ids"][: config.max_seq_length] if prefix else []
    return Question(row, "text", prefix, rest, ids) if ids else None


def _chat_question(trained: Trained, row: int, example: Mapping[str, Any], config: Config) -> Question | None:
    messages = example["messages"]
    room = context_length(trained) or config.max_seq_length + 1
    limit = min(config.max_seq_length, room - 1)
    for last in reversed(range(1, len(messages))):
        message = messages[last]
        if message["role"] != "assistant" or not isinstance(message.get("content"), str) or not message["content"].strip():
            continue
        ids = render(trained.tokenizer, messages[:last], example.get("tools"))
        if len(ids) <= limit:
            return Question(row, "chat", readable_prompt(messages[:last]), message["content"], ids)
    return None


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


def ask(trained: Trained, prompt: str, config: Config) -> dict[str, Any]:
    """One question put to both models through the chat template.

    Returns:
        ``prompt base tuned base_stopped tuned_stopped``.

    Raises:
        InputError: the prompt is empty or too long.
    """
    ids = prompt_ids(trained, prompt)
    base, tuned = (generate(trained, [ids], config, which)[0] for which in ("base", "tuned"))
    return {"prompt": prompt, "base": base.text, "tuned": tuned.text, "base_stopped": base.stopped, "tuned_stopped": tuned.stopped}


def mark_difference(text: str, other: str) -> list[tuple[str, bool]]:
    """``text`` in pieces (piece, stands in ``other`` too), cut at words: what a table marks."""
    words, others = _words(text), _words(other)
    pieces = []
    for tag, start, stop, _, _ in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if stop > start:
            pieces.append(("".join(words[start:stop]), tag == "equal"))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)
