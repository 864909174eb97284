"""Where rows come from: the embedded data set, local files, the Hub."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.data import readers
from mac_lora_helpers.data.problems import DataError, Fault, Problems, listed
from mac_lora_helpers.data.readers import Record
from mac_lora_helpers.files import portable

_FORMS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "tsv": "tsv", "parquet": "parquet", "pq": "parquet"}
_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Part:
    """One file, or one Hub split: rows with their numbers.

    Args:
        label: how places in it are told, with ``{}`` for the row's number.
        records: opens it and yields its records; may be called again.
        split: the split that all of its rows belong to; empty when they are split here.
    """

    label: str
    records: Callable[[], Iterator[Record]]
    split: str = ""

    def place(self, number: int) -> str:
        """Where a row stands, for people."""
        return self.label.format(number)


@dataclass(frozen=True)
class Source:
    """Rows with their provenance, read as they are asked for.

    Attributes:
        name: for people. kind: 'embedded', 'files' or 'hub'. form: 'jsonl', 'csv', … of the first part.
    """

    name: str
    kind: str
    parts: list[Part]
    form: str
    notes: list[str] = field(default_factory=list)

    @property
    def predefined(self) -> bool:
        """Whether the rows come with their splits."""
        return any(part.split for part in self.parts)

    def __iter__(self) -> Iterator[tuple[Part, Record]]:
        for part in self.parts:
            for record in part.records():
                yield part, record


def load(config: Config) -> Source:
    """Opens the source that the parameters name; reads no rows yet from files.

    Raises:
        DataError: files that are missing, empty or of an unknown kind, all of them at once.
        InputError: a Hub data set that cannot be had, with the reason.
    """
    if config.data_patterns:
        return _from_files(config.data_patterns)
    if config.dataset_id == EMBEDDED:
        return _embedded()
    from mac_lora_helpers.data.hub import load_hub

    return load_hub(config)


def _embedded() -> Source:
    from mac_lora_helpers import smoke

    files = {name: Path(path) for name, path in smoke.data_files().items() if name in _SPLITS}
    parts = [_file_part(path, "jsonl", label=f"embedded {path.name}:{{}}", split=name) for name, path in files.items()]
    return Source("the embedded data set", "embedded", parts, "jsonl")


def _from_files(patterns: list[str]) -> Source:
    problems = Problems()
    paths = _expand(patterns, problems)
    forms = {path: form for path in paths if (form := _form_of(path, problems))}
    if problems.errors:
        raise DataError.of("the data files cannot be used", problems)
    names = [portable(str(path)) for path in paths]
    return Source(
        listed(names, 4, width=200), "files", [_file_part(path, form) for path, form in forms.items()], next(iter(forms.values()))
    )


def _file_part(path: Path, form: str, label: str = "", split: str = "") -> Part:
    name = str(path).replace("{", "{{").replace("}", "}}")
    places = {"json": f"{name}: item {{}}", "parquet": f"{name}: row {{}}"}
    return Part(label or places.get(form, f"{name}:{{}}"), lambda: readers.read(path, form), split)


def _expand(patterns: list[str], problems: Problems) -> list[Path]:
    """Paths that the patterns name, each once, globs in sorted order."""
    paths: dict[Path, None] = {}
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            remote = "://" in pattern
            what = "an address, not a local file; use dataset_id for Hub data" if remote else "no such file, and no file matches it"
            problems.add(Fault("missing_file", "", what), pattern)
        paths.update(dict.fromkeys(map(Path, found)))
    return list(paths)


def _form_of(path: Path, problems: Problems) -> str:
    """The file's format by its name, else by how it starts; empty after adding a problem."""
    if path.is_dir():
        problems.add(Fault("is_directory", "", "a folder, not a file"), str(path))
        return ""
    try:
        if path.stat().st_size == 0:
            problems.add(Fault("empty_file", "", "the file is empty"), str(path))
            return ""
        with readers.open_binary(path) as stream:
            start = stream.read(4096)
    except (EOFError, readers.gzip.BadGzipFile, readers.zlib.error):
        start = b""
    except OSError as error:
        problems.add(Fault("unreadable", "", f"cannot be opened: {error.strerror}"), str(path))
        return ""
    form = _by_name(path) or _by_start(start)
    if not form:
        problems.add(Fault("unknown_format", "", f"not a known kind of data file: {path.suffix or 'no ending'}"), str(path))
    return _json_kind(start) if form == "json" else form


def _by_name(path: Path) -> str:
    endings = [suffix[1:].lower() for suffix in path.suffixes]
    if endings and endings[-1] in ("gz", "gzip"):
        endings.pop()
    return _FORMS.get(endings[-1], "") if endings else ""


def _by_start(start: bytes) -> str:
    if start.startswith(b"PAR1"):
        return "parquet"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "json" if text[:1] in (b"{", b"[") else ""


def _json_kind(start: bytes) -> str:
    """A ``.json`` file is an array, or JSON Lines under another name, or one object over many lines."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] != b"{":
        return "json"
    first = text.split(b"\n", 1)[0].strip().decode("utf-8", "replace")
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        goes_on = error.pos >= len(first) and len(first) < 2048
        return "json" if goes_on else "jsonl"
    return "jsonl"
