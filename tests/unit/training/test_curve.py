"""The validation curve: measured while training, the best adapter kept, and said in words."""

import pytest
from training_rows import dataset, rows

from mac_lora_helpers.config import resolve
from mac_lora_helpers.training import curve
from mac_lora_helpers.training.audit import mean_loss

#: A learning rate at which the four patterns of the training rows are soon known by heart, and other rows get worse.
BY_HEART = {"max_steps": 12, "learning_rate": 0.02, "logging_steps": 5, "gradient_accumulation_steps": 4, "lora_dropout": 0}


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters() if tensor.requires_grad}


@pytest.fixture
def split():
    return {"train": dataset(rows(12)), "valid": dataset(rows(24, seed=1))}


def log(*losses):
    return [{"step": 10 * index, "loss": 1.0, "eval_loss": loss} for index, loss in enumerate(losses, start=1)]


def test_about_ten_points_with_the_loss_of_each_token_in_the_log(make, train, split):
    run, config = make(**{**BY_HEART, "max_steps": 20, "learning_rate": 1e-3})
    trainer, metrics = train(run, config, split)
    points = curve.points(run.read_lines("train_log"))
    assert [step for step, _ in points] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert points[-1][1] == pytest.approx(mean_loss(trainer, trainer.curve.rows), rel=1e-5)
    assert metrics["best_eval_loss"] == min(loss for _, loss in points)
    assert 0 < metrics["eval_seconds"] < metrics["seconds"]
    assert metrics["engine"] == "torch"


def test_the_lowest_points_adapter_is_saved_and_the_audit_knows(make, train, split):
    run, config = make(**BY_HEART, eval_steps=1)
    trainer, metrics = train(run, config, split)
    best = min(curve.points(run.read_lines("train_log")), key=lambda point: point[1])
    assert metrics["best_step"] == metrics["saved_step"] == best[0] < 12
    assert metrics["audit"]["best_is_saved"] is True
    assert trainer.curve.measure(trainer) == pytest.approx(best[1], rel=1e-5)
    assert f"lowest at step {best[0]}" in metrics["curve"]
    assert run.read_json("train_config")["best_step"] == best[0]
    last_run, last = make(folder="last", **BY_HEART, eval_steps=1, keep_best=False)
    _, metrics = train(last_run, last, split)
    assert (metrics["best_step"], metrics["saved_step"]) == (best[0], 12)
    assert metrics["audit"]["best_is_saved"] is None


def test_another_adapter_than_the_best_fails_the_audit(make, trainer_for, split):
    from mac_lora_helpers import training
    from mac_lora_helpers.errors import CheckFailed

    run, config = make(**BY_HEART, eval_steps=1)
    trainer = trainer_for(run, config, split)
    trainer.curve.restore = lambda rows, model: None
    trainer.train()
    trainer.save_model()
    with pytest.raises(CheckFailed, match="best_is_saved"):
        training.examine(trainer)


def test_patience_ends_the_training_and_a_repeat_takes_it_over(make, train, trainer_for, split):
    from mac_lora_helpers import training

    run, config = make(**{**BY_HEART, "max_steps": 40}, eval_steps=1, early_stopping_patience=3)
    trainer = trainer_for(run, config, split)
    steps = trainer.train().global_step
    best = curve.lowest(trainer.run_log.rows)[0]
    assert steps == best + 3 < 40
    kept = weights(trainer)
    again, metrics = train(run, config, split)
    assert metrics["resumed_from_step"] == metrics["steps"] == steps
    assert all((tensor == weights(again)[name]).all() for name, tensor in kept.items())
    assert training.last_checkpoint(run, config) is None or metrics["saved_step"] == best


@pytest.mark.parametrize(
    ("given", "rows", "every"),
    [({}, 50, 20), ({"eval_steps": 7}, 50, 7), ({"eval_steps": -1}, 50, 0), ({}, 0, 0)],
)
def test_how_often(given, rows, every):
    assert curve.every(resolve({"preset": "local", **given}, env={}), 200, rows) == every


def test_measuring_reads_a_small_share_of_the_trained_tokens_and_few_rows_keep_the_last_step():
    config = resolve({"preset": "local"}, env={})
    valid = dataset(rows(400, shortest=20, longest=20))
    measured = curve.Curve(config, valid, steps=100, trained=100 * 8 * 20, step_rows=8, budget=512)
    assert len(measured.rows) * 10 * 20 <= curve.SHARE * 100 * 8 * 20
    assert measured.keep_best
    assert len(curve.Curve(config.model_copy(update={"eval_steps": 5}), valid, 100, 16000, 8, 512).rows) == 400, "as asked"
    assert not curve.Curve(config, dataset(rows(19)), 100, 16000, 8, 512).keep_best
    assert not curve.Curve(config, None, 100, 16000, 8, 512).keep_best


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((0.9, 0.7, 0.6), "lowest at step 30 (0.600), the last one measured: more steps may help"),
        ((0.9, 0.5, 0.6, 0.7), "lowest at step 20 (0.500) and has risen since (0.700 at step 40): the rows are being learned by heart"),
        ((0.9, 0.500, 0.502), "lowest at step 20 (0.500) and has levelled off"),
        ((), "no validation loss was measured"),
    ],
)
def test_words(losses, said):
    assert said in curve.words(log(*losses))
