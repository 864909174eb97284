"""The embedded default: a tiny chat model and its data, shipped with the package.

With these two the whole suite runs offline in minutes. The model answers short
questions in plain sentences; the training data makes it answer in JSON. README.md
in this folder says how both were made and what was measured.

Nothing heavy is imported here: these are paths, not loaded objects.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent

MODEL_DIR: Path = _FOLDER / "model"
DATA_DIR: Path = _FOLDER / "data"

# Plain-sentence conversations of other kinds: what tuning should leave alone.
GENERAL: Path = DATA_DIR / "general.jsonl"

# Optimizer steps of 8 rows each, at the recipe's learning rate of 2e-4.
RECOMMENDED_STEPS: int = 200


def data_files() -> dict[str, Path]:
    """The adapter's splits; no subject of one split occurs in another."""
    return {name: DATA_DIR / f"{name}.jsonl" for name in ("train", "valid", "test")}
