"""mlx-lm as an engine: Metal on a Mac, its CPU build elsewhere."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.equivalence.engines import Answer, Prompt

#: What mlx and mlx-lm raise about a model that they cannot load or run.
_ERRORS = (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError)


class Stopped(CheckFailed):
    """mlx-lm loaded a model and then failed to run it."""


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def available() -> bool:
    """Whether mlx-lm can be imported here."""
    return importlib.util.find_spec("mlx_lm") is not None and importlib.util.find_spec("mlx") is not None


class Mlx:
    """A model folder in mlx-lm, with an adapter on top if one is given.

    Args:
        overrides: config values that the folder lacks in mlx-lm's form, see ``mlx_keys``.
        render: (tokenizer, prompt) → ids. ends: ids that end an answer.

    Raises:
        CheckFailed: mlx-lm does not load it.
    """

    def __init__(
        self, folder: Path, adapter: Path | None, overrides: dict[str, Any], render: Callable[[Any, Prompt], list[int]], ends: Sequence[int]
    ) -> None:
        import mlx.core as mx
        import mlx_lm

        self.engine = f"mlx-lm {importlib.metadata.version('mlx-lm')}"
        self._mx, self._render, self._ends = mx, render, set(ends)
        self.own_ends: frozenset[int] = frozenset()
        start = time.perf_counter()
        try:
            self._model, wrapped = mlx_lm.load(str(folder), model_config=overrides, adapter_path=None if adapter is None else str(adapter))
        except (*_ERRORS, FileNotFoundError, AssertionError) as error:
            raise CheckFailed(f"mlx-lm does not load it: {_line(error)}", where="mlx-lm", fix="see the message") from error
        self._model.set_dtype(mx.float32)
        self.load_seconds = time.perf_counter() - start
        self._tokenizer = wrapped._tokenizer

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return self._render(self._tokenizer, prompt)

    def answers(self, rows: Sequence[Sequence[int]], limit: int, drafts: Sequence[Answer] = ()) -> list[Answer]:
        drafts = drafts or [Answer((), ())] * len(rows)
        try:
            return [self._answer(ids, limit, draft) for ids, draft in zip(rows, drafts, strict=True)]
        except _ERRORS as error:
            raise Stopped(f"mlx-lm stops while it answers: {_line(error)}", where="mlx-lm", fix="see the message") from error

    def _answer(self, ids: Sequence[int], limit: int, draft: Answer) -> Answer:
        """Greedy decoding. The draft is verified in the prompt's pass; where it goes wrong, generation takes over.

        A draft's token counts only if it is the model's own best one there, so the result is the greedy answer.
        """
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        cache, row, given = make_prompt_cache(self._model), list(ids), list(draft.tokens[: limit - 1])
        tokens, logprobs = [], []
        while True:
            best, values = self._best([*row, *given], len(given) + 1, cache)
            for index, (token, value) in enumerate(zip(best, values, strict=True)):
                if token in self._ends:
                    return Answer(tuple(tokens), tuple(logprobs), token, value)
                tokens.append(token)
                logprobs.append(value)
                if len(tokens) == limit:
                    return Answer(tuple(tokens), tuple(logprobs))
                if index < len(given) and given[index] != token:
                    trim_prompt_cache(cache, len(given) - index)
                    break
            row, given = [tokens[-1]], []

    def _best(self, row: list[int], count: int, cache: Any) -> tuple[list[int], list[float]]:
        """Best token and its log-probability at each of the last ``count`` positions."""
        logits = self._model(self._mx.array([row]), cache=cache)[0, -count:]
        scores = logits - self._mx.logsumexp(logits, axis=-1, keepdims=True)
        return self._mx.argmax(scores, axis=-1).tolist(), self._mx.max(scores, axis=-1).tolist()

    def score(self, ids: Sequence[int], expected: Sequence[int]) -> list[float]:
        if not expected:
            return []
        logits = self._model(self._mx.array([[*ids, *expected[:-1]]]))[0, len(ids) - 1 :]
        scores = logits - self._mx.logsumexp(logits, axis=-1, keepdims=True)
        return [float(scores[index, token]) for index, token in enumerate(expected)]

    def close(self) -> None:
        self._model = None
