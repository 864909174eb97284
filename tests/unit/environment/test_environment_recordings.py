"""Every recorded platform gives the verdict and the findings that its recording expects."""

import json

import pytest
from recorded_probe import load_recording, recording_names

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import check_environment
from mac_lora_helpers.errors import CheckFailed

CONTRACT = {"python", "platform", "machine", "chip", "memory_bytes", "packages", "device", "dtype", "checks", "verdict"}
CASES = [
    pytest.param(name, case, id=f"{name}-{'-'.join(map(str, case['config'].values())) or 'smoke'}")
    for name in recording_names()
    for case in load_recording(name)["expect"]
]


def report_of(recorded, name, config=None):
    return check_environment(resolve(config or {}, env={}), recorded(name))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_verdict_and_findings(recorded, name, case):
    report = report_of(recorded, name, case["config"])
    statuses = {check.name: check.status for check in report.checks}
    assert report.verdict.where == case["where"], report.verdict.reasons
    assert case["reason"] in " | ".join(report.verdict.reasons)
    assert report.device.name == case["device"]
    assert {key: statuses.get(key) for key in case["checks"]} == case["checks"]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_finding_can_be_acted_on(recorded, name, case):
    report = report_of(recorded, name, case["config"])
    names = [check.name for check in report.checks]
    assert len(names) == len(set(names))
    for check in report.checks:
        assert check.detail, check
        assert bool(check.fix) == (check.status != "ok"), check
        assert "could not be made" not in check.detail
    assert report.verdict.reasons


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_failed_finding_stops_the_notebook(recorded, name, case):
    report = report_of(recorded, name, case["config"])
    if report.verdict.where == "unsupported" or "fail" in case["checks"].values():
        with pytest.raises(CheckFailed) as caught:
            report.require_trainable()
        assert caught.value.fix
        assert caught.value.exit_code == 1
    else:
        report.require_trainable()


@pytest.mark.parametrize("name", recording_names())
def test_recordings_say_where_they_come_from(name):
    recording = load_recording(name)
    assert recording["recorded"] in ("made up", "read off a machine")
    assert recording["note"]
    assert recording["expect"]


@pytest.mark.parametrize("name", recording_names())
def test_environment_json_has_the_contract_keys(recorded, name):
    saved = json.loads(json.dumps(report_of(recorded, name).to_dict(), allow_nan=False))
    assert set(saved) >= CONTRACT
    assert set(saved["device"]) == set(saved["dtype"]) == {"name", "reason"}
    assert saved["device"]["reason"]
    assert saved["dtype"]["reason"]
    assert all(set(check) == {"name", "status", "detail", "fix"} for check in saved["checks"])
    assert {check["status"] for check in saved["checks"]} <= {"ok", "warn", "fail"}
    assert saved["verdict"]["where"] in ("local", "cloud", "unsupported")


def test_what_macs_tell(recorded):
    m1, pro, top, rosetta, intel = (
        report_of(recorded, name).machine for name in ("m1-8gb", "m2-pro-16gb", "m4-max-64gb", "rosetta-m1-pro", "intel-old-torch")
    )
    assert [machine.gpu_cores for machine in (m1, pro, top, intel)] == [7, 19, 40, None]
    assert (rosetta.chip, rosetta.rosetta, rosetta.apple_silicon) == ("Apple M1 Pro", True, True)
    assert (intel.rosetta, intel.intel_mac) == (False, True)
    assert (m1.macos_version, m1.memory_bytes) == ("14.6.1", 8 * 1024**3)


@pytest.mark.parametrize(
    ("name", "cause", "fix", "follow"),
    [
        ("rosetta-m1-pro", "Platform", "arch -arm64", ["torch"]),
        ("intel-old-torch", "Platform", "hf jobs", ["Package torch"]),
        ("m1-macos-13", "macOS", "softwareupdate", ["torch"]),
    ],
)
def test_what_follows_from_a_cause_is_mended_there(recorded, name, cause, fix, follow):
    """`pip install torch` would find nothing on those machines."""
    checks = {check.name: check for check in report_of(recorded, name).checks}
    assert fix in checks[cause].fix
    assert {checks[name].fix for name in follow} == {checks[cause].fix}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_unsupported_always_comes_with_a_failed_finding(recorded, name, case):
    report = report_of(recorded, name, case["config"])
    assert report.failed or report.verdict.where != "unsupported"


def test_the_home_directory_is_shown_nowhere(recorded, monkeypatch, tmp_path):
    """Neither in the cache's place nor in a model's: in findings, reasons, environment.json."""
    home = tmp_path / "somebody"
    monkeypatch.setenv("HOME", str(home))
    for model in (str(home / "gone"), "Qwen/Qwen2.5-0.5B-Instruct"):
        probe = recorded("m2-pro-16gb")
        probe.answers["hub"]["settings"]["cache"] = str(home / ".cache/huggingface/hub")
        report = check_environment(resolve({"preset": "local", "model_id": model}, env={}), probe)
        shown = f"{report.rows()} {report.verdict} {json.dumps(report.to_dict())}"
        assert ("~/gone" if "gone" in model else "~/.cache/huggingface/hub") in shown
        assert "somebody" not in shown


def test_nothing_is_asked_of_the_hub_when_nothing_is_needed(recorded):
    probe = recorded("m2-pro-16gb")
    check_environment(resolve({}, env={}), probe)
    assert probe.asked_hub == []
    check_environment(resolve({"preset": "local"}, env={}), probe)
    assert probe.asked_hub == ["whoami", "models/Qwen/Qwen2.5-0.5B-Instruct", "datasets/HuggingFaceH4/ultrachat_200k"]
