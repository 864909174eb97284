"""Machine, variables and packages."""

import re
import tomllib
from pathlib import Path

import pytest

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import check_environment, read_machine, read_packages
from mac_lora_helpers.environment.checks import FALLBACK, HIGH, LOW, check_variables, memory_guidance
from mac_lora_helpers.environment.machine import GIB
from mac_lora_helpers.environment.probe import Probe
from mac_lora_helpers.environment.storage import check_packages

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_a_mac_that_answers_nothing(recorded):
    probe = recorded("m2-pro-16gb", commands={}, memory=None)
    machine = read_machine(probe=probe)
    assert (machine.gpu_cores, machine.chip, machine.macos_version) == (None, "arm64", None)
    assert (machine.memory_bytes, machine.free_memory_bytes) == (None, None)


def test_a_container_limit_counts(recorded):
    assert read_machine(probe=recorded("linux-small-container")).memory_bytes == 512 * 1024**2
    assert read_machine(probe=recorded("linux-cpu")).memory_bytes == 25274793984


def test_this_machine_is_read():
    machine = read_machine()
    assert machine.memory_bytes > machine.free_memory_bytes > 0
    assert machine.disk_free_bytes > 0
    assert machine.chip


@pytest.mark.parametrize(
    ("gib", "said", "most"), [(8, "about 0.5B", 0.65e9), (16, "0.5B to 1.5B", 2e9), (32, "1.5B to 3B", 3.5e9), (64, "larger", float("inf"))]
)
def test_memory_guidance(gib, said, most):
    advice, largest = memory_guidance(gib * GIB)
    assert said in advice
    assert largest == most


@pytest.mark.parametrize(
    ("env", "status", "said"),
    [
        ({FALLBACK: "1"}, "ok", "slower"),
        ({FALLBACK: "true"}, "fail", "may not even import"),
        ({FALLBACK: ""}, "fail", "may not even import"),
        ({HIGH: "0.0"}, "warn", "no limit"),
        ({HIGH: "0.7"}, "fail", "invalid low watermark ratio"),
        ({HIGH: "0.7", LOW: "0.5"}, "ok", "0.7"),
        ({LOW: "1.9"}, "fail", "low (1.9)"),
        ({HIGH: "0", LOW: "1.9"}, "warn", "no limit"),
        ({HIGH: "3"}, "fail", "high (3)"),
        ({HIGH: "high"}, "fail", "not a number"),
        ({HIGH: "nan"}, "fail", "nan"),
    ],
)
def test_mps_variables(recorded, env, status, said):
    (check,) = check_variables(read_machine(probe=recorded("m2-pro-16gb")), env)
    assert (check.status, said in check.detail) == (status, True), check
    assert check_variables(read_machine(probe=recorded("linux-cpu")), env) == []


def test_ranges_are_those_of_pyproject_for_each_platform(recorded):
    lines = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    ranges = {}
    for name in ("linux-cpu", "m2-pro-16gb"):
        probe = recorded(name)
        probe.requirements = lambda: lines
        ranges[name] = {package.name: package.tested for package in read_packages(probe)}
    assert set(ranges["linux-cpu"]) == {re.split(r"[<>=!~\[; ]", line)[0] for line in lines}
    linux, mac = ({part for part in ranges[name]["torch"].split(",")} for name in ranges)
    assert linux == {">=2.13", "<2.14"}
    assert mac == {">=2.14", "<2.15"}
    assert {package.status for package in read_packages()} <= {"ok", "optional"}


def test_packages_outside_the_range_and_missing(recorded):
    probe = recorded("m2-pro-16gb", versions={"transformers": "4.57.6", "peft": None, "jupyterlab": None})
    packages = {package.name: package for package in read_packages(probe)}
    assert [packages[name].status for name in ("transformers", "peft", "jupyterlab")] == ["outside", "missing", "optional"]
    checks = {check.name: check for check in check_packages(list(packages.values()))}
    assert checks["Package transformers"].status == "warn"
    assert checks["Package peft"].status == "fail"
    assert checks["Package peft"].fix == f'python -m pip install "{packages["peft"].requirement}"'
    assert "Package jupyterlab" not in checks


def test_commands_that_fail_or_are_missing():
    probe = Probe()
    assert probe.command("no-such-command-anywhere") is None
    assert probe.command("false") is None
    assert probe.command("echo", "hello") == "hello"


def test_a_check_that_trips_is_a_finding(recorded, monkeypatch):
    probe = recorded("linux-cpu")
    monkeypatch.setattr(probe, "hub_settings", lambda: {})
    check = next(check for check in check_environment(resolve({}), probe).checks if check.name == "Hub")
    assert check.status == "warn"
    assert "KeyError" in check.detail
