"""Token ids and labels on disk, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.data.masking import Row

#: Label of a token that is not trained.
IGNORE = -100


class TokenDigest:
    """SHA-256 over row lengths, ids and labels, the same however the rows are batched."""

    def __init__(self) -> None:
        self._hashes = [hashlib.sha256() for _ in range(3)]

    def update(self, lengths: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
        """Adds rows: their lengths, then all ids and all labels one after the other."""
        for digest, values in zip(self._hashes, (lengths, ids, labels), strict=True):
            digest.update(np.ascontiguousarray(values, dtype="<i4"))

    def hexdigest(self) -> str:
        """The digest of everything added."""
        return hashlib.sha256("".join(digest.hexdigest() for digest in self._hashes).encode()).hexdigest()


class TokenWriter:
    """Writes rows to an Arrow stream with the columns input_ids and labels.

    Args:
        loss_on: 'assistant' (every span), 'completion' (the last span) or 'all'.
    """

    def __init__(self, path: Path, loss_on: str) -> None:
        import pyarrow as pa

        self.path, self.loss_on = path, loss_on
        column = pa.list_(pa.int32())
        self._schema = pa.schema([("input_ids", column), ("labels", column)])
        self._writer = pa.ipc.new_stream(str(path), self._schema)
        self._digest = TokenDigest()
        self.lengths: list[np.ndarray] = []
        self.supervised = 0

    def add(self, rows: list[Row]) -> None:
        """Appends rows."""
        if not rows:
            return
        lengths = np.fromiter((len(row.ids) for row in rows), np.int32, len(rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = np.concatenate([np.array(row.ids, dtype=np.int32) for row in rows])
        labels = self._labels(rows, ids, offsets)
        self._write(lengths, offsets, ids, labels)

    def _labels(self, rows: list[Row], ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        labels = ids.copy() if self.loss_on == "all" else np.full_like(ids, IGNORE)
        for row, offset in zip(rows, offsets[:-1].tolist(), strict=True):
            if self.loss_on == "all":
                for start, end in row.skipped:
                    labels[offset + start : min(offset + end, offset + len(row.ids))] = IGNORE
                continue
            for start, end in row.spans if self.loss_on == "assistant" else row.spans[-1:]:
                labels[offset + start : offset + end] = ids[offset + start : offset + end]
        return labels

    def _write(self, lengths: np.ndarray, offsets: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
        import pyarrow as pa

        columns = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)) for values in (ids, labels)]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._digest.update(lengths, ids, labels)
        self.lengths.append(lengths)
        self.supervised += int((labels != IGNORE).sum())

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def all_lengths(self) -> np.ndarray:
        """Length of each row in tokens."""
        return np.concatenate(self.lengths) if self.lengths else np.zeros(0, np.int32)

    def digest(self) -> str:
        """Fingerprint of the rows written."""
        return self._digest.hexdigest()


def file_digest(path: Path) -> str:
    """The digest of a token file, read a batch at a time.

    Raises:
        pyarrow.ArrowInvalid, OSError: the file is damaged.
    """
    import pyarrow as pa

    digest = TokenDigest()
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            ids, labels = batch.column("input_ids"), batch.column("labels")
            lengths = np.diff(ids.offsets.to_numpy())
            digest.update(lengths, ids.flatten().to_numpy(), labels.flatten().to_numpy())
    return digest.hexdigest()


def fingerprint(parts: dict[str, Any]) -> str:
    """One SHA-256 over all that decides what is trained on; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def open_tokens(path: Path) -> Any:
    """A token file as a memory-mapped ``datasets.Dataset``."""
    from datasets import Dataset

    return Dataset.from_file(str(path))
