"""An interrupted training goes on where it was and ends bit for bit as an undisturbed one; foreign checkpoints are refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_rows import OneRun, dataset, rows, trained_by_cells

from mac_lora_helpers import training
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.training import resume

VOLATILE = ("seconds", "memory_bytes")


def weights(run):
    from safetensors.torch import load_file

    return load_file(run.path("adapter") / "adapter_model.safetensors")


def same_bits(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def log_of(run):
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in run.read_lines("train_log")]


def signal_at(step, number):
    def on_log(logged, now):
        if now["step"] == step and not now["over"] and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    sent = []

    return on_log


@pytest.fixture(scope="module")
def plan():
    """Seven steps over five rows with a validation curve: epochs end inside and at the end of a step, passes are padded."""
    values = {"max_steps": 7, "logging_steps": 1, "save_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 0.03}
    values |= {"eval_steps": 2, "keep_best": True}
    return values, {"train": dataset(rows(5)), "valid": dataset(rows(3, seed=1))}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, model_folder, plan):
    """The adapter and the log of the undisturbed training."""
    from mac_lora_helpers.config import resolve

    values = {"preset": "local", "model_id": str(model_folder), "max_seq_length": 32, "gradient_accumulation_steps": 2, "device": "cpu"}
    config = resolve({**values, "lora_r": 4, "lora_alpha": 8, **plan[0], "out_dir": str(tmp_path_factory.mktemp("straight"))}, env={})
    run = OneRun(config.out_dir)
    run.write_json("manifest", {"fingerprint": "sha256:data-1"})
    trainer = trained_by_cells(run, config, plan[1])["trainer"]
    trainer.train()
    trainer.save_model()
    best = min(run.read_lines("train_log"), key=lambda row: row.get("eval_loss", 9))
    assert best["step"] < 7, "the last step would be saved without the curve as well"
    return weights(run), log_of(run)


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM), (4, signal.SIGINT), (6, signal.SIGTERM)])
def test_a_signal_saves_and_the_next_run_ends_bit_for_bit_the_same(step, number, make, trainer_for, train, plan, straight, capsys):
    run, config = make(**plan[0])
    before = signal.getsignal(number)
    with pytest.raises(UserError, match="interrupted"):
        trainer_for(run, config, plan[1], on_log=signal_at(step, number)).train()
    assert signal.getsignal(number) is before
    assert resume.read_state(run.path("checkpoints"))["status"] == "interrupted"
    assert [row["step"] for row in run.read_lines("train_log")] == list(range(1, step + 1))
    capsys.readouterr()

    _, metrics = train(run, config, plan[1])
    assert f"Going on from step {step}" in capsys.readouterr().out
    assert same_bits(weights(run), straight[0])
    assert log_of(run) == straight[1]
    assert metrics["resumed_from_step"] == step
    assert metrics["steps"] == 7


def test_stopped_twice_and_still_the_same(make, trainer_for, train, plan, straight):
    run, config = make(**plan[0])
    for step in (2, 5):
        with pytest.raises(UserError, match="interrupted"):
            trainer = trainer_for(run, config, plan[1], on_log=signal_at(step, signal.SIGINT))
            trainer.train(resume_from_checkpoint=training.last_checkpoint(run, config))
    train(run, config, plan[1])
    assert same_bits(weights(run), straight[0])


def test_a_training_that_was_complete_but_for_its_adapter_is_only_taken_over(make, trainer_for, train, plan, straight):
    run, config = make(**plan[0])
    trainer_for(run, config, plan[1]).train()
    _, metrics = train(run, config, plan[1])
    assert same_bits(weights(run), straight[0])
    assert metrics["resumed_from_step"] == 7
    assert metrics["audit"]["batches_equal_data"] is None, "this process saw no batch"
    assert metrics["first_loss"] == straight[1][0]["loss"]


def test_the_same_curve_and_the_same_best_step_after_an_interruption(make, trainer_for, train, plan, straight):
    """The lowest point lies before the checkpoint that is gone on from."""
    run, config = make(**plan[0])
    with pytest.raises(UserError, match="interrupted"):
        trainer_for(run, config, plan[1], on_log=signal_at(6, signal.SIGINT)).train()
    _, metrics = train(run, config, plan[1])
    curve = [(row["step"], row["eval_loss"]) for row in straight[1] if "eval_loss" in row]
    assert [(row["step"], row["eval_loss"]) for row in log_of(run) if "eval_loss" in row] == curve
    assert metrics["best_step"] == metrics["saved_step"] == min(curve, key=lambda point: point[1])[0] < 6
    assert metrics["audit"]["best_is_saved"]
    assert same_bits(weights(run), straight[0])


def test_the_path_is_chosen_once(make, trainer_for, train, plan, monkeypatch):
    """A resumed training takes the sealed path, without asking the model or the clock again."""
    from mac_lora_helpers.training.fast import install

    monkeypatch.setattr(install, "LONG", 1)
    monkeypatch.setattr(install, "SLOWER", 0)  # the fast path always loses its race
    run, config = make(**plan[0], fast_path="auto")
    with pytest.raises(UserError, match="interrupted"):
        trainer_for(run, config, plan[1], on_log=signal_at(4, signal.SIGINT)).train()
    monkeypatch.setattr(install, "SLOWER", 1e9)
    trainer, metrics = train(run, config, plan[1])
    assert not trainer.fast.applied
    assert "two passes each way" in metrics["fast_path"]["reason"]
    assert metrics["fast_path"]["seconds"].keys() == {"plain", "fast"}
    run, config = make(**plan[0], fast_path="auto", folder="other")
    assert trainer_for(run, config, plan[1]).fast.applied


@pytest.fixture
def interrupted(make, trainer_for, plan):
    """A run directory whose training was interrupted after step 4, with a checkpoint of step 3 as well."""
    run, config = make(**plan[0])
    with pytest.raises(UserError, match="interrupted"):
        trainer_for(run, config, plan[1], on_log=signal_at(4, signal.SIGINT)).train()
    assert [path.name for path in resume.checkpoints(run.path("checkpoints"))] == ["checkpoint-4", "checkpoint-3"]
    return run


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"learning_rate": 1e-4}, "learning_rate was 0.03, is 0.0001"),
        ({"lora_r": 8}, "lora_r was 4, is 8"),
        ({"max_steps": 9}, "max_steps was 7, is 9"),
        ({"seed": 1}, "seed was 42, is 1"),
        ({"fingerprint": "sha256:data-2"}, "the data are others"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_with_the_difference(changed, told, make, plan, interrupted):
    run, config = make(**{**plan[0], **changed})
    with pytest.raises(InputError, match=told) as refused:
        training.last_checkpoint(run, config)
    assert "resume=never" in str(refused.value)
    run, config = make(**{**plan[0], **changed, "resume": "never"})
    assert training.last_checkpoint(run, config) is None


def test_another_model_of_the_same_name_is_refused(make, plan, interrupted, monkeypatch):
    run, config = make(**plan[0])
    monkeypatch.setattr(resume, "_model_files", lambda config: "another")
    with pytest.raises(InputError, match="base model's files are others"):
        training.last_checkpoint(run, config)


def test_what_changes_no_number_may_change(make, plan, interrupted):
    run, config = make(**{**plan[0], "save_steps": 50, "logging_steps": 5, "save_total_limit": 1, "gradient_checkpointing": False})
    assert training.last_checkpoint(run, config).endswith("checkpoint-4")


def damage_truncate(folder):
    file = folder / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-100])


def damage_flip(folder):
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_flip,
        lambda folder: (folder / "trainer_state.json").unlink(),
        lambda folder: (folder / resume.SEAL).unlink(),
        lambda folder: (folder / resume.SEAL).write_text('{"step": 4'),
    ],
)
def test_a_damaged_checkpoint_is_never_used(damage, make, train, plan, interrupted, straight, capsys):
    damage(interrupted.path("checkpoints") / "checkpoint-4")
    run, config = make(**plan[0])
    train(run, config, plan[1])
    out = capsys.readouterr().out
    assert "checkpoint-4 is incomplete or damaged" in out
    assert "Going on from step 3" in out
    assert same_bits(weights(run), straight[0])


def test_a_half_written_checkpoint_is_swept_away(make, train, plan, interrupted, straight):
    folder = interrupted.path("checkpoints")
    shutil.copytree(folder / "checkpoint-4", folder / ".saving-abc" / "checkpoint-6")
    run, config = make(**plan[0])
    train(run, config, plan[1])
    assert not list(folder.glob(".saving-*"))
    assert same_bits(weights(run), straight[0])


def test_checkpoints_hold_no_pickled_arguments_and_no_more_than_asked(make, train, tokens):
    run, config = make(max_steps=6, save_steps=1, save_total_limit=2)
    train(run, config, tokens)
    folder = run.path("checkpoints")
    assert [path.name for path in resume.checkpoints(folder)] == ["checkpoint-6", "checkpoint-5"]
    names = {path.name for path in folder.rglob("*")}
    assert not names & {"training_args.bin", "README.md"}
    sealed = json.loads((folder / "checkpoint-6" / resume.SEAL).read_text())
    assert sealed["identity"]["data_fingerprint"] == "sha256:data-1"
    assert len(sealed["identity"]["config_hash"]) == 64


def test_killed_at_random_moments_it_still_ends_the_same(make, plan, straight, tmp_path):
    """SIGKILL, ten times, at moments spread over the training; a process of its own forks the trainings."""
    run, config = make(**plan[0], folder="killed")
    (tmp_path / "rows.json").write_text(json.dumps({name: split.to_list() for name, split in plan[1].items()}))
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump()))
    script = Path(__file__).with_name("kill_drill.py")
    command = [sys.executable, str(script), str(tmp_path / "config.json"), str(tmp_path / "rows.json"), "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed near") == 10, "a training ended before it could be killed"
    assert "Going on from step" in done.stdout
    assert same_bits(weights(run), straight[0])
    assert log_of(run) == straight[1]


def test_a_full_disk_is_told_and_leaves_the_older_checkpoint(make, plan, trainer_for, train, straight):
    run, config = make(**plan[0])
    folder = run.path("checkpoints")
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        trainer = trainer_for(run, config, plan[1], on_log=fill_after(folder, 4))
        with pytest.raises(UserError, match="the disk is full") as told:
            trainer.train()
        assert "run again" in str(told.value)
        assert [path.name for path in resume.checkpoints(folder)] == ["checkpoint-3"]
        (folder / "ballast").unlink()
        train(run, config, plan[1])
        assert same_bits(weights(run), straight[0])
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # -l: the optimizer's tensors may still be mapped from there


def fill_after(folder, step):
    def on_log(logged, now):
        if now["step"] == step and not (folder / "ballast").exists():
            free = shutil.disk_usage(folder).free
            (folder / "ballast").write_bytes(b"0" * max(free - 20_000, 0))

    return on_log


#: safetensors replaces a file instead of opening it, so the adapter's weights are left to the small file system above.
FILES = ["adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("file", [*FILES, resume.SEAL])
def test_no_room_for_one_file_of_a_checkpoint(file, make, plan, trainer_for):
    """Every file is really written to a full device once; the checkpoint never gets its name."""
    run, config = make(**plan[0])
    folder = run.path("checkpoints")

    def fill(logged, now):
        staging = folder / ".saving-checkpoint-6" / "checkpoint-6"
        if now["step"] == 4 and not staging.exists():
            staging.mkdir(parents=True)
            (staging / file).symlink_to("/dev/full")

    with pytest.raises(UserError, match="the disk is full") as told:
        trainer_for(run, config, plan[1], on_log=fill).train()
    assert "goes on from the last whole checkpoint" in str(told.value)
    assert [path.name for path in resume.checkpoints(folder)] == ["checkpoint-3"]
    assert not list(folder.glob(".saving-*"))
    assert training.last_checkpoint(run, config).endswith("checkpoint-3")
