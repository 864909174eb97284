"""Two traces are compared by name; the real comparison runs the job's script beside the local recipe."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from test_job import make_data, rows
from tiny import tiny_model

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import CheckFailed, MissingArtifact
from mac_lora_helpers.export import check_parity, write_job
from mac_lora_helpers.export.job.parity import ParityReport, compare

TRACE = {
    "fingerprint": "f" * 64,
    "batches": ["a", "b", "c"],
    "losses": [2.0, 1.5],
    "resolved": {"SFTConfig": {"learning_rate": 2e-4, "output_dir": "here"}, "config": {"lora_r": 16}},
}


def failed(**changes):
    job = copy.deepcopy(TRACE)
    job.update(changes)
    return [check["name"] for check in compare(TRACE, job)["checks"] if not check["passed"]]


def test_equal_traces_pass():
    record = compare(TRACE, copy.deepcopy(TRACE))
    assert record["passed"]
    assert record["losses"] == {"local": [2.0, 1.5], "job": [2.0, 1.5]}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"fingerprint": "0" * 64}, ["fingerprint"]),
        ({"batches": ["a", "c", "b"]}, ["batches"]),
        ({"batches": ["a", "b"]}, ["batches"]),
        ({"batches": []}, ["batches"]),
        ({"losses": [2.0, 1.50002]}, ["losses"]),
        ({"losses": [2.0, 1.500009]}, []),
        ({"losses": [2.0, float("nan")]}, ["losses"]),
        ({"losses": [2.0]}, ["losses"]),
        ({"losses": []}, ["losses"]),
    ],
)
def test_each_difference_is_named(changes, names):
    assert failed(**changes) == names


def test_an_argument_is_named_with_both_values_and_a_place_is_allowed():
    job = copy.deepcopy(TRACE)
    job["resolved"]["SFTConfig"] = {"learning_rate": 1e-3, "output_dir": "there"}
    record = compare(TRACE, job)
    assert [item["name"] for item in record["allowed"]] == ["SFTConfig.output_dir"]
    with pytest.raises(CheckFailed, match=r"SFTConfig\.learning_rate \(0\.0002 → 0\.001\)"):
        ParityReport(record).require_passed()


def test_without_a_job_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(MissingArtifact, match="write the job"):
        check_parity(RunDir(tmp_path), resolve({}, env={}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a tiny model and rows of the user's own, with its job."""
    root = tmp_path_factory.mktemp("parity")
    tiny_model(root / "base")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    values = {"model_id": str(root / "base"), "data_files": str(root / "rows.jsonl"), "out_dir": str(root / "run")}
    config = resolve({"preset": "local", "max_seq_length": 64, "device": "cpu", "gradient_accumulation_steps": 2, **values}, env={})
    run = RunDir(root / "run")
    make_data(run, config)
    write_job(run, config)
    return root, run, config


def results(report):
    return {name: result for name, result, _ in report.rows()}


@pytest.mark.slow
def test_the_script_is_the_same_run(trained, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, run, config = trained
    report = check_parity(run, config, steps=10)
    report.require_passed()
    assert json.loads((run.path("job") / "parity.json").read_text()) == report.record
    assert len(report.record["losses"]["job"]) == 10


@pytest.mark.slow
def test_a_hyperparameter_that_was_changed_since_fails_by_name(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run, config = copied(trained, tmp_path)
    run.write_json("train_config", {"config": {**config.model_dump(), "learning_rate": 1e-3}})
    report = check_parity(run, config.model_copy(update={"learning_rate": 1e-3}), steps=3)
    assert results(report) == {"fingerprint": "passed", "batches": "passed", "arguments": "failed", "losses": "failed"}
    with pytest.raises(CheckFailed, match="learning_rate"):
        report.require_passed()


@pytest.mark.slow
def test_a_row_that_was_changed_since_fails_by_name(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "rows.jsonl"
    file.write_text((trained[0] / "rows.jsonl").read_text().replace("It is zero one.", "It is zero won."))
    run, config = copied(trained, tmp_path, data_files=str(file))
    make_data(run, config)
    report = check_parity(run, config, steps=2)
    assert results(report)["fingerprint"] == "failed"
    with pytest.raises(CheckFailed, match="fingerprint"):
        report.require_passed()


@pytest.mark.slow
def test_what_was_asked_to_differ_is_allowed_and_the_rest_is_still_compared(trained, monkeypatch, tmp_path):
    """Another learning rate, a longer context (new tokens), and the base from a folder where the job names a Hub id."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run, config = copied(trained, tmp_path)
    config.job_overrides = "learning_rate=0.001, max_seq_length=96, model_id=someone/tiny"
    write_job(run, config)
    report = check_parity(run, config, steps=3)
    report.require_passed()
    asked = [item["name"] for item in report.record["allowed"] if "job_overrides" in item["why"]]
    assert asked == ["config.learning_rate", "config.max_seq_length", "config.model_id"]


@pytest.mark.slow
def test_the_script_is_the_same_run_in_an_environment_from_its_own_header(trained, monkeypatch, tmp_path, need):
    """uv makes the environment of the script's header; the first time that takes minutes."""
    need(importlib.util.find_spec("uv"), "uv is not installed")
    for name, value in pip_settings().items():
        monkeypatch.setenv(name, value)
    run, config = copied(trained, tmp_path)
    uv = (sys.executable, "-m", "uv", "run", "--no-python-downloads", "--python", sys.executable, "--script")
    made = subprocess.run([*uv, run.path("job") / "train_job.py", "--help"], capture_output=True, text=True, check=False, timeout=900)
    need(made.returncode == 0, f"no environment could be made from the header: {made.stderr.strip()[-300:]}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_parity(run, config, steps=10, python=uv).require_passed()


def pip_settings():
    """uv does not read pip's settings; a CPU build of torch is found through them."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    links = re.search(r"find-links='([^']+)'", done.stdout)
    return {"UV_FIND_LINKS": links[1]} if links and "UV_FIND_LINKS" not in os.environ else {}


def copied(trained, tmp_path, **values):
    """The run in a folder of this test's own."""
    root, _, config = trained
    shutil.copytree(root / "run", tmp_path / "run")
    run, config = RunDir(tmp_path / "run"), resolve({**config.model_dump(), "out_dir": str(tmp_path / "run"), **values}, env={})
    run.write_json("train_config", {"config": config.model_dump()})
    return run, config
