"""Rows, data sets and choices for the training tests."""

from __future__ import annotations

import random
from types import SimpleNamespace

CPU = SimpleNamespace(name="cpu", reason="test")
FLOAT32 = SimpleNamespace(name="float32", reason="test")


def rows(count: int, seed: int = 0, shortest: int = 8, longest: int = 24, vocabulary: int = 300):
    """Random token rows whose first third is not trained; every row repeats one of four patterns, so it can be learned."""
    source = random.Random(seed)
    patterns = [[source.randrange(3, vocabulary) for _ in range(longest)] for _ in range(4)]
    made = []
    for index in range(count):
        ids = patterns[index % 4][: source.randint(shortest, longest)]
        cut = len(ids) // 3
        made.append({"input_ids": ids, "labels": [-100] * cut + ids[cut:]})
    return made


def dataset(made):
    """The rows as a ``datasets.Dataset``."""
    from datasets import Dataset

    return Dataset.from_list(made)
