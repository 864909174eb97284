"""Do the artefacts of a run directory belong together?

Training records which data it read and what the adapter's files were; evaluation and export record which adapter they looked
at. Whoever reads compares: an adapter beside other data, or figures of another adapter, are refused and never mixed in.
What an older version did not record is not judged.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import ARTIFACTS, NOTEBOOKS, RunDir
from mac_lora_helpers.errors import CheckFailed

#: The files that are the adapter: the first two always, the tokenizer's where training laid them beside.
FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def adapter_digest(folder: Path) -> str | None:
    """SHA-256 over an adapter's settings, weights and tokenizer; None where settings or weights cannot be read.

    Where the base lay is left out of the settings: a push, and a job's result that comes home, write another place.
    """
    digest = hashlib.sha256()
    for name in (*FILES, *TOKENIZER):
        try:
            content = _settings(folder / name) if name == FILES[0] else _file_digest(folder / name)
        except (OSError, ValueError, AttributeError, RecursionError):
            if name in FILES:
                return None
            continue
        digest.update(f"{name}:{content}\n".encode())
    return digest.hexdigest()


def _settings(path: Path) -> str:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("base_model_name_or_path", None)
    # PEFT writes these as sets, in any order
    lists = {key: sorted(value) for key, value in settings.items() if isinstance(value, list) and all(isinstance(v, str) for v in value)}
    return json.dumps({**settings, **lists}, sort_keys=True)


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record(run: RunDir, adapter: Path) -> dict[str, Any]:
    """What an artefact made from this adapter keeps of where it comes from."""
    data = run.read_json("manifest").get("fingerprint") if run.has("manifest") else None
    return {"adapter_digest": adapter_digest(adapter), "data_fingerprint": data}


def check_trained(run: RunDir) -> None:
    """The run's own adapter is the one that training wrote, and it was trained on the data that are here.

    Raises:
        CheckFailed: it is not.
    """
    saved = run.read_json("train_config") if run.has("train_config") else {}
    here = record(run, run.root / ARTIFACTS["adapter"][0])
    if _differ(saved, here, "adapter_digest"):
        raise _foreign("adapter/ is not the adapter that train_config.json describes", "adapter", 3)
    if _differ(saved, here, "data_fingerprint"):
        raise _foreign("the adapter was trained on other data than data/ holds now", "data/manifest.json, train_config.json", 3)


def check_about(run: RunDir, adapter: Path, *names: str) -> None:
    """The named artefacts, where they are there, tell of this adapter.

    Args:
        adapter: the folder that is evaluated, exported or published.

    Raises:
        CheckFailed: one of them was made from another adapter.
    """
    here = adapter_digest(adapter)
    for name in names:
        found = run.read_json(name) if run.has(name) else {}
        if _differ(found, {"adapter_digest": here}, "adapter_digest"):
            path, number = ARTIFACTS[name]
            raise _foreign(f"{path} tells of another adapter than this one", path, number)


def _differ(saved: Any, here: dict[str, Any], key: str) -> bool:
    had = {**saved.get("conditions", {}), **saved}.get(key) if isinstance(saved, dict) else None
    unknown = here[key] is None and key != "adapter_digest"  # an adapter that cannot be read is not the one recorded
    return had is not None and not unknown and had != here[key]


def _foreign(what: str, where: str, number: int) -> CheckFailed:
    return CheckFailed(what, where=where, fix=f"run {NOTEBOOKS[number - 1]}.ipynb again (the same out_dir)")
