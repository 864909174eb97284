"""``accelerate launch`` with two real processes: the losses, the adapter and the artefacts of one."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from mac_lora_helpers import data, training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.placing import building_of
from mac_lora_helpers.training import processes, resume

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "-m", "mac_lora_helpers", "train"]
#: 13 rows in batches of 2: seven batches, so that the last step of an epoch cannot be dealt out evenly.
RECIPE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 2, "learning_rate": 2e-3}
RECIPE |= {"lora_dropout": 0, "logging_steps": 1, "save_steps": 3, "lora_r": 4, "lora_alpha": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, model_folder):
    """``prepared(name)``: a run directory as notebook 02 leaves it."""
    folder = tmp_path_factory.mktemp("several")
    rows = folder / "rows.jsonl"
    pairs = [(f"What is {i} and {i * 7}?" + " Tell me." * (i % 4), f"It is {i * 8}." * (1 + i % 3)) for i in range(17)]
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    rows.write_text("\n".join(map(json.dumps, lines)))

    def make(name):
        values = {"preset": "local", "model_id": str(model_folder), "data_files": str(rows), "max_seq_length": 64, "max_damaged_share": 1}
        config = resolve({**values, "valid_share": 0.1, "test_share": 0.1, "out_dir": str(folder / name)}, env={})
        run = RunDir(config.out_dir)
        source = data.load(config)
        found = data.validate(source, config)
        splits = data.split(found, config)
        data.save(run, source, found, splits, data.encode(splits, data.load_tokenizer(config), config), config)
        assert len(splits["train"]) == 13
        return run

    return make


def launch(run, wait=True, **parameters):
    given = [part for name, value in {**RECIPE, **parameters}.items() for part in ("-p", name, str(value))]
    command = [sys.executable, *LAUNCH, "--run-dir", str(run.root), *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    if not wait:
        return process
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    return out


def alone(run, **parameters):
    config = resolve({"preset": "local", **RECIPE, **parameters, "out_dir": str(run.root)}, env={})
    return training.run_training(run, config)


def weights(run):
    from safetensors.torch import load_file

    return load_file(run.path("adapter") / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["auto", "off"])
def test_two_processes_train_what_one_trains_and_one_of_them_writes(path, prepared):
    one, two = prepared(f"one-{path}"), prepared(f"two-{path}")
    metrics = alone(one, fast_path=path)
    out = launch(two, fast_path=path)
    assert "2 processes" in out
    assert out.count("step 0 of 4") == 1, "both processes speak"
    ours, theirs = two.read_lines("train_log"), one.read_lines("train_log")
    assert len(ours) == len(theirs) == metrics["steps"] == 4
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert (row["tokens"], row["learning_rate"]) == (other["tokens"], other["learning_rate"])
    for name, tensor in weights(two).items():
        torch.testing.assert_close(tensor, weights(one)[name], atol=1e-5, rtol=1e-4)
    assert two.read_json("train_metrics")["audit"] == metrics["audit"]
    assert two.has("loss_figure")
    folder = two.path("checkpoints")
    assert [item.name for item in resume.checkpoints(folder)] == ["checkpoint-4", "checkpoint-3"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(resume.read_seal(folder / "checkpoint-4")["files"])
    assert not list(folder.glob(".saving-*"))


@pytest.mark.slow
def test_interrupted_together_they_go_on_together(prepared):
    more = {"num_train_epochs": 20, "lora_dropout": 0.1, "save_steps": 10, "gradient_checkpointing": "false"}
    straight, run = prepared("straight"), prepared("interrupted")
    launch(straight, **more)
    process = launch(run, wait=False, **more)
    unfinished = building_of(run.root, 3) / "checkpoints"
    while not resume.checkpoints(unfinished) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher, which passes it on, and to both processes
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "the training was interrupted" in err, out + err
    step = int(resume.checkpoints(unfinished)[0].name[11:])
    assert 0 < step < 40
    assert f"Going on from step {step}" in launch(run, **more)
    assert all(torch.equal(tensor, weights(straight)[name]) for name, tensor in weights(run).items())


def test_a_number_of_processes_that_does_not_divide_the_rows_of_a_step_is_refused(make, tokens, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    _, config = make(gradient_accumulation_steps=8)
    with pytest.raises(InputError, match="the 8 rows of an optimizer step cannot be dealt out evenly over 3 processes"):
        training.running(config, SimpleNamespace(name="cpu"), tokens)


def test_one_process_needs_nobody(monkeypatch):
    assert processes.count() == 1
    assert processes.is_main()
    assert processes.any_of(True)
    assert not processes.any_of(False)
    processes.wait()
    with pytest.raises(ValueError, match="mine"):
        processes.raise_together(ValueError("mine"), "here")
    processes.raise_together(None, "here")


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    processes.choose_gpu("cpu")
    processes.choose_gpu("cuda")
    assert taken == [1]


def test_a_process_that_is_not_the_first_keeps_its_log_to_itself(make):
    from mac_lora_helpers.training.log import RunLog

    run, _ = make()
    shown = []
    log = RunLog(run, 1, lambda *now: shown.append(now), quietly=True)
    log.begin({})
    log.step(1, True, loss=1.0)
    assert log.rows[0]["loss"] == 1.0
    assert not run.has("train_log")
    assert shown == []
