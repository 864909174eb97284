"""Files read row by row, each row with its place: JSON Lines here, tables with csv and pyarrow.

No reader raises on a damaged row: it yields a record with a fault and goes on where it can, so one
pass finds everything. Of JSON Lines, CSV and Arrow files at most some rows are in memory.
"""

from __future__ import annotations

import ast
import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mac_lora_helpers.data.problems import Fault, brief, listed

#: A longer row is refused: about twenty times what the longest context holds.
MAX_ROW_BYTES = 10 * 2**20
_CHUNK = 2**16
#: How an archive starts → how it is opened.
_ARCHIVES = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ZSTD = b"\x28\xb5\x2f\xfd"
#: Byte order marks; the four-byte ones first.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
    codecs.BOM_UTF8: "utf-8-sig",
}  # fmt: skip
_SPACE = re.compile(r"[ \t\r\n]*")
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class Record(NamedTuple):
    """One row as read: its number (line or item, from 1), its fields or what is wrong with it."""

    number: int
    value: Any = None
    fault: Fault | None = None
    raw: str = ""


def _bad(number: int, kind: str, what: str, raw: str = "") -> Record:
    return Record(number, None, Fault(kind, "", what), raw)


def _assumed(what: str) -> Record:
    return _bad(1, "assumed", what)


def open_binary(path: Path, member: str = "") -> BinaryIO:
    """The file's bytes, unpacked if it starts like an archive; ``member``: the file inside a zip."""
    if member:
        return io.BufferedReader(zipfile.ZipFile(path).open(member))
    with path.open("rb") as stream:
        start = stream.read(8)
    if start.startswith(_ZSTD):
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))  # type: ignore[arg-type]
    return next((opener(path, "rb") for mark, opener in _ARCHIVES.items() if start.startswith(mark)), None) or path.open("rb")


def read(path: Path, form: str, member: str = "") -> Iterator[Record]:
    """Every record of a file; damage to the file itself ends it with a faulty record."""
    number = 0
    try:
        with open_binary(path, member) as stream:
            if form != "jsonl" and not stream.seekable():
                stream = io.BufferedReader(io.BytesIO(stream.read()))  # type: ignore[arg-type]
            for record in _READERS[form](stream):
                number = record.number
                yield record
    except DAMAGE as error:
        yield _bad(number + 1, "damaged_archive", f"the archive breaks off or is corrupt here: {brief(error)}")
    except OSError as error:
        archive = error.strerror is None and form not in ("parquet", "arrow")  # bz2 and zstd say so
        yield _bad(number + 1, "damaged_archive" if archive else "unreadable", f"cannot be read: {error.strerror or brief(error)}")


def encoding_of(stream: BinaryIO) -> str:
    """UTF-8 (with its mark), UTF-16, UTF-32, or Windows' cp1252 where the bytes are no UTF-8; goes back to the start."""
    start = stream.read(4)
    found = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "")
    if not found:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for part in chain([start], iter(partial(stream.read, _CHUNK), b"")):
                decoder.decode(part)
            decoder.decode(b"", True)
            found = "utf-8"
        except UnicodeDecodeError:
            found = "cp1252"
    stream.seek(0)
    return found


# JSON


def json_lines(stream: BinaryIO) -> Iterator[Record]:
    """One JSON object a line; blank lines are skipped."""
    mark = next((name for mark, name in _MARKS.items() if stream.peek(4).startswith(mark)), "")  # type: ignore[attr-defined]
    if mark.startswith("UTF-"):
        yield _assumed(f"the file is {mark} and was read as such")
        stream = _recoded(stream, mark)
    number, said = 0, False
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            yield _bad(number, "huge_row", f"a row of {_skip_line(stream, line):,} bytes; {MAX_ROW_BYTES:,} is the limit")
            continue
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            yield _bad(1, "bom", "the file starts with a byte order mark")
            line = line[3:]
        if line and not line.isspace():
            record = parse_line(number, line)
            if record.raw and not record.fault and not said:
                said = True
                yield _assumed("rows are written as Python prints them, not as JSON; they are read as such")
            yield record


def _recoded(stream: BinaryIO, encoding: str) -> BinaryIO:
    return io.BytesIO(stream.read().decode(encoding, "replace").encode())


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
        value = python_literal(text, dict)
        return Record(number, value, raw="Python") if value else _not_json(number, text, error)
    return _row(number, value, "row")


def _row(number: int, value: Any, what: str) -> Record:
    if isinstance(value, dict):
        return Record(number, value)
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true/false", type(None): "null"}
    kind = names.get(type(value), type(value).__name__)
    return _bad(number, "not_an_object", f"the {what} is {kind}, not an object", brief(value, 1000))


def python_literal(text: str, kind: type) -> Any:
    """A list or dict as Python prints it (``{'a': None}``); None if the text is none."""
    text = text.strip()
    if text[:1] + text[-1:] not in ("{}", "[]") or len(text) > MAX_ROW_BYTES or "'" not in text:
        return None
    try:
        value = ast.literal_eval(text)
        return value if isinstance(value, kind) and json.dumps(value) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _not_json(number: int, text: str, error: Exception) -> Record:
    if text.startswith("\ufeff"):
        return _bad(number, "bom_inside", "a byte order mark in the middle of the file", text[:1000])
    column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    reason = error.msg if isinstance(error, json.JSONDecodeError) else brief(error) or "nested too deeply"
    return _bad(number, "not_json", f"not JSON{column}: {reason[:1].lower() + reason[1:]}", text[:1000])


def _skip_line(stream: BinaryIO, start: bytes) -> int:
    """Reads to the end of an overlong line without keeping it; returns its length in bytes."""
    length, part = len(start), start
    while not part.endswith(b"\n") and (part := stream.readline(_CHUNK)):
        length += len(part)
    return length


def json_document(stream: BinaryIO) -> Iterator[Record]:
    """One JSON document: an array of rows, the same under a key, or columns of values."""
    encoding = encoding_of(stream)
    text = stream.read().decode("utf-8" if encoding == "cp1252" else encoding, "surrogateescape")
    if encoding.startswith("UTF-"):
        yield _assumed(f"the file is {encoding} and was read as such")
    start = _SPACE.match(text).end()  # type: ignore[union-attr]
    if text[start : start + 1] == "[":
        yield from _items(text, start + 1)
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield _not_json(1, text, error)
        return
    said, rows = inner_rows(value)
    if rows is None:
        yield _bad(1, "nested_json", "the file is one object, not a list of rows")
        return
    yield _assumed(said)
    yield from (_row(number, row, "item") for number, row in enumerate(rows, 1))


def _items(text: str, at: int) -> Iterator[Record]:
    """The items of an array, one at a time, so that good ones before the damage are known."""
    decoder, number, mark = json.JSONDecoder(), 0, ","
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    while mark == "," and not (number == 0 and text[at : at + 1] == "]"):
        number += 1
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            place = f"line {text.count(chr(10), 0, at) + 1}"
            yield _bad(number, "not_json", f"not JSON near {place}: {brief(error) or 'nested too deeply'}")
            return
        if bad := re.search("[\udc80-\udcff]", text[at:end]):
            yield _bad(number, "encoding", f"byte 0x{ord(bad[0]) - 0xDC00:02x} near item {number} is not UTF-8")
        elif end - at > MAX_ROW_BYTES:
            yield _bad(number, "huge_row", f"an item of {end - at:,} characters; {MAX_ROW_BYTES:,} is the limit")
        else:
            yield _row(number, value, "item")
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        mark = text[at : at + 1]
        at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    if number and mark != "]":
        yield _bad(number + 1, "not_json", f"a comma or ] is missing before {mark!r}" if mark else "the file ends before the closing ]")
    elif text[at + (number == 0) :].strip():
        yield _bad(number + 1, "not_json", "there is more text after the closing ]")


def inner_rows(value: Any) -> tuple[str, list[Any] | None]:
    """The rows that one JSON object holds: a list of objects under one key, or columns of equal length."""
    fields = value if isinstance(value, dict) else {}
    lists = {key: item for key, item in fields.items() if isinstance(item, list) and item and isinstance(item[0], dict)}
    if len(lists) == 1 and not any(isinstance(item, list) for key, item in fields.items() if key not in lists):
        (key, rows) = lists.popitem()
        return f"the rows are the list under {brief(key)!r}", rows
    indexed = bool(fields) and all(isinstance(item, dict) for item in fields.values())
    columns = {key: list(item.values()) for key, item in fields.items()} if indexed else fields
    if not columns or not all(isinstance(column, list) for column in columns.values()) or len({*map(len, columns.values())}) != 1:
        return "", None
    return f"the file holds columns: {listed(columns)}", [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]


# Tables of text


def csv_rows(stream: BinaryIO, tabs: bool = False) -> Iterator[Record]:
    """A CSV file with a header line; values are text. What was assumed about it is told."""
    csv.field_size_limit(MAX_ROW_BYTES)
    encoding = encoding_of(stream)
    if encoding not in ("utf-8", "utf-8-sig"):
        yield _assumed(f"the file is not UTF-8; it was read as {'Windows text (cp1252)' if encoding == 'cp1252' else encoding}")
    text = io.TextIOWrapper(stream, encoding=encoding, errors="backslashreplace", newline="")
    sample = text.read(_CHUNK)
    lines = chain((line for line in io.StringIO(sample + text.readline(), newline="")), text)
    if "\n" not in sample and "\r" in sample:
        yield _assumed("lines end with a carriage return alone, as on old Macs")
        lines = iter((sample + text.read()).replace("\r", "\n").splitlines(keepends=True))
        sample = sample.replace("\r", "\n")
    skipped = 0
    if declared := re.match(r"sep=(.)\r?\n", sample):
        next(lines)
        skipped, sample = 1, sample[declared.end() :]
        yield _assumed(f"the first line says that {declared[1]!r} separates the fields")
    delimiter = declared[1] if declared else "\t" if tabs else _delimiter(sample)
    if delimiter != "," and not tabs and not declared:
        yield _assumed(f"fields are separated by {delimiter!r}")
    quoting = _quoting(sample, delimiter)
    if quoting == csv.QUOTE_NONE:
        yield _assumed("quotes are part of the text; no field is quoted")
    rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        yield from _csv_records(rows, skipped)
    except csv.Error as error:
        kind = "huge_row" if "field limit" in str(error) else "damaged_csv"
        yield _bad(skipped + rows.line_num, kind, f"not CSV: {brief(error)}")
    finally:
        text.detach()  # the caller closes the file


def _delimiter(sample: str) -> str:
    """The sign that cuts the header and the next lines into equally many fields, a comma if none does."""
    head = sample.splitlines()[:5]
    counts = {sign: [len(row) for row in csv.reader(head, delimiter=sign)] for sign in ",;\t|"}
    even = [sign for sign, found in counts.items() if found and found[0] > 1 and len(set(found[:2])) == 1]
    return even[0] if even else next((sign for sign, found in counts.items() if found and found[0] > 1), ",")


def _quoting(sample: str, delimiter: str) -> int:
    """No quoting where fields start with a quote but do not end with it, as spreadsheets' tab separated text has them."""
    whole = sample.splitlines(keepends=True)[: -1 if len(sample) >= _CHUNK else None]
    plain = [len(row) for row in csv.reader(whole, delimiter=delimiter, quoting=csv.QUOTE_NONE) if row]
    try:
        for _ in csv.reader(whole, delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        unquoted = "expected after" in str(error) and len(set(plain)) == 1 and plain[0] > 1 and '""' not in sample
        return csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL
    return csv.QUOTE_MINIMAL


def _csv_records(rows: Any, skipped: int) -> Iterator[Record]:
    header = [name.strip() for name in next(rows, [])]
    ahead = [next(rows, None)]
    unnamed = [index for index, name in enumerate(header) if not name]
    index_column = unnamed == [0] and len(header) > 1
    empty_end = unnamed == [len(header) - 1] and len(header) > 1 and not (ahead[0] and "".join(ahead[0][unnamed[0] :]))
    if (unnamed and not index_column and not empty_end) or len(set(header)) != len(header):
        yield _bad(1 + skipped, "csv_header", f"the header has an empty or repeated name: {listed(header)}")
        return
    if unnamed:
        yield _assumed("the first column has no name: an index, left out" if index_column else "the last column is empty and was left out")
    line, drop = 2 + skipped, unnamed[0] if unnamed else None
    for row in chain(filter(None, ahead), rows):
        if row and len(row) != len(header):
            yield _bad(line, "csv_columns", f"{len(row)} fields, but the header has {len(header)}", brief(row, 1000))
        elif row:
            yield Record(line, {name: value for index, (name, value) in enumerate(zip(header, row, strict=True)) if index != drop})
        line = rows.line_num + 1 + skipped


# Arrow


def parquet_rows(stream: BinaryIO) -> Iterator[Record]:
    """The rows of a Parquet file, some at a time."""
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        yield from parquet.ParquetFile(stream).iter_batches(batch_size=128)

    return arrow_rows(batches())


def arrow_file(stream: BinaryIO) -> Iterator[Record]:
    """The rows of an Arrow or Feather file or stream."""
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        if stream.peek(6).startswith(b"ARROW1"):  # type: ignore[attr-defined]
            file = pa.ipc.open_file(stream)
            yield from (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            yield from pa.ipc.open_stream(stream)

    return arrow_rows(batches())


def arrow_rows(batches: Iterator[Any]) -> Iterator[Record]:
    """The rows of Arrow batches, without the nulls that Arrow fills in where other rows have a key."""
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            for value in batch.to_pylist():
                number += 1
                yield Record(number, {field.name: without_padding(value[field.name], field.type) for field in batch.schema})
    except (pa.ArrowException, OSError, ValueError) as error:
        yield _bad(number + 1, "damaged_parquet", f"the file cannot be read here: {brief(error, 120)}")


def without_padding(value: Any, kind: Any) -> Any:
    """Structs without their null keys, at every depth; a key that is null in every row was written by somebody and stays."""
    import pyarrow as pa

    if isinstance(value, dict) and pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        real = (field for field in fields if value[field.name] is not None or pa.types.is_null(field.type))
        return {field.name: without_padding(value[field.name], field.type) for field in real}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [without_padding(item, kind.value_type) for item in value]
    return value


_READERS = {
    "jsonl": json_lines, "json": json_document, "csv": csv_rows, "tsv": partial(csv_rows, tabs=True),
    "parquet": parquet_rows, "arrow": arrow_file,
}  # fmt: skip
