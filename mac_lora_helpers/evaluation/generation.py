"""Answers from the loaded model: many at a time, each as if it were alone, or piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Literal

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation.loading import Trained

Which = Literal["base", "tuned"]


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text without the end token, its length in tokens, and whether the end token came."""

    text: str
    tokens: int
    stopped: bool


def prompt_ids(trained: Trained, prompt: str) -> list[int]:
    """The ids of one user message as the chat template renders it, ready to be answered.

    Raises:
        InputError: the prompt is empty, or fills the model's context.
    """
    if not prompt.strip():
        raise InputError("there is nothing to ask", where="parameter prompt", fix="write a question into prompt")
    ids = render(trained.tokenizer, [{"role": "user", "content": prompt}])
    room = context_length(trained)
    if room and len(ids) >= room:
        raise InputError(f"the prompt has {len(ids):,} tokens, the model takes {room:,}", where="parameter prompt", fix="shorten it")
    return ids


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> list[int]:
    """The ids that a model sees before it answers; a tokenizer without a chat template gets the bare texts, a line each."""
    from mac_lora_helpers import data

    if tokenizer.chat_template:
        return list(data.render_prompt(tokenizer, list(messages), tools))
    return tokenizer("".join(f"{message.get('content') or ''}\n" for message in messages))["input_ids"]


def context_length(trained: Trained) -> int:
    """Tokens that the model can look at, prompt and answer together; 0 if it does not say."""
    return int(getattr(trained.model.config, "max_position_embeddings", 0) or 0)


def voice(trained: Trained, which: Which) -> AbstractContextManager[Any]:
    """The context in which the model answers as base or as tuned."""
    if which not in ("base", "tuned"):
        raise ValueError(f"which is 'base' or 'tuned', not {which!r}")
    return trained.base() if which == "base" else trained.tuned()


def generate(trained: Trained, prompts: Sequence[Sequence[int]], config: Config, which: Which) -> list[Answer]:
    """Answers prompts in batches of like length; the result does not depend on who shares a batch.

    Args:
        prompts: token ids, one list a prompt. config: batch size, length, and sampling.

    Returns:
        One answer a prompt, in the order of the prompts.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[Answer | None] = [None] * len(prompts)
    with voice(trained, which):
        for start in range(0, len(order), config.eval_batch_size):
            members = order[start : start + config.eval_batch_size]
            batch = [list(prompts[index]) for index in members]
            for index, answer in zip(members, _generate_batch(trained, batch, config), strict=True):
                answers[index] = answer
            release_memory(trained.device)
    return [answer for answer in answers if answer is not None]


def _generate_batch(trained: Trained, batch: list[list[int]], config: Config) -> list[Answer]:
    inputs, settings = _arguments(trained, batch, config)
    output = trained.model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    return [_cut(trained, row) for row in output.tolist()]


def _arguments(trained: Trained, batch: list[list[int]], config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Left-padded tensors of shape (rows, longest prompt), and how to generate."""
    import torch

    pad = trained.model.generation_config.pad_token_id
    width = padded_width(max(map(len, batch)), trained.device)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch], device=trained.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=trained.device)
    room = context_length(trained)
    longest = min(config.max_new_tokens, room - max(map(len, batch))) if room else config.max_new_tokens
    settings: dict[str, Any] = {"max_new_tokens": max(1, longest)}
    if config.do_sample:
        settings["logits_processor"] = [_sampler(batch, config)]
    return {"input_ids": ids, "attention_mask": mask}, settings


def padded_width(longest: int, device: str) -> int:
    """Columns of a batch: on MPS few distinct widths, since its allocator keeps buffers for every one it has seen."""
    return -(-longest // 32) * 32 if device == "mps" else longest


def release_memory(device: str) -> None:
    """Gives cached buffers back between two batches where keeping them is known to hurt."""
    if device == "mps":
        import torch

        torch.mps.empty_cache()


def _cut(trained: Trained, row: list[int]) -> Answer:
    ends = [position for position, token in enumerate(row) if token in trained.end_ids]
    kept = row[: ends[0]] if ends else row
    text = trained.tokenizer.decode(kept, skip_special_tokens=True)
    return Answer(text, len(kept), bool(ends))


def _sampler(batch: list[list[int]], config: Config) -> Any:
    """Temperature and nucleus sampling as a logits processor, with one source of noise a prompt.

    The likeliest token after adding Gumbel noise to the logits is a sample from their softmax (Gumbel 1954), so the
    greedy loop draws samples, and what a prompt gets depends on ``seed`` and on the prompt, not on its batch. Base
    and tuned share the noise: where they agree, they say the same.
    """
    import torch
    from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

    generators = [torch.Generator().manual_seed(_seed(row, config.seed)) for row in batch]
    warpers = [TemperatureLogitsWarper(float(config.temperature))]
    if config.top_p < 1:
        warpers.append(TopPLogitsWarper(float(config.top_p)))

    class Sampler(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.float()
            for warper in warpers:
                scores = warper(input_ids, scores)
            uniform = torch.stack([torch.rand(scores.shape[-1], generator=generator) for generator in generators])
            noise = -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
            return scores + noise.to(scores.device)

    return Sampler()


def _seed(row: list[int], seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(trained: Trained, prompt: str, config: Config, which: Which = "tuned") -> Iterator[str]:
    """The answer to one prompt in pieces of text, as they are generated; together they are what ``ask`` returns.

    Leaving the loop early stops the generation.
    """
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    inputs, settings = _arguments(trained, [prompt_ids(trained, prompt)], config)
    streamer = TextIteratorStreamer(trained.tokenizer, skip_prompt=True, skip_special_tokens=True)
    left, failures = Event(), []
    settings["stopping_criteria"] = StoppingCriteriaList([_stop_when(left)])

    def work() -> None:
        try:
            with voice(trained, which):
                trained.model.generate(**inputs, **settings, streamer=streamer)
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
