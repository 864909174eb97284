"""One pass over the source: every row checked, every problem found, good rows stored in one form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.conversation import Faults
from mac_lora_helpers.data.problems import NOTES, DataError, Fault, Problem, Problems, brief, file_error, listed
from mac_lora_helpers.data.shapes import Shape, detect
from mac_lora_helpers.data.sources import Part, Source
from mac_lora_helpers.data.store import Example, Examples, RowStore
from mac_lora_helpers.files import portable

#: Rows that decide the shape.
SAMPLE = 64
Progress = Callable[[str, int], None]


@dataclass
class Found:
    """What a source holds.

    Attributes:
        shape, shape_reason: how rows are read, and why.
        rows: the accepted rows. read, rejected: how many rows were read and refused.
        problems: the first few of each kind, notes included; counts: how many of each kind.
        split_of: for each accepted row, the index of its predefined split; None when rows are split here.
    """

    shape: str
    shape_reason: str
    rows: Examples
    read: int
    rejected: int
    problems: list[Problem]
    counts: dict[str, int]
    source: Source
    split_of: np.ndarray | None = None
    rejected_file: Path | None = None
    split_names: list[str] = field(default_factory=list)

    def table(self) -> list[tuple[str, str, str]]:
        """(name, value, meaning) rows for people."""
        rows = [
            ("source", self.source.name, "where the rows come from"),
            ("shape", self.shape, self.shape_reason),
            ("rows read", f"{self.read:,}", "rows in the source"),
            ("rows accepted", f"{len(self.rows):,}", "rows that passed every check"),
            ("rows rejected", f"{self.rejected:,}", "rows with a problem"),
        ]
        fixes = {problem.kind: problem for problem in self.problems}
        return rows + [(kind, f"{count:,}", f"{fixes[kind].what}; to do: {fixes[kind].fix}") for kind, count in self.counts.items()]


def validate(source: Source, config: Config, progress: Progress | None = None) -> Found:
    """Reads every row once, checks it and brings it into the one form.

    Args:
        progress: called now and then with ("rows checked", how many so far).

    Raises:
        DataError: bad rows under ``on_bad_rows=stop``, or no usable row at all; holds counts and places.
    """
    shape = _detect(source, config)
    parts = source.parts
    store = RowStore(lambda part, number: portable(parts[part].place(number)))
    check = _Checker(shape, store)
    for part, record in source:
        check.record(part, parts.index(part) if len(parts) > 1 else 0, record)
        if progress and check.read % 2000 == 0:
            progress("rows checked", check.read)
    return check.finish(source, config)


def _detect(source: Source, config: Config) -> Shape | None:
    """The shape of the first readable rows; None when there is none."""
    head = list(islice(((part, record) for part, record in source if record.fault is None), SAMPLE))
    if not head:
        return None
    part, record = head[0]
    return detect([record.value for _, record in head], config, part.place(record.number))


class _Checker:
    """Takes records one by one; keeps counts, problems and the accepted rows."""

    def __init__(self, shape: Shape | None, store: RowStore) -> None:
        self.shape, self.store = shape, store
        self.problems, self.read, self.rejected = Problems(), 0, 0
        self.split_of: list[int] = []
        self.ignored: dict[str, int] = {}
        self._rejected = (store.folder / "rejected.jsonl").open("wb")

    def record(self, part: Part, index: int, record: Any) -> None:
        """Checks one record and stores its row, or its problems."""
        if record.fault is not None and record.fault.kind in NOTES:
            self.problems.add(record.fault, part.place(record.number))
            return
        self.read += 1
        faults: Faults = [record.fault] if record.fault is not None else []
        line, keys = (b"", (0, 0)) if faults else self._parse(record.value, faults)
        if faults:
            self._report(part.place(record.number), faults)
            if any(fault.kind not in NOTES for fault in faults):
                self._reject(part.place(record.number), faults, record)
                return
        self.store.add(line, index, record.number, *keys)
        if part.split:
            self.split_of.append(_SPLIT_NAMES.index(part.split))

    def _parse(self, row: Any, faults: Faults) -> tuple[bytes, tuple[int, int]]:
        assert self.shape is not None  # a readable row gave the shape
        before = len(faults)
        messages, text, tools = self.shape.parse(row, faults)
        if any(fault.kind not in NOTES for fault in faults[before:]):
            return b"", (0, 0)
        if len(row) > len(self.shape.fields) and len(self.ignored) < 50:
            self.ignored.update(dict.fromkeys(key for key in row if key not in self.shape.fields and key not in _USED))
        example = Example(messages, text, tools)
        try:
            line = example.line()
        except UnicodeEncodeError:
            faults.append(Fault("lone_surrogate", _surrogate_field(example), "half of a two-part character stands alone"))
            return b"", (0, 0)
        if b"\\u0000" in line and "\0" in "".join(_strings(example)):
            faults.append(Fault("control_character", "", "a NUL character in the text"))
        if b"\\r\\n" in line:
            faults.append(Fault("crlf_in_text", "", "the text holds Windows line endings"))
        return line, content_keys(example)

    def _report(self, where: str, faults: Faults) -> None:
        for fault in faults:
            self.problems.add(fault, where)

    def _reject(self, where: str, faults: Faults, record: Any) -> None:
        self.rejected += 1
        row = record.raw or brief(json.dumps(record.value, default=str), 1000)
        told = [{"kind": fault.kind, "field": fault.field, "what": fault.what} for fault in faults]
        line = json.dumps({"where": portable(where), "problems": told, "row": row}, ensure_ascii=False)
        self._rejected.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def finish(self, source: Source, config: Config) -> Found:
        """The result, or the error that tells all problems."""
        self._rejected.close()
        if self.problems.errors and config.on_bad_rows == "stop":
            raise DataError.of(
                f"{self.rejected:,} of {self.read:,} rows cannot be used", self.problems, "or on_bad_rows=skip to leave them out"
            )
        if not len(self.store):
            if self.problems.errors:
                raise DataError.of(f"none of the {self.read:,} rows can be used", self.problems)
            raise file_error("no_rows", source.name, "there are no rows")
        self._notes(source)
        assert self.shape is not None
        return Found(
            self.shape.name,
            self.shape.reason,
            Examples(self.store.close(), np.arange(len(self.store))),
            self.read,
            self.rejected,
            self.problems.kept,
            dict(self.problems.counts),
            source,
            np.array(self.split_of, dtype=np.int8) if source.predefined else None,
            self.store.folder / "rejected.jsonl",
            list(_SPLIT_NAMES),
        )

    def _notes(self, source: Source) -> None:
        copies = len(self.store) - len(np.unique(self.store.keys))
        if copies:
            self.problems.add(Fault("duplicates", "", f"{copies:,} rows are copies of another (apart from case and spaces)"), source.name)
            self.problems.counts["duplicates"] = copies
        if self.ignored:
            self.problems.add(Fault("ignored_fields", "", f"not used: {listed(self.ignored)}"), source.name)


_SPLIT_NAMES = ("train", "valid", "test")
_USED = ("tools", "system", "input", "history")


def _strings(example: Example) -> list[str]:
    return [example.text or "", *(message["content"] for message in example.messages or [])]


def _surrogate_field(example: Example) -> str:
    """The field that holds a lone surrogate."""
    for index, message in enumerate(example.messages or []):
        try:
            json.dumps(message, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f"messages[{index}].content"
    return "text" if example.text is not None else "tools"


def content_keys(example: Example) -> tuple[int, int]:
    """Hashes of the content and of everything before the last answer; case and white space do not count."""
    if example.text is not None:
        key = _digest(blake2b(_plain(example.text), digest_size=8))
        return key, key
    messages = example.messages or []
    state = blake2b(_plain("\x1f".join(f"{m['role']}\x1e{m['content']}" for m in messages[:-1])), digest_size=8)
    prompt = _digest(state)
    last = messages[-1]
    state.update(b"\x1f" + _plain(f"{last['content']}\x1e{last.get('tool_calls', '')}"))
    return _digest(state), prompt


def _plain(text: str) -> bytes:
    return " ".join(text.split()).casefold().encode()


def _digest(state: Any) -> int:
    return int.from_bytes(state.digest(), "little")


def rejected_rows(found: Found) -> Iterator[dict[str, Any]]:
    """The rejected rows with their reasons."""
    if found.rejected_file and found.rejected_file.exists():
        with found.rejected_file.open(encoding="utf-8") as stream:
            yield from (json.loads(line) for line in stream)
