"""The whole check in a fresh process on a broken machine: findings, never a traceback."""

import json
import os
import subprocess
import sys

import pytest

CHECK = """
import json, sys
from mac_lora_helpers import config, environment
report = environment.check_environment(config.resolve(json.loads(sys.argv[1]), env={}))
print(json.dumps(report.to_dict()))
"""
#: Put on PYTHONPATH as sitecustomize: packages that cannot be imported and are not installed.
BLOCKER = """
import importlib.metadata, os, sys
BLOCKED = set(os.environ["BLOCKED"].split(","))
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Finder())
real = importlib.metadata.version
def version(name):
    if name in BLOCKED:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
"""


@pytest.fixture
def check(tmp_path):
    """Runs the check in a fresh process and gives its report and exit; extra environment, ``None`` removes a variable."""

    def run(parameters=None, blocked="", **env):
        (tmp_path / "sitecustomize.py").write_text(BLOCKER)
        changes = {"PYTHONPATH": str(tmp_path), "BLOCKED": blocked, "OMP_NUM_THREADS": "1", **env}
        full = {key: value for key, value in {**os.environ, **changes}.items() if value is not None}
        words = [sys.executable, "-c", CHECK, json.dumps(parameters or {})]
        done = subprocess.run(words, capture_output=True, text=True, env=full, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        report = json.loads(done.stdout)
        return report, {item["name"]: item for item in report["checks"]}

    return run


def test_torch_uninstalled(check):
    report, checks = check(blocked="torch")
    assert (checks["torch"]["status"], checks["torch"]["detail"]) == ("fail", "torch is not installed")
    assert checks["torch"]["fix"].startswith("python -m pip install ")
    assert report["verdict"]["where"] == "unsupported"
    assert report["packages"]["torch"] is None


def test_torch_crashes(check, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    _, checks = check()
    assert "SIGSEGV" in checks["torch"]["detail"]


def test_helpers_uninstalled(check):
    """Without torch, psutil, packaging and the Hub client at once."""
    report, checks = check(blocked="torch,psutil,packaging,huggingface_hub")
    assert report["memory_bytes"] > 0
    assert checks["Hub"]["status"] == "warn"
    assert "packaging" in checks["Packages"]["fix"]


def test_without_a_home_directory(check):
    report, _ = check(blocked="torch", HOME="/nonexistent/home", HF_HOME=None)
    assert report["verdict"]["where"] == "unsupported"


def test_without_a_network(check, tmp_path):
    report, checks = check(
        {"preset": "local"}, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), HF_TOKEN="hf_" + "x" * 30, no_proxy="*"
    )
    assert (checks["Hub"]["status"], "cannot be reached" in checks["Hub"]["detail"]) == ("warn", True)
    assert "hf_xxx" not in json.dumps(report)
    assert report["verdict"]["where"] in ("local", "cloud")


def test_no_home_directory_in_the_report(check, tmp_path):
    """The home directory is a folder below which everything lies: run directory, model, cache, a broken torch's path."""
    home = tmp_path / "home" / "somebody"
    (home / "no-model").mkdir(parents=True)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise ImportError('{home}/lib/libtorch.so: broken')")
    report, checks = check({"model_id": str(home / "no-model"), "out_dir": str(home / "out")}, HOME=str(home), HF_HOME=None)
    assert "libtorch.so" in checks["torch"]["detail"]
    assert "somebody" not in json.dumps(report)


def test_an_unreadable_model_folder_is_a_finding(check, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").mkdir()
    _, checks = check({"model_id": str(tmp_path / "model")}, blocked="torch")
    assert checks["Model"]["status"] == "fail"
