"""Where rows come from: the embedded data set, local files and folders, addresses, the Hub."""

from __future__ import annotations

import glob
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mac_lora_helpers import files
from mac_lora_helpers.config import Config
from mac_lora_helpers.data import readers
from mac_lora_helpers.data.problems import DataError, Fault, Problems, brief, file_error, listed
from mac_lora_helpers.data.readers import Record
from mac_lora_helpers.redaction import portable

_FORMS = {
    "jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "tsv": "tsv", "parquet": "parquet", "pq": "parquet",
    "arrow": "arrow", "feather": "arrow", "xlsx": "spreadsheet", "xls": "spreadsheet", "ods": "spreadsheet",
    "pkl": "pickle", "pickle": "pickle", "pt": "pickle",
}  # fmt: skip
_REFUSED = {"spreadsheet": "a workbook, not a table of text", "pickle": "a pickle; it is not opened"}
_ARCHIVES = {"gz", "gzip", "bz2", "xz", "zst", "zip"}
SPLITS = ("train", "valid", "test")
#: Words in file and split names that say which split it is.
_WORDS = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "eval": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One file, or one split of a data set: rows with their numbers.

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
        notes: what was recognized about files and splits.
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


def load_files(config: Config) -> Source:
    """Opens the files, folders and addresses that ``data_files`` names; reads no rows yet.

    Raises:
        DataError: files that are missing, empty or of an unknown kind, all of them at once.
    """
    return _sliced(_from_files(config.data_patterns), config)


def embedded() -> Source:
    """The data set that ships with the package."""
    from mac_lora_helpers import smoke

    files = {name: Path(path) for name, path in smoke.data_files().items() if name in SPLITS}
    parts = [_file_part(path, "jsonl", label=f"embedded {path.name}:{{}}", split=name) for name, path in files.items()]
    return Source("the embedded data set", "embedded", parts, "jsonl")


def split_name(name: str) -> str:
    """Which split a file or split is by its name (``train-00000-of-2``, ``my_test``, ``validation``); empty if it does not say."""
    words = {_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _WORDS}
    return words.pop() if len(words) == 1 else ""


def own_splits(parts: list[Part], names: list[str]) -> tuple[list[Part], list[str]]:
    """The parts with the splits that their names say, where a train and another split are among them; and what to say."""
    found = [split_name(name) for name in names]
    if "train" not in found or not {"valid", "test"} & set(found):
        return parts, []
    parts = [Part(part.label, part.records, split or "train") for part, split in zip(parts, found, strict=True)]
    told = {split: listed([name for name, part in zip(names, parts, strict=True) if part.split == split], 4) for split in SPLITS}
    said = [f"{split}: {files}" for split, files in told.items() if files]
    return parts, ["own splits are kept, by their names (" + "; ".join(said) + ")"]


def _from_files(patterns: list[str]) -> Source:
    problems, parts, names, form = Problems(), [], [], ""
    for path in _expand(patterns, problems):
        if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
            saved = _saved(path)
            parts, names, form = [*parts, *saved.values()], [*names, *saved], form or "saved data set"
            continue
        for made, kind in _open(path, problems):
            parts.append(made)
            names.append(path.name)
            form = form or kind
    if problems.errors:
        raise DataError.of("the data files cannot be used", problems)
    if len({split_name(name) for name in names} - {""}) < 2:  # splits in folders: train/a.jsonl, test/a.jsonl
        names = [
            part.label.rsplit(":", 1)[0].rsplit("/", 2)[-2] if "/" in part.label else name for part, name in zip(parts, names, strict=True)
        ]
    parts, notes = own_splits(parts, names)
    return Source(listed([portable(pattern) for pattern in patterns], 4, width=200), "files", parts, form, notes)


def data_paths(patterns: list[str]) -> list[Path]:
    """The files that the patterns name, each once, and folders that ``save_to_disk`` wrote.

    Raises:
        DataError: something is not there.
    """
    problems = Problems()
    paths = _expand(patterns, problems)
    if problems.errors:
        raise DataError.of("the data files cannot be used", problems)
    return paths


def _expand(patterns: list[str], problems: Problems) -> list[Path]:
    """Paths that the patterns name, each once, globs and the files of folders in sorted order."""
    paths: dict[Path, None] = {}
    for pattern in patterns:
        if "://" in pattern:
            found: list[Any] = [_fetched(pattern, problems)]
        elif Path(pattern).is_dir():
            found = _in_folder(Path(pattern), problems)
        else:
            found = (
                [pattern] if Path(pattern).exists() else [pattern] * os.path.islink(pattern) or sorted(glob.glob(pattern, recursive=True))
            )
            if not found:
                problems.add(Fault("missing_file", "", "no such file, and no file matches it"), pattern)
        paths.update(dict.fromkeys(map(Path, filter(None, found))))
    return list(paths)


def _in_folder(folder: Path, problems: Problems) -> list[Path]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return [folder]
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file() and not any(p[0] == "." for p in path.relative_to(folder).parts))
    found = [path for path in inside if _by_name(path.name) not in ("", *_REFUSED) and path.name != "dataset_infos.json"]
    if not found:
        problems.add(Fault("empty_folder", "", "a folder without data files"), str(folder))
    return found


def _fetched(address: str, problems: Problems) -> Path | None:
    """An address (https, hf, s3, …) as a local copy, made by ``datasets``' downloads, under its own name."""
    import datasets

    quiet = datasets.DownloadConfig(disable_tqdm=True)
    try:
        copy = Path(datasets.DownloadManager(download_config=quiet).download(address))
        name = address.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
        link = copy.with_name(f"{copy.name}.d") / name
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(copy)
        return link
    except Exception as error:  # whatever the file system behind the address raises
        missing = (
            f"; its file system needs another package: {error}"
            if isinstance(error, (ImportError, ValueError))
            else f": {brief(error, 120)}"
        )
        problems.add(Fault("unreachable", "", f"the address cannot be read{missing}"), address)
        return None


def _saved(folder: Path) -> dict[str, Part]:
    """What ``save_to_disk`` wrote: one data set, or one a split."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise file_error("damaged_parquet", str(folder), f"the saved data set cannot be read: {brief(error, 160)}") from None
    return dataset_parts(found if isinstance(found, dict) else {"": found}, str(folder))


def dataset_parts(found: dict[str, Any], name: str) -> dict[str, Part]:
    """The splits of a ``DatasetDict`` as parts."""
    name = name.replace("{", "{{").replace("}", "}}")
    return {
        split: Part(f"{name}{f'[{split}]' if split else ''}: row {{}}", partial(_dataset_rows, dataset)) for split, dataset in found.items()
    }


def _dataset_rows(dataset: Any) -> Iterator[Record]:
    """Rows as ``datasets`` decodes them, without Arrow's padding."""
    schema, number = dataset.features.arrow_schema, 0
    for batch in dataset.iter(batch_size=128):
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = zip(batch, values, strict=True)
            yield Record(number, {name: readers.without_padding(value, schema.field(name).type) for name, value in row})


def _open(path: Path, problems: Problems) -> Iterator[tuple[Part, str]]:
    """The file's parts with their format: one, or those of a zip."""
    if form := _form_of(path, problems):
        if form != "zip":
            yield _file_part(path, form), form
            return
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.namelist() if not item.endswith("/") and _by_name(item) not in ("", *_REFUSED)]
            for member in members:
                with archive.open(member) as stream:
                    kind = _json_kind(stream.read(4096), _by_name(member))
                yield _file_part(path, kind, member=member), kind
        if not members:
            problems.add(Fault("unknown_format", "", "no data file in the archive"), str(path))


def _file_part(path: Path, form: str, label: str = "", split: str = "", member: str = "") -> Part:
    name = f"{path}{f'/{member}' if member else ''}".replace("{", "{{").replace("}", "}}")
    places = {"json": f"{name}: item {{}}", "parquet": f"{name}: row {{}}", "arrow": f"{name}: row {{}}"}
    return Part(label or places.get(form, f"{name}:{{}}"), lambda: readers.read(path, form, member), split)


def _form_of(path: Path, problems: Problems) -> str:
    """The file's format by its name, else by how it starts; empty after adding a problem."""
    form = _by_name(path.name)
    if form in _REFUSED:
        problems.add(Fault(form, "", _REFUSED[form]), str(path))
        return ""
    try:
        if (what := files.kind(path)) != "a file":
            problems.add(Fault("unknown_format", "", f"{what}, not a file"), str(path))
            return ""
        if path.stat().st_size == 0:
            problems.add(Fault("empty_file", "", "the file is empty"), str(path))
            return ""
        if zipfile.is_zipfile(path):
            return "zip"
        with readers.open_binary(path) as stream:
            start = stream.read(4096)
    except readers.DAMAGE:
        start = b""
    except OSError as error:
        start = b""
        if error.strerror:
            problems.add(Fault("unreadable", "", f"cannot be opened: {error.strerror}"), str(path))
            return ""
    form = form or _by_start(start)
    if not form:
        problems.add(Fault("unknown_format", "", f"not a known kind of data file: {path.suffix or 'no ending'}"), str(path))
    return _json_kind(start, form)


def _by_name(name: str) -> str:
    endings = name.lower().split(".")[1:]
    if endings and endings[-1] in _ARCHIVES:
        endings.pop()
    return _FORMS.get(endings[-1], "") if endings else ""


def _by_start(start: bytes) -> str:
    if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        return "parquet" if start[:1] == b"P" else "arrow"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "json" if text[:1] in (b"{", b"[") else ""


def _json_kind(start: bytes, form: str) -> str:
    """Whether what is called JSON or JSON Lines is one document or one object a line."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if form == "jsonl" and text[:1] == b"[":  # an array under the other name, unless each line is one
        return "json" if text[1:].lstrip()[:1] == b"{" else form
    if form != "json" or text[:1] != b"{":
        return form
    first, newline, rest = text.partition(b"\n")
    try:
        value = json.loads(first)
    except ValueError:
        goes_on = len(first) < 2048 or not newline
        return "json" if goes_on and not first.strip().endswith(b"}") else "jsonl"
    return "jsonl" if rest.strip() or readers.inner_rows(value)[1] is None else "json"


# Slices


def _sliced(source: Source, config: Config) -> Source:
    """The rows of ``dataset_split``, as ``datasets`` would cut them, where the caller set one for files."""
    if not config.asked("dataset_split"):
        return source
    from datasets import ReadInstruction

    counts: dict[str, int] = {}
    for part in source.parts:
        counts[part.split or "train"] = counts.get(part.split or "train", 0) + sum(1 for _ in part.records())
    try:
        (wanted,) = ReadInstruction.from_spec(config.dataset_split).to_absolute(counts)
    except (ValueError, AssertionError):
        where, what = f"parameter dataset_split={config.dataset_split}", f"no such split: the files hold {listed(counts)}"
        raise file_error("no_split", where, what) from None
    parts = [part for part in source.parts if (part.split or "train") == wanted.splitname]

    def records(index: int) -> Iterator[Record]:
        rows = ((number, record) for number, part in enumerate(parts) for record in part.records())
        return (record for number, record in islice(rows, wanted.from_, wanted.to) if number == index)

    cut = [Part(part.label, partial(records, index)) for index, part in enumerate(parts)]
    return Source(source.name, source.kind, cut, source.form, [f"only {config.dataset_split} is read, as dataset_split says"])
