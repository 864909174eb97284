"""Accepted rows in their final form: JSON lines with their places in a ``datasets.Dataset`` that lies on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.files import Scratch

#: Rows that are read or written together.
BATCH = 256


@dataclass(frozen=True)
class Example:
    """One row in its final form: messages (with tools, if any) or text.

    ``where`` is the file and line it came from.
    """

    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    where: str = ""

    def to_dict(self) -> dict[str, Any]:
        """``{"messages": […]}`` or ``{"text": …}``, with ``tools`` if there are any."""
        if self.text is not None:
            return {"text": self.text}
        return {"messages": self.messages} | ({"tools": self.tools} if self.tools else {})

    def line(self) -> bytes:
        """The row as one JSON line in UTF-8.

        Raises:
            UnicodeEncodeError: a lone surrogate in it.
        """
        return json.dumps(self.to_dict(), ensure_ascii=False).encode() + b"\n"


def scratch_folder(owner: object) -> Path:
    """A temporary folder that goes when ``owner`` does; those of processes that were killed go now."""
    return Scratch("data", owner=owner).path


class RowStore:
    """Rows appended to an Arrow file, each with its place and the hashes of its content and of its prompt.

    Args:
        place: (part, number) → the place for people.
    """

    def __init__(self, place: Callable[[int, int], str]) -> None:
        import pyarrow as pa

        self.folder = scratch_folder(self)
        self.place, self.rows = place, None
        types = {"line": pa.large_binary(), "part": pa.int32(), "number": pa.int64(), "key": pa.uint64(), "prompt_key": pa.uint64()}
        self._schema = pa.schema(list(types.items()))
        self._writer = pa.ipc.new_stream(str(self.folder / "rows.arrow"), self._schema)
        self._waiting: list[tuple[bytes, int, int, int, int]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, line: bytes, part: int, number: int, key: int, prompt_key: int) -> None:
        """Appends a row: its JSON line, its place, the hashes of its content and of its prompt."""
        self._waiting.append((line, part, number, key, prompt_key))
        self._count += 1
        if len(self._waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = [pa.array(list(column), field.type) for column, field in zip(zip(*self._waiting, strict=True), self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._waiting = []

    def close(self) -> RowStore:
        """No more rows; returns itself, with ``rows``, the ``datasets.Dataset`` of them."""
        from datasets import Dataset

        if self._waiting:
            self._flush()
        self._writer.close()
        self.rows = Dataset.from_file(str(self.folder / "rows.arrow")).with_format("arrow")
        return self

    @property
    def keys(self) -> np.ndarray:
        """Hash of each row's content, uint64."""
        return self.rows.data.column("key").to_numpy()

    @property
    def prompt_keys(self) -> np.ndarray:
        """Hash of everything before each row's last answer, uint64."""
        return self.rows.data.column("prompt_key").to_numpy()


class Examples(Sequence[Example]):
    """Some of a store's rows, in order; each is read when asked for."""

    def __init__(self, store: RowStore, indices: np.ndarray) -> None:
        self.store, self.indices = store, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Examples(self.store, self.indices[index])
        return next(iter(Examples(self.store, self.indices[index : index + 1 or None])))

    def __iter__(self) -> Iterator[Example]:
        return (example for _, example in self.with_lines())

    def lines(self) -> Iterator[bytes]:
        """The rows as JSON lines."""
        return (row[0] for row in self._rows())

    def with_lines(self) -> Iterator[tuple[bytes, Example]]:
        """Each row as its JSON line, and parsed."""
        for line, part, number in self._rows():
            yield line, Example(**json.loads(line), where=self.store.place(part, number))

    def _rows(self) -> Iterator[tuple[bytes, int, int]]:
        for start in range(0, len(self.indices), BATCH):
            table = self.store.rows[self.indices[start : start + BATCH].tolist()]
            yield from zip(*(table.column(name).to_pylist() for name in ("line", "part", "number")), strict=True)

    def __repr__(self) -> str:
        return f"Examples({len(self)} rows)"
