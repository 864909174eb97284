"""``export/job/job.json``: what the job is made of, and, once it was submitted, which job it became."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.files import atomic_file, portable

RECORD, SCRIPT, INPUTS, COMMAND = "job.json", "train_job.py", "inputs.zip", "command.txt"
_FIX = "write the job: run 05_export_and_push.ipynb, or `mac-lora run --only 05`"


def read(run: RunDir) -> dict[str, Any]:
    """The record.

    Raises:
        MissingArtifact: no job was written. InputError: the record is damaged.
    """
    path = run.path("job") / RECORD
    if not path.is_file():
        raise MissingArtifact(f"export/job/{RECORD} is missing", where=portable(str(run.root)), fix=_FIX)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{RECORD} cannot be read: {error}", where=portable(str(path)), fix=_FIX) from None


def update(run: RunDir, **changes: Any) -> dict[str, Any]:
    """Writes some of the record's entries anew, whole or not at all, and returns the record."""
    record = {**read(run), **changes}
    with atomic_file(run.path("job") / RECORD) as temporary:
        temporary.write_text(portable(json.dumps(record, indent=2)) + "\n", encoding="utf-8")
    return record


def script_of(run: RunDir, record: dict[str, Any]) -> Path:
    """The job's script, if it is still the one that was written.

    Raises:
        CheckFailed: it was changed or is gone.
    """
    from mac_lora_helpers.export.hub.files import digest_of

    path = run.path("job") / SCRIPT
    if not path.is_file() or digest_of(path)[1] != record["script"]["sha256"]:
        raise CheckFailed(f"{SCRIPT} is not the script that was written", where=portable(str(path)), fix=f"{_FIX} again")
    return path
