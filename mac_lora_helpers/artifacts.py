"""The run directory: every artefact's name once, who makes it, and what it holds.

The run directory is the only thing that couples two notebooks. A killed stage leaves its old artefacts or its new ones
(``RunDir.begin``); what belongs together carries the same fingerprints, and a mixture is refused by name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mac_lora_helpers import locks
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.files import (
    adapter_digest,
    atomic_file,
    atomic_folder,
    disk_errors,
    file_digest,
    kind,
    mismatch,
    read_json,
    refusal,
)
from mac_lora_helpers.layout import ARTIFACTS, CONSENT, EARLY, HOLDERS, LASTING, LINES, NOTEBOOKS, SEALED, SHAPES
from mac_lora_helpers.ownership import claim, refuse_links, require_ours
from mac_lora_helpers.placing import (
    JOURNAL,
    KEEP,
    building_of,
    clear_half_files,
    finishing_of,
    put_in_place,
    tidy,
    units,
)
from mac_lora_helpers.redaction import portable, portable_tree

__all__ = ["ARTIFACTS", "CONSENT", "NOTEBOOKS", "RunDir", "Stage", "adapter_digest", "file_digest", "without_consent"]

#: (run directory, number) → the stage that is being built in this process.
_open: weakref.WeakValueDictionary[tuple[str, int], Stage] = weakref.WeakValueDictionary()


def _digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever its keys' order and its file's white space."""
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _remake(name: str) -> str:
    return f"run {NOTEBOOKS[max(ARTIFACTS[name][1], 1) - 1]}.ipynb again"


class RunDir:
    """One run's folder.

    Args:
        root: the folder; it is made at the first write.

    Raises:
        InputError: it cannot be made, or holds what this suite did not write. Nothing has been written then.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        require_ours(self.root)

    def __repr__(self) -> str:
        here = Path.cwd()
        shown = self.root.relative_to(here) if self.root.is_relative_to(here) else self.root
        return f"{type(self).__name__}({portable(str(shown))!r})"

    def claim(self) -> RunDir:
        """Makes the folder, and marks it as a run directory; every write does that by itself."""
        with disk_errors(self.root):
            claim(self.root)
        return self

    def place(self, name: str) -> Path:
        """Where an artefact lies once its stage is finished."""
        return self.root / ARTIFACTS[name][0]

    def _base(self, name: str) -> Path:
        """The folder that an artefact's path is written below."""
        return self.root

    def _found(self, name: str) -> Path:
        """Where an artefact is read from."""
        self._settle()
        return self._base(name) / ARTIFACTS[name][0]

    def path(self, name: str) -> Path:
        """Where an artefact is written to; its folder exists afterwards.

        Raises:
            InputError: the artefact, or a folder on the way to it, is a link.
        """
        self._settle()
        base, relative = self._base(name), ARTIFACTS[name][0]
        self.claim()
        refuse_links(self.root, str((base / relative).relative_to(self.root)))
        with disk_errors(base / relative):
            (base / relative).parent.mkdir(parents=True, exist_ok=True)
        return base / relative

    def has(self, name: str) -> bool:
        """Whether the artefact is there."""
        return os.path.exists(self._found(name))

    # Who writes

    @contextlib.contextmanager
    def writing(self, doing: str) -> Iterator[None]:
        """A context manager: this process alone writes to the run directory inside. Every ``write_…`` takes it by itself;
        a stage takes it around writes that belong together.

        Raises:
            RunDirBusy: another process writes.
        """
        with contextlib.ExitStack() as stack:
            self.claim()
            with disk_errors(self.root):
                if stack.enter_context(locks.writing(self.root, doing)):
                    tidy(self.root)
            yield

    @contextlib.contextmanager
    def running(self, doing: str) -> Iterator[None]:
        """A context manager: the run directory is this run's and its kernels' inside; what a killed run left is cleared away.

        Raises:
            RunDirBusy: another run or a notebook works in it.
        """
        with contextlib.ExitStack() as stack:
            self.claim()
            with disk_errors(self.root):
                stack.enter_context(locks.running(self.root, doing))
                tidy(self.root)
                clear_half_files(self.root)
            if self.has("run") and kind(self.place("run")) == "a file":
                with contextlib.suppress(InputError):
                    self.write_json("run", _ended(self.read_json("run")))
            yield

    def begin(self, number: int, keep: bool = False) -> Stage:
        """Builds the artefacts of a notebook beside those that are there; ``finish`` puts all of them in place at once.

        ``with run.begin(2) as stage:`` finishes at the block's end, and throws away what was built if it failed.

        Args:
            number: the notebook's. keep: take up what an unfinished stage built, and keep it if this one is not finished either.

        Raises:
            RunDirBusy: another process writes. InputError: an earlier artefact that is needed later is damaged, or a link is in the way.
        """
        self.check_early(number)
        return Stage(self, number, keep)

    def is_unfinished(self, number: int) -> bool:
        """Whether a notebook's artefacts are still being built; a training that was interrupted waits like that to be gone on with."""
        return building_of(self.root, number).is_dir()

    def check_early(self, number: int) -> None:
        """What a notebook will read at its end is looked at before it begins.

        Raises:
            InputError: an artefact is damaged. CheckFailed: it is not as it was written.
        """
        for name in EARLY.get(number, ()):
            if self.has(name):
                self.read_json(name)

    def _settle(self) -> None:
        """A stage that was finished by a process that died on the way is put in place before anybody reads."""
        if not locks.is_further_process() and any(os.path.lexists(finishing_of(self.root, number)) for number in range(1, 6)):
            with self.writing("putting artefacts in place"):
                pass

    # Reading

    def need(self, name: str) -> Path:
        """Path of an artefact that must be there.

        Raises:
            MissingArtifact: it is not; the message names the notebook that makes it. InputError: it may not be read.
        """
        path, (relative, number) = self._found(name), ARTIFACTS[name]
        if not os.path.exists(path):
            maker = NOTEBOOKS[number - 1] + ".ipynb"
            what = f"{relative} is {kind(path)}" if os.path.islink(path) else f"{relative} is missing"
            raise MissingArtifact(what, where=portable(str(self.root)), fix=f"run {maker} first (the same out_dir)")
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise refusal(PermissionError(errno.EACCES, ""), path, "read")
        return path

    def read_json(self, name: str) -> Any:
        """A JSON artefact, of its shape.

        Raises:
            MissingArtifact: not there. InputError: damaged, or not of its shape. CheckFailed: changed since it was written.
        """
        path = self.need(name)
        value = read_json(path, SHAPES.get(name, dict), _remake(name))
        if name in SEALED and value.pop("digest", None) not in (None, _digest(value)):
            raise CheckFailed(f"{path.name} is not as it was written", where=portable(str(path)), fix=_remake(name))
        return _ended(value) if name == "run" and not locks.is_running(self.root) else value

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """A JSON Lines artefact as a list of rows.

        Raises:
            MissingArtifact: not there. InputError: a line is damaged.
        """
        path, rows = self.need(name), []
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise refusal(error, path, "read") from None
        for number, line in enumerate(lines, start=1):
            try:
                rows += [json.loads(line)] if line.strip() else []
                wrong = mismatch(rows[-1], dict) if line.strip() else ""
            except (ValueError, RecursionError) as error:
                wrong = str(error)
            if wrong:
                place = f"{portable(str(path))}, line {number}"
                raise InputError(f"{path.name} cannot be read: {wrong}", where=place, fix=_remake(name))
        return rows

    def config(self, name: str) -> dict[str, Any]:
        """The config that a stage saved with ``write_json`` under the key ``config``, or the whole file.

        Without what only this run's own words decide (``CONSENT``).
        """
        saved = self.read_json(name)
        return without_consent(saved.get("config", saved))

    # What belongs together

    def made_from(self, adapter: Path) -> dict[str, Any]:
        """What an artefact made from this adapter keeps of where it comes from."""
        data = self.read_json("manifest")["fingerprint"] if self.has("manifest") else None
        return {"adapter_digest": adapter_digest(adapter), "data_fingerprint": data}

    def check_trained(self) -> None:
        """The run's own adapter is the one that training wrote, it was trained on the data that are here, and the log is its own.

        What an older version did not record is not judged.

        Raises:
            CheckFailed: it is not.
        """
        saved = self.read_json("train_config") if self.has("train_config") else {}
        if self._tells_of_another(saved, self.place("adapter")):
            raise _foreign("adapter/ is not the adapter that train_config.json describes", "adapter", 3)
        data = self.read_json("manifest")["fingerprint"] if self.has("manifest") else None
        if None not in (data, saved.get("data_fingerprint")) and saved["data_fingerprint"] != data:
            raise _foreign("the adapter was trained on other data than data/ holds now", "data/manifest.json, train_config.json", 3)
        self._check_lines("train_metrics")

    def check_about(self, adapter: Path, *names: str) -> None:
        """The named artefacts, where they are there, tell of this adapter.

        Args:
            adapter: the folder that is evaluated, exported or published.

        Raises:
            CheckFailed: one of them was made from another adapter.
        """
        for name in names:
            path, number = ARTIFACTS[name]
            if self.has(name) and self._tells_of_another(self.read_json(name), adapter):
                raise _foreign(f"{path} tells of another adapter than this one", path, number)
            self._check_lines(name)

    @staticmethod
    def _tells_of_another(saved: dict[str, Any], adapter: Path) -> bool:
        had = {**(saved.get("conditions") or {}), **saved}.get("adapter_digest")
        return had is not None and had not in (adapter_digest(adapter), adapter_digest(adapter, as_written=True))

    def _check_lines(self, name: str) -> None:
        lines = LINES.get(name, "")
        had = self.read_json(name).get("lines_digest") if lines and self.has(name) else None
        if had is not None and (not self.has(lines) or file_digest(self.need(lines)) != had):
            (path, number), (other, _) = ARTIFACTS[lines], ARTIFACTS[name]
            raise _foreign(f"{path} is not of the run that {other} tells of", path, number)

    # Writing

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON artefact, whole or not at all; home directory and tokens are taken out."""
        value = portable_tree(value)
        if name in SEALED and isinstance(value, dict):
            value = {**value, "digest": _digest({key: item for key, item in value.items() if key != "digest"})}
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_lines(self, name: str, rows: Iterable[Any]) -> Path:
        """Writes JSON Lines; the rows are the user's data and stay as they are."""
        with self.writing(name), atomic_file(self.path(name)) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        return self.path(name)

    def write_text(self, name: str, text: str) -> Path:
        """Writes a text artefact, whole or not at all."""
        content = text.encode("utf-8")
        with self.writing(name), atomic_file(self.path(name), len(content)) as temporary:
            temporary.write_bytes(content)
        return self.path(name)

    def save_figure(self, name: str, figure: Any) -> Path:
        """Saves a matplotlib figure at 1200 px width or more."""
        with self.writing(name), atomic_file(self.path(name)) as temporary:
            figure.savefig(temporary, dpi=max(150, 1200 / figure.get_figwidth()))
        return self.path(name)

    @contextlib.contextmanager
    def folder(self, name: str, needs: int | None = None) -> Iterator[Path]:
        """A context manager: fill the folder it yields, and it takes the artefact's place at the end.

        Args:
            needs: bytes that it will take, where that is known: without them nothing is begun.
        """
        with self.writing(name), atomic_folder(self.path(name), needs) as temporary:
            yield temporary


class Stage(RunDir):
    """A run directory while a notebook's artefacts are built: they are written to a folder beside, and read from there first.

    Use :meth:`RunDir.begin`. The run directory is this process's until the stage is finished or discarded.
    """

    def __init__(self, run: RunDir, number: int, keep: bool) -> None:
        super().__init__(run.root)
        self.number, self.keep, self.building = number, keep, building_of(run.root, number)
        key = (os.path.realpath(run.root), number)
        if key in _open:  # the cell is run again
            _open.pop(key)._close(keep)
        self._held = contextlib.ExitStack()
        self._held.enter_context(run.writing(f"building notebook {number:02d}'s artefacts"))
        if not locks.is_further_process():
            with disk_errors(self.building):
                self._make(keep)
        self.is_open = True
        _open[key] = self

    def _make(self, keep: bool) -> None:
        refuse_links(self.root, self.building.name)
        if not keep or not (self.building / KEEP).is_file():
            shutil.rmtree(self.building, ignore_errors=True)
        self.building.mkdir(exist_ok=True)
        for path in self.building.rglob("*"):
            refuse_links(self.root, str(path.relative_to(self.root)))
        clear_half_files(self.building)
        if keep:
            (self.building / KEEP).touch()

    def _base(self, name: str) -> Path:
        return self.building if self.is_open and ARTIFACTS[name][1] == self.number else self.root

    def _found(self, name: str) -> Path:
        own = self._base(name) / ARTIFACTS[name][0]
        return own if os.path.lexists(own) else self.place(name)

    def finish(self) -> RunDir:
        """Puts everything that was built in place at once, and takes away what the earlier run of this notebook made besides.

        Returns:
            The run directory.

        Raises:
            InputError: a link, or a folder instead of a file, is in the way; then nothing has been moved.
        """
        if locks.is_further_process():
            self._close(keep=True)
            return RunDir(self.root)
        self._seal_lines()
        built = units(self.building)
        for unit in built:
            refuse_links(self.root, unit)
            there, new = kind(self.root / unit), kind(self.building / unit)
            if there not in ("nothing", new):
                raise InputError(f"{unit} is {there}, where {new} is needed", where=portable(str(self.root / unit)), fix="move it away")
        gone = [name for name, (path, made_by) in ARTIFACTS.items() if made_by == self.number and path not in (*built, *HOLDERS)]
        with disk_errors(self.building):
            text = json.dumps({"remove": [name for name in gone if name not in LASTING]})
            (self.building / JOURNAL).write_text(text, encoding="utf-8")
            os.replace(self.building, finishing_of(self.root, self.number))  # from here on the new artefacts count
            put_in_place(self.root, self.number)
        self._close(keep=True)
        return RunDir(self.root)

    def discard(self) -> None:
        """Throws away what was built; the run directory is as it was before."""
        self._close(keep=False)

    def _close(self, keep: bool) -> None:
        if self.is_open and not keep and not locks.is_further_process():
            shutil.rmtree(self.building, ignore_errors=True)
        self.is_open = False
        self._held.close()

    def _seal_lines(self) -> None:
        for name, lines in LINES.items():
            if (self.building / ARTIFACTS[name][0]).is_file() and (self.building / ARTIFACTS[lines][0]).is_file():
                self.write_json(name, {**self.read_json(name), "lines_digest": file_digest(self.building / ARTIFACTS[lines][0])})

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.is_open:
            self.finish() if kind is None else self._close(self.keep)


def _ended(record: dict[str, Any]) -> dict[str, Any]:
    """A record that says *running* though its process has ended says *interrupted*."""
    entries = [{**entry, "status": "interrupted"} if entry["status"] == "running" else entry for entry in record["notebooks"]]
    return {**record, "status": "interrupted" if record["status"] == "running" else record["status"], "notebooks": entries}


def without_consent(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config without what only this run's own words decide."""
    return {name: value for name, value in saved.items() if name not in CONSENT}


def _foreign(what: str, where: str, number: int) -> CheckFailed:
    return CheckFailed(what, where=where, fix=f"run {NOTEBOOKS[number - 1]}.ipynb again (the same out_dir)")
