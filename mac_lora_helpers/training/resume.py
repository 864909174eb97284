"""Checkpoints that are whole or not there, and that belong to this run or are refused.

A checkpoint is written beside its place, sealed with ``checkpoint.json`` (size and SHA-256 of every file, what it was
trained with, the log so far) and renamed. Only a sealed one whose files still match is ever used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from mac_lora_helpers.adapter import Adapter
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.files import atomic_file
from mac_lora_helpers.model import base_weights

SEAL = "checkpoint.json"
STATE = "state.json"
CHOICE = "path.json"
LAST_GOOD = "last-good-adapter"
#: Parameters that change nothing in the numbers (or only the last bits): a checkpoint may be continued under others.
_FREE = {"device", "gradient_checkpointing", "fast_path", "logging_steps", "save_steps", "save_total_limit", "resume", "track"}


def identity(run: RunDir, config: Config) -> dict[str, Any]:
    """What a checkpoint must agree with to be continued: parameters that matter, data, base model.

    Raises:
        MissingArtifact: notebook 02 has not written ``data/manifest.json``.
    """
    names = [name for name in config.names("training") if name not in _FREE]
    parameters = {name: getattr(config, name) for name in ("seed", "model_id", "max_seq_length", *names)}
    if config.max_steps > 0:
        parameters.pop("num_train_epochs")
    text = json.dumps(parameters, sort_keys=True)
    return {
        "config": parameters,
        "config_hash": hashlib.sha256(text.encode()).hexdigest(),
        "data_fingerprint": run.read_json("manifest")["fingerprint"],
        "model": _model_files(config),
        "start": _start(run, config),
    }


def _start(run: RunDir, config: Config) -> str | None:
    """The digest of the adapter that is trained further."""
    return Adapter.find(run, config.model_copy(update={"adapter_dir": config.start_adapter})).digest if config.start_adapter else None


def _model_files(config: Config) -> str | None:
    """For a model in a folder: a digest of its configuration and its weights."""
    folder = Path(config.model_path)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256((folder / "config.json").read_bytes() if (folder / "config.json").is_file() else b"")
    digest.update(str(base_weights(config)).encode())
    return digest.hexdigest()


def seal(folder: Path, step: int, who: dict[str, Any], progress: dict[str, Any]) -> None:
    """Writes ``checkpoint.json`` into a complete checkpoint folder and flushes every file to the disk."""
    files = {}
    for file in sorted(folder.iterdir()):
        if file.is_file():
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _flushed_digest(file)}
    with (folder / SEAL).open("w", encoding="utf-8") as stream:
        json.dump({"step": step, "identity": who, "files": files, "progress": progress}, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _flushed_digest(file: Path) -> str:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_seal(folder: Path) -> dict[str, Any] | None:
    """The seal of a checkpoint, or None if there is none or a file does not match it."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        for name, want in sealed["files"].items():
            with (folder / name).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != want["sha256"]:
                    return None
        return sealed
    except (OSError, ValueError, KeyError):
        return None


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest step first."""
    found = [(int(path.name[11:]), path) for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    return [path for _, path in sorted(found, reverse=True)]


def clear(folder: Path) -> None:
    """Removes what an earlier training left: checkpoints, unfinished ones, its state."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.name.startswith("checkpoint-") or path.name == LAST_GOOD:
            shutil.rmtree(path, ignore_errors=True)
    sweep(folder)
    (folder / STATE).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes half-written checkpoints that a killed process left."""
    for path in folder.glob(".saving-*"):
        shutil.rmtree(path, ignore_errors=True)


def write_state(folder: Path, status: str, **more: Any) -> None:
    """Notes how the training stands: running, interrupted, stopped (by a guard) or finished."""
    with atomic_file(folder / STATE) as temporary:
        temporary.write_text(json.dumps({"status": status, **more}) + "\n", encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """The note of ``write_state``; empty if there is none."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_choice(folder: Path, who: dict[str, Any], choice: dict[str, Any]) -> None:
    """Keeps which path through the model was taken: what hangs on a timing must not be chosen anew by a resumed training."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / CHOICE) as temporary:
        temporary.write_text(json.dumps({"identity": who, **choice}) + "\n", encoding="utf-8")


def read_choice(folder: Path, who: dict[str, Any]) -> dict[str, Any] | None:
    """The choice of an earlier part of the same training, or None."""
    try:
        kept = json.loads((folder / CHOICE).read_text(encoding="utf-8"))
        return kept if kept.pop("identity") == who else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def last_checkpoint(run: RunDir, config: Config) -> str | None:
    """The checkpoint to go on from, or None to start at the beginning; says in one line which it is.

    Raises:
        InputError: the newest whole checkpoint was made with other parameters, other data or another base model.
        MissingArtifact: there is no ``data/manifest.json``.
    """
    folder, who = run.path("checkpoints"), identity(run, config)
    state = read_state(folder)
    if not checkpoints(folder) or config.resume == "never":
        return None
    newest = _newest_whole(folder)
    if newest is None:
        return None
    path, sealed = newest
    difference = differences(sealed["identity"], who)
    if not difference:
        print(f"Going on from step {sealed['step']} ({path.name}).")
        return str(path)
    if state.get("status") == "stopped":
        print(f"The last training was stopped at step {state.get('step')}; the settings changed, so it starts again from the beginning.")
        return None
    raise _refusal(path, difference)


def _newest_whole(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    for path in checkpoints(folder):
        sealed = read_seal(path)
        if sealed is not None:
            return path, sealed
        print(f"{path.name} is incomplete or damaged and is not used.")
    return None


def differences(had: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in the user's terms; empty if they agree."""
    names = sorted(had["config"].keys() | now["config"].keys())
    changed = [
        f"{name} was {had['config'].get(name)!r}, is {now['config'].get(name)!r}"
        for name in names
        if had["config"].get(name) != now["config"].get(name)
    ]
    if had["data_fingerprint"] != now["data_fingerprint"]:
        changed.append("the data are others (their fingerprint differs)")
    if had["model"] != now["model"]:
        changed.append("the base model's files are others")
    if had.get("start") != now["start"]:
        changed.append("the adapter that the training starts from is another")
    return changed


def _refusal(path: Path, difference: list[str]) -> UserError:
    return InputError(
        f"an unfinished training with other settings lies in this run directory: {'; '.join(difference)}",
        where=f"checkpoints/{path.name}",
        fix="put the settings back to go on from it, or set resume=never to start over (its checkpoints are then deleted)",
    )
