"""A run directory with tokens as notebook 02 leaves them, and a training by notebook 03's own cells."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread only waits


import pytest
from tiny import tiny_model
from training_rows import OneRun, dataset, rows, trained_by_cells

from mac_lora_helpers import training
from mac_lora_helpers.config import resolve


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """One tiny Qwen2 shared by the tests that only read it."""
    return tiny_model(tmp_path_factory.mktemp("model") / "qwen2")


@pytest.fixture
def tokens():
    """Twelve training rows and three validation rows."""
    return {"train": dataset(rows(12)), "valid": dataset(rows(3, seed=1))}


@pytest.fixture
def make(tmp_path, model_folder):
    """``make(**parameters) -> (run, config)``: a run directory with a manifest, and a resolved config."""

    def build(fingerprint: str = "sha256:data-1", folder: str = "run", **parameters):
        values = {
            "preset": "local",
            "model_id": str(model_folder),
            "device": "cpu",
            "max_seq_length": 32,
            "max_steps": 4,
            "gradient_accumulation_steps": 2,
            "lora_r": 4,
            "lora_alpha": 8,
            "save_steps": 2,
            "out_dir": str(tmp_path / folder),
            **parameters,
        }
        config = resolve(values, env={})
        run = OneRun(config.out_dir)
        run.write_json("manifest", {"fingerprint": fingerprint})
        return run, config

    return build


@pytest.fixture
def trainer_for():
    """``trainer_for(run, config, tokens)``: the trainer, as notebook 03's cells build it."""

    def build(run, config, tokens, on_log=lambda rows, now: None):
        return trained_by_cells(run, config, tokens, on_log, last="trainer")["trainer"]

    return build


@pytest.fixture
def train(trainer_for):
    """``train(run, config, tokens) -> (trainer, metrics)``: notebook 03 from model to audit."""

    def whole(run, config, tokens, **more):
        trainer = trainer_for(run, config, tokens, **more)
        trainer.train(resume_from_checkpoint=training.last_checkpoint(run, config))
        trainer.save_model()
        return trainer, training.examine(trainer)

    return whole
