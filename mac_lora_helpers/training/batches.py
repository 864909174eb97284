"""The data as they are trained on: checked before the start, compared with every batch the trainer really gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from mac_lora_helpers import data
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, MissingArtifact

_IGNORED = -100
_REMAKE = "run 02_data_formatting.ipynb again with the same out_dir"


def row_digest(input_ids: Any, labels: Any) -> bytes:
    """A digest of one row's tokens and labels."""
    import numpy as np

    digest = hashlib.blake2b(digest_size=12)
    for values in (input_ids, labels):
        digest.update(np.ascontiguousarray(values, dtype=np.int64).tobytes())
        digest.update(b"|")
    return digest.digest()


def rows_of(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Every row's ``input_ids`` and ``labels`` as int64 arrays."""
    import numpy as np

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
        if not (labels[1:] != _IGNORED).any():
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
    import numpy as np

    chunks = dataset.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"].chunks
    return np.concatenate([np.asarray(chunk.value_lengths(), dtype=np.int64) for chunk in chunks])


def collator_for(tokenizer: Any, grouped: Any, device: str) -> Any:
    """Pads to the longest row of a batch; on MPS to one of few lengths, because its allocator keeps buffers for each shape."""
    return data.make_collator(tokenizer, grouped.buckets if device == "mps" else ())


def dealt_out(dataset: Any, batch_size: int, processes: int) -> Any:
    """The rows that are trained on: with several processes, filled up with rows that teach nothing (two tokens, no label).

    Each process then gets as many batches as the others, and the batches with rows of the data are those of one process.
    """
    rows = dataset.select_columns(["input_ids", "labels"])
    missing = -len(rows) % (batch_size * processes) if processes > 1 else 0
    if not missing:
        return rows
    from datasets import Dataset, concatenate_datasets

    ids = rows[0]["input_ids"][:2]
    empty = Dataset.from_dict({"input_ids": [ids] * missing, "labels": [[_IGNORED] * len(ids)] * missing}, features=rows.features)
    return concatenate_datasets([rows, empty])


class Order:
    """The trainer's sampler: the rows in ``grouped``'s order, then the rows that ``dealt_out`` added.

    accelerate deals the batches out in turn: process k of n gets the batches k, k + n, …, so what one process would
    see in an optimizer step is what all of them see in one.

    Args:
        grouped: ``data.batch_sampler`` over the data's rows.
    """

    def __init__(self, grouped: Any, batch_size: int, processes: int = 1) -> None:
        self.grouped, self.rows = grouped, len(grouped.lengths)
        self.added = -self.rows % (batch_size * processes) if processes > 1 else 0

    def __len__(self) -> int:
        return self.rows + self.added

    def __iter__(self) -> Iterator[int]:
        yield from self.grouped.indices()
        yield from range(self.rows, self.rows + self.added)

    def set_epoch(self, epoch: int) -> None:
        """Passed on."""
        self.grouped.set_epoch(epoch)


class WatchedCollator:
    """The trainer's own collator, with a note of every row that leaves it.

    Args:
        inner: gives ``input_ids``, ``labels`` and ``attention_mask``, padded on the right, (rows, tokens) each.
        known: digests of the rows of notebook 02.
        keep: how many distinct rows to keep for the audit.
    """

    def __init__(self, inner: Any, known: set[bytes], keep: int = 16) -> None:
        self.inner, self.known, self.keep = inner, known, keep
        self.seen: set[bytes] = set()
        self.foreign = self.longest = 0
        self.kept: list[tuple[list[int], list[int]]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collates, and compares each row without its padding with the data of notebook 02."""
        batch = self.inner(examples)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for ids, labels, length in zip(batch["input_ids"], batch["labels"], lengths, strict=True):
            self._note(ids[:length].numpy(), labels[:length].numpy(), bool((labels[length:] == _IGNORED).all()))
        self.longest = max(self.longest, batch["input_ids"].shape[1])
        return batch

    def _note(self, ids: Any, labels: Any, padding_ignored: bool) -> None:
        if len(ids) == 2 and padding_ignored and (labels == _IGNORED).all():
            return  # of dealt_out
        digest = row_digest(ids, labels)
        if digest not in self.known or not padding_ignored:
            self.foreign += 1
        elif digest not in self.seen:
            self.seen.add(digest)
            if len(self.kept) < self.keep:
                self.kept.append((ids.tolist(), labels.tolist()))
