"""Rows, data sets and notebook 03's cells for the training tests."""

from __future__ import annotations

import random

from mac_lora_helpers.artifacts import RunDir


class OneRun(RunDir):
    """A run directory whose training is written where it stays: most tests look into it before it is finished."""

    def begin(self, number, keep=False):
        return self

    def finish(self):
        return self


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


class Watched:
    """``ui`` with a listener in place of the live figure."""

    def __init__(self, on_log):
        self.LiveLoss = lambda: on_log

    def __getattr__(self, name):
        from mac_lora_helpers import ui

        return getattr(ui, name)


def trained_by_cells(run, config, tokens, on_log=lambda rows, now: None, last="trainer"):
    """All names after notebook 03's cells from the model on."""
    from mac_lora_helpers.training.cells import run_cells

    return run_cells(
        {"run": run, "config": config, "tokens": tokens, "ui": Watched(on_log), "manifest": run.read_json("manifest")}, "model", last
    )
