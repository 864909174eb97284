"""Machine, variables and packages."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import check_environment, read_machine, read_packages, requirement_for
from mac_lora_helpers.environment.checks_machine import FALLBACK, HIGH, LOW, check_python, check_variables, memory_guidance
from mac_lora_helpers.environment.checks_storage import check_packages
from mac_lora_helpers.environment.machine import GIB, size
from mac_lora_helpers.environment.probe import Probe, _metadata_from_sources

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def variables(recorded, **env):
    return {check.name: check for check in check_variables(read_machine(probe=recorded("m2-pro-16gb")), env)}


def test_gpu_cores_from_the_system_profiler(recorded):
    probe = recorded("m2-pro-16gb")
    probe.answers["commands"].pop("ioreg -rc AGXAccelerator -d 1")
    assert read_machine(probe=probe).gpu_cores is None
    probe.answers["commands"]["system_profiler -json SPDisplaysDataType"] = json.dumps(
        {"SPDisplaysDataType": [{"_name": "LG Display"}, {"sppci_model": "Apple M2 Pro", "sppci_cores": "19"}]}
    )
    assert read_machine(probe=probe).gpu_cores == 19


@pytest.mark.parametrize(
    "answer", ["", "not json", "{}", '{"SPDisplaysDataType": null}', '{"SPDisplaysDataType": [{"sppci_cores": "many"}]}']
)
def test_odd_answers_of_the_system_profiler(recorded, answer):
    probe = recorded("m2-pro-16gb")
    probe.answers["commands"] = {"system_profiler -json SPDisplaysDataType": answer}
    machine = read_machine(probe=probe)
    assert (machine.gpu_cores, machine.chip, machine.macos_version, machine.xcode_tools) == (None, "arm64", None, None)


def test_memory_without_psutil(recorded):
    probe = recorded("m2-pro-16gb", memory=None)
    machine = read_machine(probe=probe)
    assert (machine.memory_bytes, machine.free_memory_bytes) == (16 * GIB, None)
    assert Probe()._memory_without_psutil()["total"] == pytest.approx(Probe().memory()["total"], rel=0.05)


def test_a_container_limit_counts(recorded):
    assert read_machine(probe=recorded("linux-small-container")).memory_bytes == 512 * 1024**2
    assert read_machine(probe=recorded("linux-cpu")).memory_bytes == 25274793984


def test_this_machine_is_read():
    machine = read_machine()
    assert machine.memory_bytes > machine.free_memory_bytes > 0
    assert machine.disk_free_bytes > 0
    assert machine.chip
    assert all(len(row) == 3 and all(row) for row in machine.rows())


@pytest.mark.parametrize(("count", "text"), [(None, "unknown"), (5 << 20, "5 MiB"), (16 * GIB, "16.0 GiB")])
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("gib", "said", "covered"),
    [(8, "about 0.5B", False), (16, "0.5B to 1.5B", True), (24, "0.5B to 1.5B", True), (32, "1.5B to 3B", True), (64, "larger", True)],
)
def test_memory_guidance(gib, said, covered):
    advice, enough = memory_guidance(gib * GIB)
    assert said in advice
    assert enough is covered


def test_python_version(recorded):
    machine = read_machine(probe=recorded("linux-cpu"))
    assert check_python(machine, ">=3.11").status == "ok"
    assert check_python(machine, ">=3.11,<3.14").status == "ok"
    assert check_python(machine, ">=3.12").status == "fail"
    assert check_python(machine, None).status == "ok"


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
        ({HIGH: "0.7", LOW: "0.5"}, LOW, "ok", "0.5"),
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
    (check,) = check_variables(read_machine(probe=recorded("linux-cpu")), {HIGH: "0.0"})
    assert check.status == "ok"
    assert HIGH in check.detail
    assert "no effect" in check.detail


def test_ranges_are_those_of_pyproject():
    lines = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    named = {re.split(r"[<>=!~\[; ]", line)[0] for line in lines}
    packages = {package.name: package for package in read_packages()}
    assert named <= set(packages)
    assert set(packages["torch"].tested.split(",")) == {">=2.13", "<2.14"}
    assert {package.status for name, package in packages.items() if name in named} == {"ok"}
    assert packages["jupyterlab"].status in ("ok", "optional")


def test_ranges_from_the_sources_are_the_same():
    class Uninstalled(Probe):
        def metadata(self):
            return _metadata_from_sources(PYPROJECT)

    assert {(p.name, p.tested, p.status) for p in read_packages(Uninstalled())} == {(p.name, p.tested, p.status) for p in read_packages()}


def test_packages_outside_the_range_and_missing(recorded):
    probe = recorded("m2-pro-16gb", versions={"transformers": "4.57.6", "peft": None, "jupyterlab": None})
    packages = {package.name: package for package in read_packages(probe)}
    assert [packages[name].status for name in ("transformers", "peft", "jupyterlab")] == ["outside", "missing", "optional"]
    checks = {check.name: check for check in check_packages(list(packages.values()))}
    assert checks["Package transformers"].status == "warn"
    assert checks["Package peft"].status == "fail"
    assert checks["Package peft"].fix == f'python -m pip install "{requirement_for("peft")}"'
    assert "Package jupyterlab" not in checks


def test_without_packaging(recorded, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "packaging", None)
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    packages = {package.name: package for package in read_packages()}
    assert (packages["torch"].status, packages["torch"].version is not None) == ("unknown", True)
    assert "pip install packaging" in check_packages(list(packages.values()))[-1].fix


def test_commands_that_fail_hang_or_are_missing():
    probe = Probe()
    assert probe.command("no-such-command-anywhere") is None
    assert probe.command("false") is None
    assert probe.command("echo", "hello") == "hello"


def test_a_check_that_trips_is_a_finding(recorded, monkeypatch):
    probe = recorded("linux-cpu")
    monkeypatch.setattr(probe, "home", lambda: {}["exists"])
    check = next(check for check in check_environment(resolve({}), probe).checks if check.name == "Home directory")
    assert check.status == "warn"
    assert "KeyError" in check.detail
