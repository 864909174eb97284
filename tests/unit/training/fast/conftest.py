"""Trainers on the plain and on the fast path, over the same rows from the same seed."""

from __future__ import annotations

import pytest
from tiny import tiny_model
from training_rows import dataset, rows

from mac_lora_helpers.training import fast


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """``family_folder(family, **config)``: a tiny random model of a family, made once for each combination."""
    made = {}

    def folder(family, **overrides):
        key = (family, tuple(sorted(overrides.items())))
        if key not in made:
            made[key] = tiny_model(tmp_path_factory.mktemp(family), family, **overrides)
        return made[key]

    return folder


@pytest.fixture
def trained_rows():
    """Forty rows of different lengths; two thirds of each have labels."""
    return {"train": dataset(rows(40, longest=32))}


@pytest.fixture
def build(make, trainer_for, trained_rows):
    """``build(name, **parameters) -> (run, trainer)`` on the plain path, dropout 0 unless told otherwise."""

    def trainer(name="plain", tokens=None, **parameters):
        values = {
            "fast_path": "off",
            "max_steps": 5,
            "lora_dropout": 0,
            "logging_steps": 1,
            "save_steps": 1000,
            "per_device_train_batch_size": 2,
            "eval_steps": -1,
        }
        run, config = make(folder=name, **{**values, **parameters})
        return run, trainer_for(run, config, tokens or trained_rows)

    return trainer


@pytest.fixture
def both(build):
    """``both(recompute=…, **parameters)``: the log rows of a plain and of a fast training."""

    def logs(recompute="auto", **parameters):
        run, trainer = build("plain", **parameters)
        assert "_fast_path" not in trainer.model.get_base_model().__dict__, "nothing would be compared"
        trainer.train()
        fast_run, fast_trainer = build("fast", **parameters)
        report = fast.make_fast(fast_trainer, recompute=recompute)
        assert report.applied, report.reason
        path = fast_trainer.model.get_base_model()._fast_path
        before, passes, deal = path.steps, [], fast_trainer._deal
        fast_trainer._deal = lambda inputs: passes.extend(parts := deal(inputs)) or parts
        fast_trainer.train()
        assert path.steps - before == len(passes) > 0, "a pass took the plain path"
        return run.read_lines("train_log"), fast_run.read_lines("train_log"), (trainer, fast_trainer)

    return logs
