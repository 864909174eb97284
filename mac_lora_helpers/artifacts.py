"""The run directory: every artefact's name once, and who makes it.

The run directory is the only thing that couples two notebooks. Writes go to a temporary name beside
the target and are renamed into place, so a killed stage leaves its old artefact or none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import InputError, MissingArtifact

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
    "executed": ("notebooks", 0),
    "run": ("run.json", 0),
}

_TOKEN = re.compile(r"\b(hf|sk|ghp|gho|github_pat|xox[abp])_[A-Za-z0-9_]{16,}")


def portable(text: str) -> str:
    """The text without the home directory (``~`` instead) and without anything that looks like a token."""
    home = os.path.expanduser("~").rstrip("/")
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=[/\\\s\"':,;)\]]|$)", "~", text)
    secret = os.environ.get("HF_TOKEN", "")
    if len(secret) >= 8:
        text = text.replace(secret, "<secret removed>")
    return _TOKEN.sub("<secret removed>", text)


def _portable_tree(value: Any) -> Any:
    if isinstance(value, str):
        return portable(value)
    if isinstance(value, dict):
        return {portable(str(key)): _portable_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable_tree(item) for item in value]
    return value


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; renames it to ``path`` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder; puts it in the place of ``path`` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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
        except OSError as error:
            raise InputError(
                f"the run directory cannot be made: {error.strerror}", where=portable(str(self.root)), fix="choose another out_dir"
            ) from None

    def __repr__(self) -> str:
        return f"RunDir({portable(str(self.root))!r})"

    def path(self, name: str) -> Path:
        """Where an artefact lies; its folder exists afterwards."""
        target = self.root / ARTIFACTS[name][0]
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def has(self, name: str) -> bool:
        """Whether the artefact is there."""
        return (self.root / ARTIFACTS[name][0]).exists()

    def need(self, name: str) -> Path:
        """Path of an artefact that must be there.

        Raises:
            MissingArtifact: it is not; the message names the notebook that makes it.
        """
        relative, number = ARTIFACTS[name]
        if not (self.root / relative).exists():
            maker = NOTEBOOKS[number - 1] + ".ipynb"
            raise MissingArtifact(f"{relative} is missing", where=portable(str(self.root)), fix=f"run {maker} first (the same out_dir)")
        return self.root / relative

    def read_json(self, name: str) -> Any:
        """A JSON artefact.

        Raises:
            MissingArtifact: not there. InputError: there, but damaged.
        """
        path = self.need(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            maker = NOTEBOOKS[max(ARTIFACTS[name][1], 1) - 1]
            raise InputError(f"{path.name} cannot be read: {error}", where=portable(str(path)), fix=f"run {maker}.ipynb again") from None

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON artefact, whole or not at all; home directory and tokens are taken out."""
        text = json.dumps(_portable_tree(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return self.write_text(name, text)

    def write_lines(self, name: str, rows: Iterable[Any]) -> Path:
        """Writes JSON Lines; the rows are the user's data and stay as they are."""
        with atomic_file(self.path(name)) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        return self.path(name)

    def write_text(self, name: str, text: str) -> Path:
        """Writes a text artefact, whole or not at all."""
        with atomic_file(self.path(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return self.path(name)

    def read_lines(self, name: str) -> list[Any]:
        """A JSON Lines artefact as a list of rows.

        Raises:
            MissingArtifact: not there. InputError: a line is damaged.
        """
        path, rows = self.need(name), []
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    rows += [json.loads(line)] if line.strip() else []
                except ValueError as error:
                    maker = NOTEBOOKS[max(ARTIFACTS[name][1], 1) - 1]
                    place = f"{portable(str(path))}, line {number}"
                    raise InputError(f"{path.name} cannot be read: {error}", where=place, fix=f"run {maker}.ipynb again") from None
        return rows

    def save_figure(self, name: str, figure: Any) -> Path:
        """Saves a matplotlib figure at 1200 px width or more."""
        with atomic_file(self.path(name)) as temporary:
            figure.savefig(temporary, dpi=max(150, 1200 / figure.get_figwidth()))
        return self.path(name)

    def folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A context manager: fill the folder it yields, and it takes the artefact's place at the end."""
        return atomic_folder(self.path(name))

    def config(self, name: str) -> dict[str, Any]:
        """The config that a stage saved with ``write_json`` under the key ``config``, or the whole file."""
        saved = self.read_json(name)
        return saved.get("config", saved)
