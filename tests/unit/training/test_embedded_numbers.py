"""The embedded task, really trained: plain against fast, bfloat16 against float32."""

import pytest

from mac_lora_helpers import data, training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.training.audit import mean_loss


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """``embedded(**parameters)``: a trainer over the embedded data, run to its end."""
    made = []

    def train(**parameters):
        folder = tmp_path_factory.mktemp("embedded")
        values = {
            "preset": "smoke",
            "lora_dropout": 0,
            "logging_steps": 1,
            "save_steps": 1000,
            "eval_steps": -1,
            "out_dir": str(folder),
            **parameters,
        }
        config, run = resolve(values, env={}), RunDir(folder)
        source = data.load(config)
        found = data.validate(source, config)
        splits, tokenizer = data.split(found, config), data.load_tokenizer(config)
        encoded = made[0] if made else data.encode(splits, tokenizer, config)
        made.append(encoded)
        data.save(run, source, found, splits, encoded, config)
        trainer = training.run_cells({"run": run, "config": config}, last="trainer")["trainer"]
        trainer.train()
        return trainer

    return train


@pytest.mark.slow
def test_fifty_steps_plain_and_fast_have_the_same_losses(embedded):
    plain, fast = (embedded(max_steps=50, fast_path=path) for path in ("off", "auto"))
    assert not plain.fast.applied
    assert fast.fast.applied
    assert len(fast.run_log.losses) == len(plain.run_log.losses) == 50
    for step, (one, other) in enumerate(zip(plain.run_log.losses, fast.run_log.losses, strict=True), start=1):
        assert other == pytest.approx(one, abs=1e-4), step
    assert plain.run_log.losses[-1] < 0.75 * plain.run_log.losses[0]


@pytest.mark.slow
def test_a_bfloat16_base_learns_what_float32_learns(embedded):
    """A fifth of the preset's steps, where rounding moves the end by 0.2 %; whole runs are compared by benchmarks/bfloat16_quality.py."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        trainer = embedded(dtype=dtype, lora_dropout=0.05, max_steps=40)
        assert {str(p.dtype) for p in trainer.model.parameters() if not p.requires_grad} == {f"torch.{dtype}"}
        losses[dtype] = mean_loss(trainer, list(trainer.tokens["valid"]))
    assert losses["float32"] < 0.62, "0.74 before the training"
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
