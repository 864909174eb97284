"""transformers as the reference (teacher-forced, no cache) and as an engine (generation with its cache)."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.equivalence.engines import Answer, Prompt
from mac_lora_helpers.files import portable

_BATCH = 16


@dataclass(frozen=True)
class Verdict:
    """The reference's view of one answer, position by position; one more position than tokens.

    Args:
        best: the reference's greedy token. top: its log-probability. given: that of the answer's token.
    """

    best: list[int]
    top: list[float]
    given: list[float]


def judge(model: Any, ids: Sequence[int], tokens: Sequence[int], end: int) -> Verdict:
    """Runs the reference once over prompt and answer.

    Args:
        end: id that stands for the end at the position after the last token.
    """
    import torch

    with torch.inference_mode():
        row = torch.tensor([[*ids, *tokens]])
        logits = model(input_ids=row, use_cache=False, logits_to_keep=len(tokens) + 1).logits[0].float()
    logprobs = torch.log_softmax(logits, dim=-1)
    top, best = logprobs.max(dim=-1)
    given = logprobs.gather(1, torch.tensor([*tokens, end]).unsqueeze(1)).squeeze(1)
    return Verdict(best.tolist(), top.tolist(), given.tolist())


class Transformers:
    """A model in transformers that answers token by token with its key-value cache.

    Args:
        load: gives (model, tokenizer); timed.
        render: (tokenizer, prompt) → ids. ends: ids that end an answer.

    Raises:
        CheckFailed: transformers does not load it.
    """

    def __init__(self, load: Callable[[], tuple[Any, Any]], render: Callable[[Any, Prompt], list[int]], ends: Sequence[int]) -> None:
        self.engine = f"transformers {importlib.metadata.version('transformers')}"
        from safetensors import SafetensorError

        start = time.perf_counter()
        try:
            self.model, self.tokenizer = load()
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise CheckFailed(
                f"transformers does not load it: {portable(reason[0])}", where="transformers", fix="write it again"
            ) from error
        self.load_seconds = time.perf_counter() - start
        self._render, self.ends = render, list(ends)
        self.own_ends: frozenset[int] = frozenset()

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return self._render(self.tokenizer, prompt)

    def answers(self, rows: Sequence[Sequence[int]], limit: int, drafts: Sequence[Answer] = ()) -> list[Answer]:
        return [answer for start in range(0, len(rows), _BATCH) for answer in self._batch(rows[start : start + _BATCH], limit)]

    def _batch(self, rows: Sequence[Sequence[int]], limit: int) -> list[Answer]:
        """Greedy decoding of left-padded rows with the key-value cache."""
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        steps, cache, open_rows = [], None, [True] * len(rows)
        with torch.inference_mode():
            while any(open_rows) and len(steps) < limit:
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                output = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                cache = output.past_key_values
                values, ids = torch.log_softmax(output.logits[:, -1].float(), dim=-1).max(dim=-1, keepdim=True)
                steps.append((ids[:, 0].tolist(), values[:, 0].tolist()))
                open_rows = [alive and token not in self.ends for alive, token in zip(open_rows, steps[-1][0], strict=True)]
                mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return [self._cut([(tokens[row], values[row]) for tokens, values in steps]) for row in range(len(rows))]

    def _cut(self, steps: list[tuple[int, float]]) -> Answer:
        for index, (token, value) in enumerate(steps):
            if token in self.ends:
                return Answer(tuple(t for t, _ in steps[:index]), tuple(v for _, v in steps[:index]), token, value)
        return Answer(tuple(t for t, _ in steps), tuple(v for _, v in steps))

    def score(self, ids: Sequence[int], expected: Sequence[int]) -> list[float]:
        return judge(self.model, ids, expected, 0).given[:-1]

    def close(self) -> None:
        self.model = None
