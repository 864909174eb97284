"""The data stage's artefacts: rows, tokens and the manifest that ties them together."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.data.encoding import Encoded
from mac_lora_helpers.data.sources import Source
from mac_lora_helpers.data.splitting import NAMES, Splits
from mac_lora_helpers.data.tokens import file_digest, fingerprint, open_tokens
from mac_lora_helpers.data.validation import Found, rejected_rows
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.files import atomic_file, refusal

_REMAKE = "run 02_data_formatting.ipynb again"


def save(run: RunDir, source: Source, found: Found, splits: Splits, encoded: Encoded, config: Config, figure: Any = None) -> dict[str, Any]:
    """Writes ``data/{train,valid,test}.jsonl``, ``data/tokens/``, the manifest, the rejected rows and the figure if there are any.

    All of them are put in place at once: whoever looks finds the old data or the new, never a mixture.

    Returns:
        The manifest, as read back from disk.

    Raises:
        RunDirBusy: another process writes to the run directory.
    """
    with run.begin(2) as stage:
        for name in NAMES:
            _write_lines(stage, name, splits[name].lines())
        if found.rejected or encoded.rejected:
            stage.write_lines("rejected", chain(rejected_rows(found), encoded.rejected))
        with stage.folder("tokens") as folder:
            for name, path in encoded.files.items():
                shutil.copyfile(path, Path(folder) / f"{name}.arrow")
        if figure is not None:
            stage.save_figure("data_report", figure)
        stage.write_json("manifest", _manifest(source, found, splits, encoded, config))
    return run.read_json("manifest")


def _write_lines(run: RunDir, name: str, lines: Iterator[bytes]) -> None:
    with atomic_file(run.path(name)) as temporary, temporary.open("wb") as stream:
        stream.writelines(lines)


def _manifest(source: Source, found: Found, splits: Splits, encoded: Encoded, config: Config) -> dict[str, Any]:
    late = len(encoded.rejected)
    return {
        "source": source.name,
        "source_kind": source.kind,
        "format": found.shape,
        "format_reason": found.shape_reason,
        "recognized": found.recognized,
        "ignored": [{"field": name, "rows": count} for name, count in found.ignored.items()],
        "lost": [{"what": what, "rows": count} for what, count in encoded.lost.items()],
        "rows": {"read": found.read, "accepted": len(found.rows) - late, "rejected": found.rejected + late},
        "problems": found.counts,
        "splits": {name: len(rows) for name, rows in splits.items()},
        "token_rows": {name: len(values) for name, values in encoded.lengths.items()},
        "tokens": encoded.tokens,
        "max_length": max((int(values.max()) for values in encoded.lengths.values() if len(values)), default=0),
        "truncation": encoded.truncation,
        "template": {"name": encoded.template_name, "masking": encoded.masking, "loss_on": encoded.loss_on, "date": encoded.date},
        "lints": [{"name": lint.name, "count": lint.count, "what": lint.what, "fix": lint.fix} for lint in encoded.lints],
        "notes": encoded.notes,
        "proposals": encoded.proposals,
        "config": {name: getattr(config, name) for name in ["preset", *config.names("data")]},
        "fingerprint": encoded.fingerprint,
        "fingerprint_parts": encoded.parts,
    }


def load_tokens(run: RunDir) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and, by split, the tokens that 02 made; valid may have no rows.

    Raises:
        MissingArtifact: 02 has not run. CheckFailed: the tokens are not the ones in the manifest.
    """
    manifest = run.read_json("manifest")
    folder = run.need("tokens")
    parts = manifest.get("fingerprint_parts", {})
    if fingerprint(parts) != manifest.get("fingerprint"):
        raise CheckFailed("the manifest's fingerprint does not fit its parts", where="data/manifest.json", fix=_REMAKE)
    _check_rows(run, parts)
    for name, digest in parts.get("tokens", {}).items():
        if (found := _digest(folder / f"{name}.arrow")) != digest:
            raise CheckFailed(
                f"the {name} tokens are not the ones that 02 showed (fingerprint {found[:12]}, the manifest says {digest[:12]})",
                where=f"data/tokens/{name}.arrow",
                fix=_REMAKE,
            )
    return manifest, {name: open_tokens(folder / f"{name}.arrow") for name in parts["tokens"]}


def _check_rows(run: RunDir, parts: dict[str, Any]) -> None:
    """The rows that were held out, and the others, are the ones that the tokens were made of."""
    for name, digest in parts.get("content", {}).items():
        try:
            with run.need(name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise refusal(error, run.path(name), "read") from None
        if found != digest:
            raise CheckFailed(f"the {name} rows are not the ones that the tokens were made of", where=f"data/{name}.jsonl", fix=_REMAKE)


def _digest(path: Path) -> str:
    import pyarrow as pa

    try:
        return file_digest(path)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CheckFailed(f"the tokens cannot be read: {type(error).__name__}", where=f"data/tokens/{path.name}", fix=_REMAKE) from None
