"""Batches of few shapes: rows grouped by length, padded to a handful of lengths, order shuffled.

On MPS each new shape costs a set of buffers that the allocator keeps, so an epoch should show few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mac_lora_helpers.data.tokens import IGNORE

#: Distinct batch shapes in an epoch, at most.
MAX_SHAPES = 8


def choose_buckets(lengths: Sequence[int], count: int = MAX_SHAPES) -> list[int]:
    """At most ``count`` lengths to pad to, such that the padding is least (dynamic programming, exact).

    Args:
        lengths: tokens of each row.
    """
    sizes, rows = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    number = np.concatenate([[0], np.cumsum(rows)])  # rows among the first j sizes
    cost, came = number[1:] * sizes, []  # padded tokens of sizes[:j + 1] in the buckets so far; ``came``: where the last one begins
    for _ in range(1, min(count, len(sizes))):
        below = np.concatenate([[0], cost[:-1]])
        options = [below[: j + 1] + (number[j + 1] - number[: j + 1]) * sizes[j] for j in range(len(sizes))]
        came.append([int(np.argmin(option)) for option in options])
        cost = np.array([option.min() for option in options])
    ends, j = [], len(sizes) - 1
    while j >= 0:
        ends.append(int(sizes[j]))
        j = came.pop()[j] - 1 if came else -1
    return ends[::-1]


class LengthGroupedBatches:
    """Batches of row indices; the rows of one batch are padded to one of few lengths.

    Every row comes once an epoch. Which rows meet and in which order the batches come is drawn anew
    each epoch from the seed. Only the last batch may be smaller, so ``indices()`` in order, cut into
    pieces of ``batch_size``, gives the same batches. Works as a ``batch_sampler`` of a DataLoader;
    ``sampler()`` gives a plain sampler.

    Args:
        lengths: tokens of each row. batch_size: rows in a batch. seed: of the order.
        max_shapes: distinct (rows, length) pairs in an epoch, at most.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, max_shapes: int = MAX_SHAPES) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        partial = len(self.lengths) % batch_size != 0
        self.buckets = choose_buckets(self.lengths, max(1, max_shapes - partial)) if len(self.lengths) else []

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order is drawn; trainers call this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        full, rest = self._grouped(random)
        for index in random.permutation(len(full)):
            yield full[index].tolist()
        if len(rest):
            yield rest.tolist()

    def _grouped(self, random: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        """Full batches bucket by bucket; what is left over moves up to the next bucket, longest rows first."""
        bucket_of = np.searchsorted(self.buckets, self.lengths)
        full: list[np.ndarray] = []
        rest = np.zeros(0, dtype=np.int64)
        for bucket in range(len(self.buckets)):
            rows = np.concatenate([rest, random.permutation(np.flatnonzero(bucket_of == bucket))])
            over = len(rows) % self.batch_size
            by_length = rows[np.argsort(self.lengths[rows], kind="stable")]
            rest = by_length[len(rows) - over :]
            rows = random.permutation(by_length[: len(rows) - over])
            full += np.split(rows, len(rows) // self.batch_size) if len(rows) else []
        return full, rest

    def indices(self) -> Iterator[int]:
        """The rows of this epoch in order."""
        for batch in self:
            yield from batch

    def sampler(self) -> _Indices:
        """A sampler over single rows in the same order, for a DataLoader that batches by itself."""
        return _Indices(self)


class _Indices:
    """The sampler view: iterates row indices."""

    def __init__(self, batches: LengthGroupedBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches.lengths)

    def __iter__(self) -> Iterator[int]:
        return self.batches.indices()

    def set_epoch(self, epoch: int) -> None:
        """Passed on."""
        self.batches.set_epoch(epoch)


def batch_sampler(lengths: Sequence[int], batch_size: int, seed: int) -> LengthGroupedBatches:
    """Seeded batches of few shapes; see :class:`LengthGroupedBatches`."""
    return LengthGroupedBatches(lengths, batch_size, seed)


@dataclass(frozen=True)
class Collator:
    """Rows → tensors input_ids, attention_mask, labels (rows × length), padded on the right to a bucket.

    A row longer than every bucket is padded to nothing more than its own length.
    """

    pad_id: int
    buckets: tuple[int, ...]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        length = next((bucket for bucket in self.buckets if bucket >= longest), longest)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORE, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for index, row in enumerate(rows):
            count = len(row["input_ids"])
            ids[index, :count] = torch.as_tensor(row["input_ids"])
            labels[index, :count] = torch.as_tensor(row["labels"])
            mask[index, :count] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def make_collator(tokenizer: Any, buckets: Sequence[int] = ()) -> Collator:
    """A collator that pads to the sampler's buckets (``LengthGroupedBatches.buckets``); without any, to the longest row."""
    return Collator(tokenizer.pad_token_id, tuple(sorted(buckets)))
