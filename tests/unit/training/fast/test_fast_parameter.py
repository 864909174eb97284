"""``fast_path`` in the config reaches the trainer that notebook 03 builds."""

import pytest


@pytest.mark.parametrize(("value", "kind"), [("auto", "nothing"), ("lean", "mlp")])
def test_the_parameter_gives_the_plain_paths_losses(build, capsys, value, kind):
    plain_run, plain = build("plain", gradient_checkpointing=False)
    plain.train()
    run, trainer = build("fast", gradient_checkpointing=False, fast_path=value)
    trainer.train()
    assert trainer.fast.applied
    assert trainer.fast.plan.kind == kind
    assert "fast path on: same numbers" in capsys.readouterr().out
    for ours, theirs in zip(run.read_lines("train_log"), plain_run.read_lines("train_log"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_off_is_trls_own_path(build):
    _, trainer = build("plain", fast_path="off")
    assert not trainer.fast.applied
    assert not hasattr(trainer.model.get_base_model(), "_fast_path")


def test_an_unknown_family_is_told_and_trains_plainly(build, family_folder, capsys):
    folder = family_folder("gpt_neox")
    run, trainer = build("neox", model_id=str(folder), fast_path="auto")
    trainer.train()
    assert not trainer.fast.applied
    assert "fast path off:" in capsys.readouterr().out
    assert run.read_lines("train_log")[-1]["loss"] > 0
