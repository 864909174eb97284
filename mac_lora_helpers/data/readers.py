"""Files read row by row: JSON Lines, JSON arrays, CSV and Parquet, each row with its place.

No reader raises on a damaged row: it yields a record with a fault and goes on where it can, so one
pass finds everything. At most one row (``MAX_ROW_BYTES``) is in memory.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mac_lora_helpers.data.problems import Fault, brief, listed

#: A longer row is refused: about twenty times what the longest context holds.
MAX_ROW_BYTES = 10 * 2**20
_CHUNK = 2**16
#: Byte order marks of encodings that are not UTF-8; the four-byte ones first.
_FOREIGN = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class Record(NamedTuple):
    """One row as read: its number (line or item, from 1), its fields or what is wrong with it."""

    number: int
    value: Any = None
    fault: Fault | None = None
    raw: str = ""


def _bad(number: int, kind: str, what: str, raw: str = "") -> Record:
    return Record(number, None, Fault(kind, "", what), raw)


def open_binary(path: Path) -> BinaryIO:
    """The file's bytes, decompressed if it starts like gzip."""
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


def read(path: Path, form: str) -> Iterator[Record]:
    """Every record of a file; damage to the file itself ends it with a faulty record."""
    number = 0
    try:
        for record in _READERS[form](path):
            number = record.number
            yield record
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield _bad(number + 1, "damaged_gzip", f"the gzip archive breaks off or is corrupt here: {error}")
    except OSError as error:
        yield _bad(number + 1, "unreadable", f"cannot be read: {error.strerror or brief(error)}")


def json_lines(path: Path) -> Iterator[Record]:
    """One JSON object a line; blank lines are skipped."""
    with open_binary(path) as stream:
        number = 0
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                yield _bad(number, "huge_row", f"a row of {_skip_line(stream, line):,} bytes; {MAX_ROW_BYTES:,} is the limit")
                continue
            if number == 1:
                if foreign := _foreign(line):
                    yield foreign
                    return
                if line.startswith(codecs.BOM_UTF8):
                    yield _bad(1, "bom", "the file starts with a byte order mark")
                    line = line[3:]
            if not line.isspace() and line:
                yield parse_line(number, line)


def parse_line(number: int, line: bytes) -> Record:
    """A line of a JSON Lines file."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raw = line[:1000].decode("utf-8", "backslashreplace")
        return _bad(number, "encoding", f"byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8", raw)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _not_json(number, text, error)
    if not isinstance(value, dict):
        return _bad(number, "not_an_object", f"the row is {_json_type(value)}, not an object", text[:1000])
    return Record(number, value)


def _not_json(number: int, text: str, error: Exception) -> Record:
    if text.startswith("\ufeff"):
        return _bad(number, "bom_inside", "a byte order mark in the middle of the file", text[:1000])
    column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    reason = error.msg if isinstance(error, json.JSONDecodeError) else brief(error) or "nested too deeply"
    return _bad(number, "not_json", f"not JSON{column}: {reason[:1].lower() + reason[1:]}", text[:1000])


def _json_type(value: Any) -> str:
    names = {
        list: "an array",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "true/false",
        type(None): "null",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _foreign(start: bytes) -> Record | None:
    for mark, name in _FOREIGN.items():
        if start.startswith(mark):
            return _bad(1, "encoding", f"the file is {name}, not UTF-8")
    return None


def _skip_line(stream: BinaryIO, start: bytes) -> int:
    """Reads to the end of an overlong line without keeping it; returns its length in bytes."""
    length, part = len(start), start
    while not part.endswith(b"\n") and (part := stream.readline(_CHUNK)):
        length += len(part)
    return length


def json_array(path: Path) -> Iterator[Record]:
    """The items of one JSON array, parsed as the file is read."""
    with open_binary(path) as stream:
        if foreign := _foreign(stream.peek(4)[:4]):  # type: ignore[attr-defined]
            yield foreign
            return
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="strict")
        scanner = _ArrayScanner(text)
        number = 0
        try:
            if scanner.mark() == "{":
                yield _bad(1, "nested_json", "the file is one object over several lines, not a list of rows")
                return
            for value in scanner:
                number += 1
                ok = isinstance(value, dict)
                yield (
                    Record(number, value)
                    if ok
                    else _bad(number, "not_an_object", f"the item is {_json_type(value)}, not an object", brief(value, 1000))
                )
        except UnicodeDecodeError as error:
            yield _bad(number + 1, "encoding", f"byte 0x{error.object[error.start]:02x} near item {number + 1} is not UTF-8")
        except OverflowError:
            yield _bad(number + 1, "huge_row", f"an item of more than {MAX_ROW_BYTES:,} characters")
        except (ValueError, RecursionError) as error:
            yield _bad(number + 1, "not_json", f"not JSON near line {scanner.line}: {brief(error) or 'nested too deeply'}")


class _ArrayScanner:
    """Yields the items of a JSON array from a text stream, one at a time."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self.stream, self.buffer, self.line, self.ended = stream, "", 1, False
        self.decoder = json.JSONDecoder()

    def _more(self, size: int = _CHUNK) -> bool:
        part = self.stream.read(size)
        self.buffer += part
        self.ended = not part
        return bool(part)

    def _take(self, count: int) -> None:
        self.line += self.buffer.count("\n", 0, count)
        self.buffer = self.buffer[count:]

    def mark(self) -> str:
        """Drops white space; returns the next character, or nothing at the end of the file."""
        while True:
            stripped = self.buffer.lstrip()
            self._take(len(self.buffer) - len(stripped))
            if self.buffer or not self._more():
                return self.buffer[:1]

    def _value(self) -> Any:
        size = _CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer)
            except json.JSONDecodeError:
                if len(self.buffer) > MAX_ROW_BYTES:
                    raise OverflowError from None
                size *= 2
                if not self._more(size):
                    raise
                continue
            if end == len(self.buffer) and self._more():  # a number may go on in the next chunk
                continue
            self._take(end)
            return value

    def __iter__(self) -> Iterator[Any]:
        if self.mark() != "[":
            raise ValueError("the file does not start with [")
        self._take(1)
        if self.mark() != "]":
            yield self._value()
            while (mark := self.mark()) == ",":
                self._take(1)
                self.mark()
                yield self._value()
            if mark != "]":
                raise ValueError(f"a comma or ] is missing before {mark!r}" if mark else "the file ends before the closing ]")
        self._take(1)
        if self.mark():
            raise ValueError("there is more text after the closing ]")


def csv_rows(path: Path, delimiter: str = ",") -> Iterator[Record]:
    """A CSV file with a header line; values are text."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with open_binary(path) as stream:
        if foreign := _foreign(stream.peek(4)[:4]):  # type: ignore[attr-defined]
            yield foreign
            return
        rows = csv.reader(_text_lines(stream), delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            if not all(header) or len(set(header)) != len(header):
                yield _bad(1, "csv_header", f"the header has an empty or repeated name: {listed(header)}")
                return
            yield from _csv_records(rows, header)
        except UnicodeDecodeError as error:
            yield _bad(rows.line_num + 1, "encoding", f"byte 0x{error.object[error.start]:02x} is not UTF-8")
        except csv.Error as error:
            kind = "huge_row" if "field limit" in str(error) else "damaged_csv"
            yield _bad(rows.line_num, kind, f"not CSV: {brief(error)}")


def _text_lines(stream: BinaryIO) -> Iterator[str]:
    """The file's lines as text, each decoded by itself, so that a bad byte is found in its line."""
    line = stream.readline(MAX_ROW_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    while line:
        yield line.decode("utf-8")
        line = stream.readline(MAX_ROW_BYTES + 1)


def _csv_records(rows: Any, header: list[str]) -> Iterator[Record]:
    line = 2
    for row in rows:
        if row and len(row) != len(header):
            yield _bad(line, "csv_columns", f"{len(row)} fields, but the header has {len(header)}", brief(row, 1000))
        elif row:
            yield Record(line, dict(zip(header, row, strict=True)))
        line = rows.line_num + 1


def tsv_rows(path: Path) -> Iterator[Record]:
    """The same with tabs."""
    return csv_rows(path, "\t")


def parquet_rows(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file, a batch at a time."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=128):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(number, value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield _bad(number + 1, "damaged_parquet", f"the Parquet file cannot be read here: {brief(error, 120)}")


_READERS = {"jsonl": json_lines, "json": json_array, "csv": csv_rows, "tsv": tsv_rows, "parquet": parquet_rows}
