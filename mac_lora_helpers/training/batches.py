"""The rows as they are trained on: checked before the start, grouped by length, compared with what the trainer really gets.

An optimizer step looks at ``per_device_train_batch_size × gradient_accumulation_steps`` rows. They go through the model in
*passes*: rows of like length together, up to a budget of tokens. transformers' own grouping by length bounds neither the
tokens of a pass nor the number of shapes, and on MPS each new shape costs a set of buffers that the allocator keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, MissingArtifact

IGNORED = -100
#: Distinct shapes (rows × tokens) in an epoch, at most.
MAX_SHAPES = 12
_REMAKE = "run 02_data_formatting.ipynb again with the same out_dir"


def row_digest(input_ids: Any, labels: Any) -> bytes:
    """A digest of one row's tokens and labels."""
    digest = hashlib.blake2b(digest_size=12)
    for values in (input_ids, labels):
        digest.update(np.ascontiguousarray(values, dtype=np.int64).tobytes())
        digest.update(b"|")
    return digest.digest()


def rows_of(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Every row's ``input_ids`` and ``labels`` as int64 arrays."""
    for batch in dataset.select_columns(["input_ids", "labels"]).with_format("arrow").iter(batch_size=1000):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            yield np.asarray(ids.values, dtype=np.int64), np.asarray(labels.values, dtype=np.int64)


def check_rows(dataset: Any, config: Config) -> set[bytes]:
    """Checks that a split can be trained on as it stands.

    Returns:
        The rows' digests.

    Raises:
        MissingArtifact: no rows, or no token columns.
        CheckFailed: a row is longer than ``max_seq_length``, has another number of labels than tokens, or no label
            that the loss would see (the first position predicts nothing, so its label does not count).
    """
    if dataset is None or not len(dataset) or not {"input_ids", "labels"} <= set(dataset.column_names):
        raise MissingArtifact("there are no training tokens", where="data/tokens", fix=_REMAKE)
    digests, empty = set(), []
    for index, (ids, labels) in enumerate(rows_of(dataset)):
        if len(ids) > config.max_seq_length or len(ids) != len(labels):
            raise CheckFailed(
                f"row {index} has {len(ids)} tokens and {len(labels)} labels; at most {config.max_seq_length} of each are wanted",
                where="data/tokens, split train",
                fix=_REMAKE,
            )
        if not (labels[1:] != IGNORED).any():
            empty.append(index)
        digests.add(row_digest(ids, labels))
    if empty:
        raise CheckFailed(
            f"{len(empty)} of {len(dataset)} rows have no token to learn from (first: row {empty[0]})",
            where="data/tokens, split train",
            fix=f"{_REMAKE}; see what max_seq_length and loss_on left of these rows",
        )
    return digests


def lengths_of(dataset: Any) -> Any:
    """Tokens of each row, without reading the tokens."""
    chunks = dataset.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"].chunks
    return np.concatenate([np.asarray(chunk.value_lengths(), dtype=np.int64) for chunk in chunks])


def choose_buckets(lengths: Sequence[int], count: int) -> list[int]:
    """At most ``count`` lengths to pad to, such that the padding is least (dynamic programming, exact)."""
    sizes, rows = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    number = np.concatenate([[0], np.cumsum(rows)])
    # cost[j]: padded tokens of the rows of the j shortest lengths in the buckets so far; cuts remember where a bucket began
    cost = np.concatenate([[0], np.full(len(sizes), np.iinfo(np.int64).max // 2)])
    cuts = []
    for _ in range(min(count, len(sizes))):
        options = [cost[: end + 1] + (number[end + 1] - number[: end + 1]) * sizes[end] for end in range(len(sizes))]
        cuts.append([0, *(int(np.argmin(option)) for option in options)])
        cost = np.array([0, *(option.min() for option in options)])
    ends, place = [], len(sizes)
    for cut in reversed(cuts):
        if place:
            ends.append(int(sizes[place - 1]))
            place = cut[place]
    return sorted(ends)


class Passes:
    """Deals the rows of an optimizer step out to forward passes.

    Each length has a bucket that it is padded to, and each bucket a number of rows that go through together: the most that
    stay within the budget, out of numbers that divide each other, so that passes of several lengths make up a step exactly.

    Args:
        lengths: tokens of every row of the data. rows: of an optimizer step, in all processes. budget: tokens of a pass.
    """

    def __init__(self, lengths: Any, rows: int, budget: int, buckets: int = MAX_SHAPES) -> None:
        self.lengths, self.rows, self.budget = np.asarray(lengths, dtype=np.int64), rows, budget
        self.units = _units(rows)
        self.buckets = np.asarray(choose_buckets(self.lengths, buckets))
        self.sizes = [max(unit for unit in self.units if unit == 1 or unit * bucket <= budget) for bucket in self.buckets.tolist()]

    def bucket(self, length: int) -> int:
        """The index of the bucket that a row is padded to."""
        return int(np.searchsorted(self.buckets, length))

    def split(self, lengths: Sequence[int], at_least: int = 1) -> list[list[int]]:
        """Positions of a step's rows, pass by pass, the longest rows first.

        Args:
            at_least: so many passes, where there are rows enough; several processes need equally many.
        """
        order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
        passes = []
        while order:
            size = self.sizes[self.bucket(lengths[order[0]])]
            passes.append(order[:size])
            order = order[size:]
        while len(passes) < min(at_least, len(lengths)):
            widest = max(range(len(passes)), key=lambda index: len(passes[index]))
            rows = passes[widest]
            passes[widest : widest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        return passes

    def order(self, random: np.random.Generator) -> list[int]:
        """All rows once, such that each step's rows fill their passes; which rows meet is drawn anew each time."""
        pools: dict[int, list[list[int]]] = {unit: [] for unit in self.units}
        rest: list[int] = []
        bucket_of = np.searchsorted(self.buckets, self.lengths)
        for bucket, size in enumerate(self.sizes):
            rows = random.permutation(np.flatnonzero(bucket_of == bucket)).tolist()
            full = len(rows) // size * size
            pools[size] += [rows[start : start + size] for start in range(0, full, size)]
            rest += rows[full:]
        rest.sort(key=lambda row: -self.lengths[row])
        while rest:  # what fills no pass of its own bucket fills one of a longer bucket
            size = self.sizes[bucket_of[rest[0]]]
            part, rest = rest[:size], rest[size:]
            for unit in self.units:
                while len(part) >= unit:
                    pools[unit].append(part[:unit])
                    part = part[unit:]
        return self._composed(pools, random)

    def _composed(self, pools: dict[int, list[list[int]]], random: np.random.Generator) -> list[int]:
        """Passes put together to steps, smallest first; what is left over makes the last, smaller step."""
        left: list[int] = []
        for unit, larger in zip(self.units[::-1], self.units[-2::-1], strict=False):
            pool = [pools[unit][index] for index in random.permutation(len(pools[unit]))]
            whole = len(pool) // (larger // unit) * (larger // unit)
            for start in range(0, whole, larger // unit):
                pools[larger].append([row for part in pool[start : start + larger // unit] for row in part])
            left = [row for part in pool[whole:] for row in part] + left
        steps = [pools[self.rows][index] for index in random.permutation(len(pools[self.rows]))]
        return [row for step in steps for row in step] + left

    def shapes(self, order: Sequence[int]) -> tuple[set[tuple[int, int]], float]:
        """The distinct shapes (rows, tokens) of an epoch in this order, and the padded share of its tokens."""
        shapes, area = set(), 0
        for start in range(0, len(order), self.rows):
            lengths = [int(self.lengths[row]) for row in order[start : start + self.rows]]
            for rows in self.split(lengths):
                shape = len(rows), int(self.buckets[self.bucket(lengths[rows[0]])])
                shapes.add(shape)
                area += shape[0] * shape[1]
        return shapes, 1 - int(self.lengths.sum()) / max(area, 1)


def _units(rows: int) -> list[int]:
    """Numbers of rows that divide each other, from all rows of a step down to one."""
    units = [rows]
    while units[-1] > 1:
        units.append(next(units[-1] // factor for factor in range(2, units[-1] + 1) if units[-1] % factor == 0))
    return units


def plan_passes(lengths: Any, rows: int, budget: int, seed: int) -> Passes:
    """``Passes`` with as many buckets as leave an epoch at most ``MAX_SHAPES`` shapes: rows left over add a few."""
    for buckets in range(MAX_SHAPES, MAX_SHAPES // 2, -1):
        passes = Passes(lengths, rows, budget, buckets)
        if max(passes.sizes) == 1 or len(passes.shapes(passes.order(np.random.default_rng([seed, 0])))[0]) <= MAX_SHAPES:
            break
    return passes


def largest_pass(lengths: Any, rows: int, budget: int) -> tuple[int, int]:
    """Rows and tokens of the largest pass of rows of these lengths: what memory is planned for.

    Args:
        rows: of an optimizer step. budget: tokens of a pass.
    """
    units = np.array(_units(rows))
    fitting = [(units[(units * length <= budget) | (units == 1)].max(), length) for length in np.unique(lengths)]
    shapes = [(min(int(unit), len(lengths)), int(length)) for unit, length in fitting]
    return max(shapes, key=lambda shape: shape[0] * shape[1])


def dealt_out(dataset: Any, rows: int, processes: int) -> Any:
    """The rows that are trained on: with several processes, filled up with rows that teach nothing (two tokens, no label).

    Each process then gets as many batches as the others, and the batches with rows of the data are those of one process.
    """
    kept = dataset.select_columns(["input_ids", "labels"])
    missing = -len(kept) % (rows * processes) if processes > 1 else 0
    if not missing:
        return kept
    from datasets import Dataset, concatenate_datasets

    ids = kept[0]["input_ids"][:2]
    empty = Dataset.from_dict({"input_ids": [ids] * missing, "labels": [[IGNORED] * len(ids)] * missing}, features=kept.features)
    return concatenate_datasets([kept, empty])


class Order:
    """The trainer's sampler: the data's rows as the passes want them, then the rows that ``dealt_out`` added.

    accelerate deals batches out in turn: process k of n gets the batches k, k + n, …, so what one process would see in an
    optimizer step is what all of them see in one.
    """

    def __init__(self, passes: Passes, seed: int, rows: int) -> None:
        self.passes, self.seed, self.rows, self.epoch = passes, seed, rows, 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        yield from self.passes.order(np.random.default_rng([self.seed, self.epoch]))
        yield from range(len(self.passes.lengths), self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order is drawn; trainers call this."""
        self.epoch = epoch


def collate(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """Rows → tensors input_ids, attention_mask, labels (rows × the longest row), padded on the right."""
    import torch

    shape = len(rows), max(len(row["input_ids"]) for row in rows)
    ids, labels, mask = torch.full(shape, pad_id), torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
    for index, row in enumerate(rows):
        count = len(row["input_ids"])
        ids[index, :count] = torch.as_tensor(row["input_ids"])
        labels[index, :count] = torch.as_tensor(row["labels"])
        mask[index, :count] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class WatchedCollator:
    """The trainer's collator, with a note of every row that leaves it.

    Args:
        known: digests of the rows of notebook 02. keep: how many distinct rows to keep for the audit.
    """

    def __init__(self, pad_id: int, known: set[bytes], keep: int = 16) -> None:
        self.inner = lambda rows: collate(rows, pad_id)
        self.known, self.keep = known, keep
        self.seen: set[bytes] = set()
        self.foreign = self.longest = 0
        self.kept: list[dict[str, list[int]]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collates, and compares each row without its padding with the data of notebook 02."""
        batch = self.inner(examples)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for ids, labels, length in zip(batch["input_ids"], batch["labels"], lengths, strict=True):
            self._note(ids[:length].numpy(), labels[:length].numpy(), bool((labels[length:] == IGNORED).all()))
        self.longest = max(self.longest, batch["input_ids"].shape[1])
        return batch

    def _note(self, ids: Any, labels: Any, padding_ignored: bool) -> None:
        if len(ids) == 2 and padding_ignored and (labels == IGNORED).all():
            return  # of dealt_out
        digest = row_digest(ids, labels)
        if digest not in self.known or not padding_ignored:
            self.foreign += 1
        elif digest not in self.seen:
            self.seen.add(digest)
            if len(self.kept) < self.keep:
                self.kept.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
