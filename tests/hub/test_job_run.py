"""The whole job as the cloud would run it: data, training, evaluation and a push, against the stand-in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard, snapshot_download

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.export import write_job
from mac_lora_helpers.export.job import script as job_script


def written(tmp_path, **values):
    """A job of the embedded default, as notebooks 02, 03 and 05 leave it."""
    values = {"repo_id": "alice/from-the-cloud", "eval_examples": 4, "max_new_tokens": 24, **values}
    config = resolve({"out_dir": str(tmp_path / "run"), **values}, env={})
    run = RunDir(tmp_path / "run")
    job_script.write_data(run, config)
    run.write_json("train_config", {"config": config.model_dump()})
    return write_job(run, config)


@pytest.fixture
def job(tmp_path):
    return written(tmp_path)


def start(job, hub, token, *arguments):
    inherited = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "OMP_NUM_THREADS": "1"}
    environment = {**inherited, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, str(job.folder / "train_job.py"), "--any-device", "--device", "cpu", *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=job.folder, timeout=240, check=False)


@pytest.mark.slow
def test_a_job_ends_with_its_adapter_on_the_hub(job, hub, alice, tmp_path):
    done = start(job, hub, alice, "--max-steps", "20")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "same data as the local run" in done.stdout
    assert f"pushed to {hub.url}/alice/from-the-cloud" in done.stdout
    assert hub.repo("alice/from-the-cloud").private
    folder = snapshot_download("alice/from-the-cloud", local_dir=tmp_path / "pulled", cache_dir=tmp_path / "cache")
    out = RunDir(job.folder / "outputs" / "job")
    assert (tmp_path / "pulled" / "adapter_model.safetensors").read_bytes() == (
        out.need("adapter") / "adapter_model.safetensors"
    ).read_bytes()
    assert out.read_json("manifest")["fingerprint"] == job.record["fingerprint"]
    text = ModelCard.load(f"{folder}/README.md").content
    assert job.record["fingerprint"] in text
    assert "20 in " in text
    assert "Not recorded" not in text
    assert alice not in done.stdout + done.stderr


def test_a_job_that_may_not_push_stops_before_it_trains(job, hub, tmp_path):
    done = start(job, hub, hub.add_user("mallory"))
    assert done.returncode == 1
    assert "alice/from-the-cloud: the login mallory may not write there" in done.stderr
    assert not (job.folder / "outputs" / "job" / "data").exists()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """A flavor with two GPUs, with two CPU processes in their place: the same batch in every step, so the same losses."""
    job = written(tmp_path, job_flavor="a10g-largex2", lora_dropout=0, logging_steps=1, max_steps=4, eval_examples=2, max_new_tokens=8)
    assert job.record["processes"] == 2
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    losses = {}
    for count in ("1", "2"):
        out = tmp_path / f"out{count}"
        words = [sys.executable, str(job.folder / "train_job.py"), "--any-device", "--device", "cpu", "--no-push", "--out", str(out)]
        words += ["--processes", "1"] if count == "1" else []
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("2 processes" in done.stdout) is (count == "2")
        losses[count] = [row["loss"] for row in RunDir(out).read_lines("train_log") if row.get("loss") is not None]
        assert (RunDir(out).need("adapter") / "adapter_model.safetensors").is_file()
    assert len(losses["1"]) == 4
    assert losses["1"] == pytest.approx(losses["2"], abs=1e-5)
