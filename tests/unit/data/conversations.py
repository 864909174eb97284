"""Synthetic ultrachat-like conversations, and the steps of notebook 02 in one call."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = (
    "the a of capital France Paris is what how fox dog lazy quick brown naïve café Zürich 你好 世界 🙂 42 1,024 don't `x = 1` {} # - *"
).split()


def text(rng: random.Random, longest: int = 24) -> str:
    """A few sentences, sometimes paragraphs, lists or digits."""
    count = rng.randint(1, longest)
    joints = rng.choices([" ", " ", " ", ", ", ".\n\n", "\n- ", "  "], k=count)
    return "".join(rng.choice(WORDS) + joint for joint in joints).strip() or "yes"


def conversations(count: int, seed: int = 0, system: bool = True) -> list[list[dict]]:
    """Conversations of one to three exchanges, some with a system turn."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        messages = [{"role": "system", "content": text(rng)}] if system and rng.random() < 0.2 else []
        for _ in range(rng.choice((1, 1, 2, 3))):
            messages += [{"role": "user", "content": text(rng)}, {"role": "assistant", "content": text(rng)}]
        rows.append(messages)
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make(model: Path | str, files: Path | str, **values):
    """load → validate → split → encode; returns (config, source, found, splits, tokenizer, encoded)."""
    from mac_lora_helpers import data
    from mac_lora_helpers.config import resolve

    config = resolve({"model_id": str(model), "data_files": str(files), "max_seq_length": 4096, **values}, env={})
    source = data.load(config)
    found = data.validate(source, config)
    splits = data.split(found, config)
    tokenizer = data.load_tokenizer(config)
    return config, source, found, splits, tokenizer, data.encode(splits, tokenizer, config)


def runs(labels: list[int]) -> list[tuple[int, int]]:
    """Half-open spans of trained labels."""
    spans, start = [], None
    for index, label in enumerate([*labels, -100]):
        if label != -100 and start is None:
            start = index
        elif label == -100 and start is not None:
            spans.append((start, index))
            start = None
    return spans
