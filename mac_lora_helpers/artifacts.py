"""The run directory: every artefact's name once, and who makes it.

The run directory is the only thing that couples two notebooks. A killed stage leaves its old artefact or none (``files``).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mac_lora_helpers import artifacts_lock
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.files import REFUSALS, atomic_file, atomic_folder, disk_errors, portable, portable_tree, refusal

NOTEBOOKS = (
    "01_environment_check",
    "02_data_formatting",
    "03_lora_training",
    "04_evaluation",
    "05_export_and_push",
)

#: Artefact → (path below the run directory, number of the notebook that makes it; 0: the suite).
ARTIFACTS: dict[str, tuple[str, int]] = {
    "environment": ("environment.json", 1),
    "data": ("data", 2),
    "train": ("data/train.jsonl", 2),
    "valid": ("data/valid.jsonl", 2),
    "test": ("data/test.jsonl", 2),
    "tokens": ("data/tokens", 2),
    "manifest": ("data/manifest.json", 2),
    "data_report": ("data/report.png", 2),
    "rejected": ("data/rejected.jsonl", 2),
    "train_config": ("train_config.json", 3),
    "checkpoints": ("checkpoints", 3),
    "adapter": ("adapter", 3),
    "train_log": ("train_log.jsonl", 3),
    "train_metrics": ("train_metrics.json", 3),
    "loss_figure": ("loss.png", 3),
    "memory_figure": ("memory.png", 3),
    "eval_metrics": ("eval/metrics.json", 4),
    "eval_samples": ("eval/samples.jsonl", 4),
    "eval_figure": ("eval/comparison.png", 4),
    "export": ("export", 5),
    "merged": ("export/merged", 5),
    "gguf": ("export/gguf", 5),
    "mlx": ("export/mlx", 5),
    "job": ("export/job", 5),
    "card": ("export/README.md", 5),
    "equivalence": ("export/equivalence.json", 5),
    "push": ("export/push.json", 5),
    "job_result": ("job_result.json", 5),
    "job_log": ("job.log", 5),
    "fetched": ("fetched.json", 5),
    "executed": ("notebooks", 0),
    "run": ("run.json", 0),
    "draft": ("draft.json", 0),
}

#: JSON artefacts that carry a digest of themselves: what later stages decide by. Edited or damaged, they are refused.
SEALED = ("manifest", "train_config", "train_metrics", "eval_metrics")


def _digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever its keys' order and its file's white space."""
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _half_files(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{glob.escape(path.stem)}.????????{glob.escape(path.suffix)}")) if path.suffix else []


class RunDir:
    """One run's folder.

    Args:
        root: the folder; made if it is not there.

    Raises:
        InputError: the path is a file or cannot be written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            reason = REFUSALS.get(getattr(error, "errno", 0)) or getattr(error, "strerror", "") or str(error)
            raise InputError(
                f"the run directory cannot be made: {reason}", where=portable(str(self.root))[:200], fix="choose another out_dir"
            ) from None

    def __repr__(self) -> str:
        return f"RunDir({portable(str(self.root))!r})"

    def path(self, name: str) -> Path:
        """Where an artefact lies; its folder exists afterwards."""
        target = self.root / ARTIFACTS[name][0]
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def has(self, name: str) -> bool:
        """Whether the artefact is there."""
        return os.path.exists(self.root / ARTIFACTS[name][0])

    def writing(self, doing: str) -> contextlib.AbstractContextManager[None]:
        """A context manager: this process alone writes to the run directory inside. Every ``write_…`` takes it by itself;
        a stage takes it around writes that belong together.

        Raises:
            RunDirBusy: another process writes.
        """
        return self._locked(artifacts_lock.writing, doing)

    def running(self, doing: str) -> contextlib.AbstractContextManager[None]:
        """A context manager: the run directory is this run's and its kernels' inside; half-written leftovers are cleared away.

        Raises:
            RunDirBusy: another run or a notebook works in it.
        """
        return self._locked(artifacts_lock.running, doing)

    @contextlib.contextmanager
    def _locked(self, lock: Any, doing: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with disk_errors(self.root):
                stack.enter_context(lock(self.root, doing))
            if lock is artifacts_lock.running:
                self._clear_leftovers()
            yield

    def _clear_leftovers(self) -> None:
        """What a killed process left under temporary names; an artefact that was being replaced goes back to its place."""
        executed = [self.root / ARTIFACTS["executed"][0] / f"{name}.ipynb" for name in NOTEBOOKS]
        for path in {*(self.root / relative for relative, _ in ARTIFACTS.values()), *executed}:
            for left in path.parent.glob(f".{glob.escape(path.name)}.????????.old"):
                if not path.exists():
                    os.replace(left, path)
            for left in [*path.parent.glob(f".{glob.escape(path.name)}.????????*"), *_half_files(path)]:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def need(self, name: str) -> Path:
        """Path of an artefact that must be there.

        Raises:
            MissingArtifact: it is not; the message names the notebook that makes it. InputError: it may not be read.
        """
        relative, number = ARTIFACTS[name]
        if not os.path.exists(self.root / relative):
            maker = NOTEBOOKS[number - 1] + ".ipynb"
            raise MissingArtifact(f"{relative} is missing", where=portable(str(self.root)), fix=f"run {maker} first (the same out_dir)")
        if not os.access(self.root / relative, os.R_OK | (os.X_OK if (self.root / relative).is_dir() else 0)):
            raise refusal(PermissionError(errno.EACCES, ""), self.root / relative, "read")
        return self.root / relative

    def read_json(self, name: str) -> Any:
        """A JSON artefact.

        Raises:
            MissingArtifact: not there. InputError: there, but damaged. CheckFailed: changed since it was written.
        """
        path = self.need(name)
        fix = f"run {NOTEBOOKS[max(ARTIFACTS[name][1], 1) - 1]}.ipynb again"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{path.name} cannot be read: {reason}", where=portable(str(path)), fix=fix) from None
        if name not in SEALED:
            return value
        if not isinstance(value, dict):
            raise InputError(f"{path.name} is not a JSON object", where=portable(str(path)), fix=fix)
        if value.pop("digest", None) not in (None, _digest(value)):
            raise CheckFailed(f"{path.name} is not as it was written", where=portable(str(path)), fix=fix)
        return value

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
        with self.writing(name), atomic_file(self.path(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return self.path(name)

    def read_lines(self, name: str) -> list[Any]:
        """A JSON Lines artefact as a list of rows.

        Raises:
            MissingArtifact: not there. InputError: a line is damaged.
        """
        path, rows = self.need(name), []
        with self._opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    rows += [json.loads(line)] if line.strip() else []
                except ValueError as error:
                    maker = NOTEBOOKS[max(ARTIFACTS[name][1], 1) - 1]
                    place = f"{portable(str(path))}, line {number}"
                    raise InputError(f"{path.name} cannot be read: {error}", where=place, fix=f"run {maker}.ipynb again") from None
        return rows

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        try:
            with path.open("rb") as stream:
                yield stream
        except OSError as error:
            raise refusal(error, path, "read") from None

    def save_figure(self, name: str, figure: Any) -> Path:
        """Saves a matplotlib figure at 1200 px width or more."""
        with self.writing(name), atomic_file(self.path(name)) as temporary:
            figure.savefig(temporary, dpi=max(150, 1200 / figure.get_figwidth()))
        return self.path(name)

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A context manager: fill the folder it yields, and it takes the artefact's place at the end."""
        with self.writing(name), atomic_folder(self.path(name)) as temporary:
            yield temporary

    def config(self, name: str) -> dict[str, Any]:
        """The config that a stage saved with ``write_json`` under the key ``config``, or the whole file."""
        saved = self.read_json(name)
        return saved.get("config", saved)
