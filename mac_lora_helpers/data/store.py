"""Accepted rows on disk: JSON lines in a temporary file, read back one at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


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
    """A temporary folder that goes when ``owner`` does."""
    folder = tempfile.mkdtemp(prefix="mac-lora-data-")
    weakref.finalize(owner, shutil.rmtree, folder, True)
    return Path(folder)


def _let_go(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # on a full disk the last rows cannot be flushed; that was told where it happened
        file.close()


class RowStore:
    """Rows appended to a temporary file, with the place each came from.

    Args:
        place: (part, number) → the place for people.
    """

    def __init__(self, place: Callable[[int, int], str]) -> None:
        self.folder = scratch_folder(self)
        self._file = (self.folder / "rows.jsonl").open("w+b")
        weakref.finalize(self, _let_go, self._file)
        self._offsets = array("Q", [0])
        self._places = array("L")
        self._keys = array("Q")
        self._prompts = array("Q")
        self._place = place

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, line: bytes, part: int, number: int, key: int, prompt_key: int) -> None:
        """Appends a row: its JSON line, its place, the hashes of its content and of its prompt."""
        self._file.write(line)
        self._offsets.append(self._offsets[-1] + len(line))
        self._places.append(part << 40 | number)
        self._keys.append(key)
        self._prompts.append(prompt_key)

    def close(self) -> RowStore:
        """No more rows; returns itself."""
        self._file.flush()
        return self

    @property
    def keys(self) -> np.ndarray:
        """Hash of each row's content, uint64."""
        return np.array(self._keys, dtype=np.uint64)

    @property
    def prompt_keys(self) -> np.ndarray:
        """Hash of everything before each row's last answer, uint64."""
        return np.array(self._prompts, dtype=np.uint64)

    def where(self, index: int) -> str:
        """The place that row ``index`` came from."""
        packed = self._places[index]
        return self._place(packed >> 40, packed & ((1 << 40) - 1))

    def line(self, index: int) -> bytes:
        """Row ``index`` as its JSON line."""
        start, end = self._offsets[index], self._offsets[index + 1]
        return os.pread(self._file.fileno(), end - start, start)

    def example(self, index: int) -> Example:
        """Row ``index``."""
        return self.parse(self.line(index), index)

    def parse(self, line: bytes, index: int) -> Example:
        """A line of this store as a row."""
        return Example(**json.loads(line), where=self.where(index))


class Examples(Sequence[Example]):
    """Some of a store's rows, in order; each is read when asked for."""

    def __init__(self, store: RowStore, indices: np.ndarray) -> None:
        self.store, self.indices = store, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Examples(self.store, self.indices[index])
        return self.store.example(int(self.indices[index]))

    def __iter__(self) -> Iterator[Example]:
        return (self.store.example(index) for index in self.indices.tolist())

    def lines(self) -> Iterator[bytes]:
        """The rows as JSON lines."""
        return (self.store.line(index) for index in self.indices.tolist())

    def with_lines(self) -> Iterator[tuple[bytes, Example]]:
        """Each row as its JSON line, and parsed."""
        for index in self.indices.tolist():
            line = self.store.line(index)
            yield line, self.store.parse(line, index)

    def __repr__(self) -> str:
        return f"Examples({len(self)} rows)"
