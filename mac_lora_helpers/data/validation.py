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
from mac_lora_helpers.data.problems import DataError, Fault, Faults, Problem, Problems, brief, file_error, listed, stops
from mac_lora_helpers.data.shapes import Reader
from mac_lora_helpers.data.sources import SPLITS, Part, Source
from mac_lora_helpers.data.store import Example, Examples, RowStore
from mac_lora_helpers.redaction import ISSUED, portable, scan

#: Rows that decide the shape.
SAMPLE = 64
Progress = Callable[[str, int], None]


@dataclass
class Found:
    """What a source holds.

    Attributes:
        shape, shape_reason: how rows are read, and why; recognized: each way that rows were read → how many.
        rows: the accepted rows. read, rejected: how many rows were read and refused.
        problems: the first few of each kind, notes included; counts: how many of each kind.
        ignored: fields of rows and of messages that nothing uses → in how many rows.
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
    recognized: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    split_of: np.ndarray | None = None
    rejected_file: Path | None = None


def validate(source: Source, config: Config, progress: Progress | None = None) -> Found:
    """Reads every row once, checks it and brings it into the one form.

    Args:
        progress: called now and then with ("rows checked", how many so far).

    Raises:
        DataError: bad rows under ``on_bad_rows=stop``, or no usable row at all; holds counts and places.
    """
    head = list(islice(((part, record) for part, record in source if record.fault is None), SAMPLE))
    place = head[0][0].place(head[0][1].number) if head else source.name
    check = _Checker(Reader([record.value for _, record in head], config, place) if head else None, source)
    parts = {id(part): index for index, part in enumerate(source.parts)}
    for part, record in source:
        check.record(part, parts[id(part)], record)
        if progress and check.read % 2000 == 0:
            progress("rows checked", check.read)
    return check.finish(source, config)


class _Checker:
    """Takes records one by one; keeps counts, problems and the accepted rows."""

    def __init__(self, reader: Reader | None, source: Source) -> None:
        self.reader = reader
        labels = [portable(part.label) for part in source.parts]
        self.store = RowStore(lambda part, number: labels[part].format(number))
        self.problems, self.read, self.rejected = Problems(), 0, 0
        self.split_of: list[int] = []
        self._rejected = (self.store.folder / "rejected.jsonl").open("wb")

    def record(self, part: Part, index: int, record: Any) -> None:
        """Checks one record and stores its row, or its problems."""
        if record.fault is not None and not stops([record.fault]):
            self.problems.add(record.fault, part.place(record.number))
            return
        self.read += 1
        faults: Faults = [record.fault] if record.fault is not None else []
        line, keys = (b"", (0, 0)) if faults else self._parse(record.value, faults)
        for fault in faults:
            self.problems.add(fault, part.place(record.number))
        if stops(faults) or any(fault.kind == "marked_bad" for fault in faults):
            self._reject(part.place(record.number), faults, record)
            return
        self.store.add(line, index, record.number, *keys)
        if part.split:
            self.split_of.append(SPLITS.index(part.split))

    def _parse(self, row: Any, faults: Faults) -> tuple[bytes, tuple[int, int]]:
        assert self.reader is not None  # a readable row gave it
        example = self.reader.parse(row, faults)
        if example is None:
            return b"", (0, 0)
        try:
            line = example.line()
        except UnicodeEncodeError:
            faults.append(Fault("lone_surrogate", _surrogate_field(example), "half of a two-part character stands alone"))
            return b"", (0, 0)
        if b"\\u0000" in line and "\0" in "".join(_strings(example)):
            faults.append(Fault("control_character", "", "a NUL character in the text"))
        for kind in dict.fromkeys(kind for kind, _, _ in scan(line, ISSUED)):
            faults.append(Fault("secret", "", f"the row holds what looks like a secret ({kind})"))
        if b"\\r\\n" in line:
            faults.append(Fault("crlf_in_text", "", "the text holds Windows line endings"))
        return line, content_keys(example)

    def _reject(self, where: str, faults: Faults, record: Any) -> None:
        self.rejected += 1
        row = portable(record.raw or brief(json.dumps(record.value, default=str), 1000))
        told = [fault._asdict() for fault in faults]
        line = json.dumps({"where": portable(where), "problems": told, "row": row}, ensure_ascii=False)
        self._rejected.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def finish(self, source: Source, config: Config) -> Found:
        """The result, or the error that tells all problems."""
        self._rejected.close()
        if self.problems.errors and config.on_bad_rows == "stop":
            bad = self.rejected - self.problems.counts["marked_bad"]
            raise DataError.of(f"{bad:,} of {self.read:,} rows cannot be used", self.problems, "or on_bad_rows=skip to leave them out")
        if not len(self.store):
            if self.problems.errors:
                raise DataError.of(f"none of the {self.read:,} rows can be used", self.problems)
            what = "every row is marked as bad" if self.rejected else "there are no rows"
            raise file_error("no_rows", source.name, what)
        store = self.store.close()
        split_of = np.array(self.split_of, dtype=np.int8) if source.predefined else None
        self._notes(source, split_of)
        assert self.reader is not None
        recognized = dict(self.reader.recognized.most_common())
        reason = "; ".join(f"{how}: {count:,} rows" for how, count in list(recognized.items())[:5])
        return Found(
            shape=self.reader.name,
            shape_reason=f"{self.reader.reason}; {reason}",
            rows=Examples(store, np.arange(len(store))),
            read=self.read,
            rejected=self.rejected,
            problems=self.problems.kept,
            counts=dict(self.problems.counts),
            source=source,
            recognized=recognized,
            ignored=dict(self.reader.ignored.most_common()),
            split_of=split_of,
            rejected_file=store.folder / "rejected.jsonl",
        )

    def _notes(self, source: Source, split_of: np.ndarray | None) -> None:
        keys, problems = self.store.keys, self.problems
        if copies := len(keys) - len(np.unique(keys)):
            problems.add(
                Fault("duplicates", "", f"{copies:,} rows are copies of another (apart from case and spaces)"), source.name, copies
            )
        if split_of is not None:
            leaked = int(np.isin(keys[split_of == 2], keys[split_of != 2], kind="sort").sum())
            if leaked:
                problems.add(Fault("in_several_splits", "", f"{leaked:,} test rows stand in another split too"), source.name, leaked)
        if self.reader and self.reader.ignored:
            told = listed((f"{name} ({count:,})" for name, count in self.reader.ignored.most_common()), width=40)
            problems.add(Fault("ignored_fields", "", f"not used: {told}"), source.name)


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
