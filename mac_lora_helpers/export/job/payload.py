"""What the job carries along: this package's source, and the local files that the run was made from."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from mac_lora_helpers.artifacts import NOTEBOOKS
from mac_lora_helpers.config import EMBEDDED, EMBEDDED_DIR, Config
from mac_lora_helpers.data.sources import data_paths
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.export.hub import scan
from mac_lora_helpers.files import portable

PACKAGE = Path(__file__).parents[2]
#: The room that the job does not use.
_AT_HOME = ("suite",)
#: Code, and the texts that it reads: failures, refusals, the card, the conversations.
_SOURCE = ("*.py", "*.toml", "*.jinja", "evaluation/*.jsonl")
#: Local models and data up to this size travel with the job; larger ones belong on the Hub.
LARGEST_INPUTS = 64 * 2**20


def package_zip() -> bytes:
    """The package's source as a zip, the same bytes for the same source."""
    paths = [path for kind in _SOURCE for path in PACKAGE.rglob(kind)]
    files = sorted(path for path in paths if path.relative_to(PACKAGE).parts[0] not in _AT_HOME)
    notebook = f"notebooks/{NOTEBOOKS[2]}.ipynb"
    named = {f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}": path for path in files}
    return zip_of({**named, notebook: PACKAGE.parent / notebook})


def inputs_of(config: Config) -> tuple[dict[str, Path], dict[str, str]]:
    """Local files that the job needs (name in the zip → file), and the parameters that point to them there.

    Raises:
        InputError: files that are missing or too large to travel. CheckFailed: one of them holds a secret.
    """
    files: dict[str, Path] = {}
    changed: dict[str, str] = {}
    if config.model_id == EMBEDDED or (not config.data_files and config.dataset_id == EMBEDDED):
        files |= {f"{PACKAGE.name}/smoke/{path.relative_to(EMBEDDED_DIR).as_posix()}": path for path in _embedded(config)}
    if config.model_id != EMBEDDED and (folder := Path(config.model_path)).is_dir():
        name = f"inputs/{folder.resolve().name}"
        files |= {f"{name}/{path.relative_to(folder).as_posix()}": path for path in scan.texts_of(folder)}
        changed["model_id"] = name
    if config.data_patterns:
        data, names = _data_files(config.data_patterns)
        files |= data
        changed["data_files"] = ", ".join(names)
    _refuse(files)
    return files, changed


def _embedded(config: Config) -> list[Path]:
    folders = [("model", config.model_id == EMBEDDED), ("data", not config.data_files and config.dataset_id == EMBEDDED)]
    return [path for name, used in folders if used for path in scan.texts_of(EMBEDDED_DIR / name)]


def _data_files(patterns: list[str]) -> tuple[dict[str, Path], list[str]]:
    """Every data file once, in order, under a name of its own without a comma, which separates names in ``data_files``; those names.

    An address stays one: the job reads it from there.
    """
    local = [pattern for pattern in patterns if "://" not in pattern]
    found, names = {}, [pattern for pattern in patterns if "://" in pattern]
    for number, path in enumerate(data_paths(local)):
        name = f"inputs/data-{number}/{path.name.replace(',', '_')}"
        names.append(name)
        inside = [part for part in path.rglob("*") if part.is_file()]
        found |= {f"{name}/{part.relative_to(path).as_posix()}": part for part in inside} if path.is_dir() else {name: path}
    return found, names


def _refuse(files: dict[str, Path]) -> None:
    size = sum(path.stat().st_size for path in files.values())
    if size > LARGEST_INPUTS:
        largest = max(files.values(), key=lambda path: path.stat().st_size)
        raise InputError(
            f"the local model and data are {size / 2**20:.0f} MiB; a job carries up to {LARGEST_INPUTS // 2**20} MiB along",
            where=portable(str(largest)),
            fix="put the model or the data set on the Hub (private is fine) and use its id as model_id or dataset_id",
        )
    known = scan.known_secrets()
    findings = [finding for path in files.values() for finding in scan.scan_files([path], path.parent, known)]
    if findings:
        fix, listed = "remove it (and revoke it), make the data again with 02, then write the job again", ", ".join(findings[:5])
        raise CheckFailed("a file that the job would carry holds what looks like a secret", where=listed, fix=fix)


def zip_of(files: dict[str, Path]) -> bytes:
    """A zip with sorted names and no dates, so that the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, files[name].read_bytes())
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()
