"""Which base model was it? A digest of its weights, so that another one under the same name is noticed.

Up to ``WHOLE`` bytes every byte counts (``sha256``). Above that it would cost seconds a time, so it is ``sampled``: each
file's size, its safetensors header (names, shapes, places of all tensors) and ``BLOCKS`` blocks spread evenly over its
tensors. Training again changes numbers everywhere, so it is found; a change between two blocks alone would not be.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.files import portable

WHOLE = 200_000_000
BLOCKS, BLOCK_BYTES = 256, 4096


def base_weights(config: Config) -> dict[str, Any] | None:
    """The base model's weights as ``{"digest", "method" (sha256 or sampled), "bytes", "files"}``.

    Returns:
        None where there are no safetensors to look at (a Hub model that is not in the cache).
    """
    folder = Path(config.model_path)
    folder = folder if folder.is_dir() else _cached(config.model_id)
    files = sorted(folder.glob("*.safetensors")) if folder else []
    if not files:
        return None
    known = [file.stat() for file in files]
    size = sum(state.st_size for state in known)
    stamps = tuple((str(file), state.st_size, state.st_mtime_ns) for file, state in zip(files, known, strict=True))
    return {
        "digest": _digest(stamps, size <= WHOLE),
        "method": "sha256" if size <= WHOLE else "sampled",
        "bytes": size,
        "files": len(files),
    }


def check_base(run: RunDir, config: Config) -> None:
    """The base model is the one that the run's adapter was trained on; what an older version did not record is not judged.

    Raises:
        CheckFailed: its weights are others, though its name is the same.
    """
    trained = run.read_json("train_config").get("base") if run.has("train_config") else None
    now = base_weights(config) if trained else None
    if now and trained and now != trained:
        raise CheckFailed(
            f"the base model {portable(config.model_id)} is not the one that the adapter was trained on: its weights changed since",
            where=f"{portable(config.model_id)}, *.safetensors; train_config.json, base",
            fix="put the old weights back, or run 03_lora_training.ipynb again on the new ones",
        )


def _cached(model_id: str) -> Path | None:
    """The Hub cache's folder of a model; no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model_id, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


@functools.lru_cache(maxsize=8)
def _digest(stamps: tuple[tuple[str, int, int], ...], whole: bool) -> str:
    """Over the files' names and contents; kept as long as sizes and times stay."""
    digest = hashlib.sha256()
    for path, size, _ in stamps:
        with open(path, "rb") as stream:
            digest.update(f"{Path(path).name}:{size}:".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest() if whole else _sample(stream, size))
    return digest.hexdigest()


def _sample(stream: Any, size: int) -> bytes:
    digest = hashlib.sha256()
    length = min(int.from_bytes(stream.read(8), "little"), size - 8)
    digest.update(stream.read(length))
    start = 8 + length
    for block in range(BLOCKS):
        stream.seek(start + (size - start) * block // BLOCKS)
        digest.update(stream.read(BLOCK_BYTES))
    return digest.digest()
