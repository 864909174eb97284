"""Two traces are compared by name; the real comparison runs the job's script beside the local recipe."""

from __future__ import annotations

import copy
import json

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
    with pytest.raises(MissingArtifact, match="write_job"):
        check_parity(RunDir(tmp_path), resolve({}, env={}))


@pytest.mark.slow
def test_the_script_is_the_same_run_and_one_changed_parameter_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_model(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    values = {"model_id": str(tmp_path / "base"), "data_files": str(tmp_path / "rows.jsonl"), "out_dir": str(tmp_path / "run")}
    config = resolve({"preset": "local", "max_seq_length": 64, "device": "cpu", "gradient_accumulation_steps": 2, **values}, env={})
    run = RunDir(tmp_path / "run")
    make_data(run, config)
    write_job(run, config)
    report = check_parity(run, config, steps=10)
    report.require_passed()
    assert json.loads((run.path("job") / "parity.json").read_text()) == report.record
    assert len(report.record["losses"]["job"]) == 10
    write_job(run, config, changes={"learning_rate": 1e-3})
    changed = check_parity(run, config, steps=3)
    assert not changed.passed
    assert dict(row[:2] for row in changed.rows()) == {
        "fingerprint": "passed",
        "batches": "passed",
        "arguments": "failed",
        "losses": "failed",
    }
    with pytest.raises(CheckFailed, match="learning_rate"):
        changed.require_passed()
