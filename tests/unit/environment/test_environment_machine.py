"""Machine, variables and packages."""

import re
import tomllib
from pathlib import Path

import pytest

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import check_environment, read_machine, read_packages
from mac_lora_helpers.environment.checks import FALLBACK, HIGH, LOW, check_python, check_variables, memory_guidance
from mac_lora_helpers.environment.machine import GIB
from mac_lora_helpers.environment.probe import Probe
from mac_lora_helpers.environment.storage import check_packages

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def variables(recorded, **env):
    return {check.name: check for check in check_variables(read_machine(probe=recorded("m2-pro-16gb")), env)}


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


def test_python_version(recorded):
    machine = read_machine(probe=recorded("linux-cpu"))
    wanted = {">=3.11": "ok", ">=3.11,<3.14": "ok", ">=3.12": "fail", None: "ok"}
    assert {text: check_python(machine, text).status for text in wanted} == wanted


@pytest.mark.parametrize(
    ("env", "name", "status", "said"),
    [
        ({}, FALLBACK, "ok", "off"),
        ({FALLBACK: "0"}, FALLBACK, "ok", "off"),
        ({FALLBACK: "1"}, FALLBACK, "ok", "run on the CPU"),
        ({FALLBACK: "true"}, FALLBACK, "fail", "may not even import"),
        ({FALLBACK: ""}, FALLBACK, "fail", "may not even import"),
        ({}, HIGH, "ok", "1.7 times"),
        ({HIGH: "0.0"}, HIGH, "warn", "no limit"),
        ({HIGH: "0.7"}, HIGH, "fail", "invalid low watermark ratio 1.4"),
        ({HIGH: "0.7", LOW: "0.5"}, HIGH, "ok", "0.7 times"),
        ({LOW: "1.9"}, HIGH, "fail", "below the low watermark"),
        ({HIGH: "0", LOW: "1.9"}, HIGH, "warn", "no limit"),
        ({HIGH: "3"}, HIGH, "fail", "from 0 to 2"),
        ({HIGH: "high"}, HIGH, "fail", "from 0 to 2"),
        ({HIGH: "nan"}, HIGH, "fail", "from 0 to 2"),
    ],
)
def test_mps_variables(recorded, env, name, status, said):
    check = variables(recorded, **env)[name]
    assert (check.status, said in check.detail) == (status, True), check


def test_mps_variables_off_the_mac(recorded):
    assert check_variables(read_machine(probe=recorded("linux-cpu")), {HIGH: "0.0"}) == []


def test_ranges_are_those_of_pyproject_for_each_platform(recorded):
    lines = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    ranges = {}
    for name in ("linux-cpu", "m2-pro-16gb"):
        probe = recorded(name)
        probe.metadata = lambda: {"requires": lines}
        ranges[name] = {package.name: package.tested for package in read_packages(probe)}
    assert set(ranges["linux-cpu"]) == {re.split(r"[<>=!~\[; ]", line)[0] for line in lines}
    linux, mac = ({part for part in ranges[name]["torch"].split(",")} for name in ranges)
    assert linux == {">=2.13", "<2.14"}
    assert mac == {">=2.14", "<2.16"}
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
