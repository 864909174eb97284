"""A run directory with tokens as notebook 02 leaves them, and a whole training in one call."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread only waits

import random
from types import SimpleNamespace

import pytest
from tiny import tiny_model

from mac_lora_helpers import training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve

CPU = SimpleNamespace(name="cpu", reason="test")
FLOAT32 = SimpleNamespace(name="float32", reason="test")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """One tiny Qwen2 shared by the tests that only read it."""
    return tiny_model(tmp_path_factory.mktemp("model") / "qwen2")


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
        run = RunDir(config.out_dir)
        run.write_json("manifest", {"fingerprint": fingerprint})
        return run, config

    return build


@pytest.fixture
def trainer_for():
    """``trainer_for(run, config, tokens)``: the trainer, built as notebook 03 builds it."""

    def build(run, config, tokens, device=CPU, dtype=FLOAT32, **more):
        from tiny import tiny_tokenizer

        model = training.load_model(config, device, dtype)
        lora, args = training.lora_config(config, model), training.sft_config(config, run, device, dtype)
        return training.build_trainer(model, tiny_tokenizer(), tokens, lora, args, run, config, **more)

    return build


@pytest.fixture
def train(trainer_for):
    """``train(run, config, tokens) -> (trainer, metrics)``: notebook 03 from model to audit."""

    def whole(run, config, tokens, **more):
        trainer = trainer_for(run, config, tokens, **more)
        result = trainer.train(resume_from_checkpoint=training.last_checkpoint(run, config))
        training.save_adapter(trainer, run, config)
        return trainer, training.finish(trainer, result, run, config)

    return whole
