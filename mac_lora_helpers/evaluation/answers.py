"""Held-out examples asked of base and tuned, side by side, many at a time; and one question piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from threading import Event, Thread
from typing import Any, NamedTuple

from mac_lora_helpers.config import Config
from mac_lora_helpers.evaluation.clock import in_time
from mac_lora_helpers.evaluation.losses import padded_width, release_memory
from mac_lora_helpers.evaluation.metrics import BUILT_IN, find_metric, score_answer
from mac_lora_helpers.evaluation.questions import Question, Said, prompt_ids, questions, read_answer, without_end
from mac_lora_helpers.evaluation.trained import Trained, Which

#: Share of ``eval_minutes`` for the answers; the rest is for the loss.
SHARE = 2 / 3


class Answer(NamedTuple):
    """A generated answer: what it says, its length in tokens, and whether the end token came."""

    said: Said
    tokens: int
    stopped: bool


class Answers(list[dict[str, Any]]):
    """A row for each example that was asked. ``coverage``: how many of how many, and the seconds that they took."""

    coverage: Mapping[str, float]


def sampling(config: Config) -> dict[str, Any]:
    """Arguments of ``generate`` for ``do_sample``, ``temperature`` and ``top_p``; the draw begins at ``seed`` each time."""
    import torch

    if not config.do_sample:
        return {"do_sample": False}
    torch.manual_seed(config.seed)
    return {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}


def compare_answers(trained: Trained, examples: Sequence[Mapping[str, Any]], config: Config) -> Answers:
    """Answers of base and tuned to held-out examples, with the score of each.

    What it costs is said once the first answers are there. When two thirds of ``eval_minutes`` are over, what is there counts;
    the examples come in a seeded order, so that is a fair choice. On rows of plain text only a metric of the user's own is counted.

    Args:
        examples: rows ``{"messages": […]}`` or ``{"text": …}``.

    Returns:
        A dict a row: ``row kind prompt expected base tuned base_stopped tuned_stopped base_tokens tuned_tokens
        expected_tokens scores``, ``thinking`` where there was some; ``scores`` is ``{"base": {metric: value}, "tuned": {…}}``.

    Raises:
        InputError: no row can be asked, or the metric cannot be used.
    """
    metrics = {**BUILT_IN, config.metric: find_metric(config.metric)}
    asked, begin = questions(trained, examples, config), time.monotonic()
    found: dict[int, dict[str, Any]] = {}
    for part in in_time(asked, config.eval_batch_size, config.eval_minutes * SHARE, "questions answered by both"):
        prompts = [question.ids for question in part]
        both = zip(part, generate(trained, prompts, config, "base"), generate(trained, prompts, config, "tuned"), strict=True)
        found |= {question.row: _row(metrics, question, base, tuned) for question, base, tuned in both}
    answers = Answers(found[row] for row in sorted(found))
    answers.coverage = {"examples": len(answers), "of": len(asked), "seconds": round(time.monotonic() - begin, 1)}
    return answers


def _row(metrics: dict[str, Any], question: Question, base: Answer, tuned: Answer) -> dict[str, Any]:
    counted = metrics if question.kind == "chat" else {name: metric for name, metric in metrics.items() if name not in BUILT_IN}
    answers, expected = {"base": base, "tuned": tuned}, question.expected
    thinking = {name: said.thinking for name, said in (("expected", expected), ("base", base.said), ("tuned", tuned.said))}
    return {
        "row": question.row,
        "kind": question.kind,
        "prompt": question.prompt,
        "expected": expected.text,
        **{name: answer.said.text for name, answer in answers.items()},
        **{f"{name}_stopped": answer.stopped for name, answer in answers.items()},
        **{f"{name}_tokens": answer.tokens for name, answer in answers.items()},
        "expected_tokens": len(question.answer),
        "scores": {name: score_answer(answer.said.text, expected.text, counted) for name, answer in answers.items()},
        **({"thinking": thinking} if any(thinking.values()) else {}),
    }


def generate(trained: Trained, prompts: Sequence[Sequence[int]], config: Config, which: Which) -> list[Answer]:
    """Answers prompts in batches of like length; greedy answers do not depend on who shares a batch.

    Args:
        prompts: token ids, one list a prompt. config: batch size, length, and sampling.

    Returns:
        One answer a prompt, in the order of the prompts.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    with trained.voice(which):
        for start in range(0, len(order), config.eval_batch_size):
            members = order[start : start + config.eval_batch_size]
            inputs = _arguments(trained, [list(prompts[index]) for index in members], config)
            output = trained.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :].tolist()
            answers |= {index: _answer(trained, prompts[index], row) for index, row in zip(members, output, strict=True)}
            release_memory(trained.device)
    return [answers[index] for index in range(len(prompts))]


def _arguments(trained: Trained, batch: list[list[int]], config: Config) -> dict[str, Any]:
    """Left-padded tensors of shape (rows, longest prompt), and how to generate."""
    import torch

    pad, longest = trained.model.generation_config.pad_token_id, max(map(len, batch))
    width = padded_width(longest, trained.device)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch], device=trained.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=trained.device)
    room = min(config.max_new_tokens, (trained.context or 10**9) - longest)
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": max(1, room), **sampling(config)}


def _answer(trained: Trained, prompt: Sequence[int], row: list[int]) -> Answer:
    kept = without_end(row, trained.end_ids)
    return Answer(read_answer(trained.tokenizer, kept, prompt), len(kept), len(kept) < len(row))


def stream(trained: Trained, prompt: str, config: Config, which: Which = "tuned") -> Iterator[str]:
    """The answer to one question in pieces of text, as they are generated. Leaving the loop early stops the generation."""
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    inputs = _arguments(trained, [prompt_ids(trained.tokenizer, prompt, trained.context)], config)
    streamer = TextIteratorStreamer(trained.tokenizer, skip_prompt=True, skip_special_tokens=True)
    left, failures = Event(), []
    inputs["stopping_criteria"] = StoppingCriteriaList([_stop_when(left)])

    def work() -> None:
        try:
            with trained.voice(which):
                trained.model.generate(**inputs, streamer=streamer)
        except Exception as error:  # raised again in the caller's thread
            failures.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        left.set()
        thread.join()
    if failures:
        raise failures[0]


def _stop_when(event: Event) -> Any:
    import torch
    from transformers import StoppingCriteria

    class Left(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), event.is_set(), dtype=torch.bool, device=input_ids.device)

    return Left()
