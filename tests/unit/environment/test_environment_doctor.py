"""``mac-lora doctor`` as a user starts it, on a broken machine: a table of findings, never a traceback."""

import json
import os
import subprocess
import sys

import pytest
from test_environment_robust import BLOCKER


@pytest.fixture
def doctor(tmp_path):
    """Runs the command in a fresh process; a variable that is ``None`` is removed."""

    def run(*words, blocked="", **env):
        (tmp_path / "sitecustomize.py").write_text(BLOCKER)
        changes = {"PYTHONPATH": str(tmp_path), "BLOCKED": blocked, "OMP_NUM_THREADS": "1", **env}
        full = {key: value for key, value in {**os.environ, **changes}.items() if value is not None}
        command = [sys.executable, "-m", "mac_lora_helpers", "doctor", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=full, cwd=tmp_path, timeout=120)
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return done

    return run


def test_torch_broken_without_home_and_network(doctor, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu: symbol not found')")
    done = doctor("--json", "-p", "model_id", "user/model", HOME=None, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE=None)
    assert done.returncode == 1
    checks = {item["name"]: item for item in json.loads(done.stdout)["checks"]}
    assert "symbol not found" in checks["torch"]["detail"]
    assert checks["Hub"]["status"] != "ok"


def test_what_draws_and_trains_uninstalled(doctor):
    """Nothing but the command's own needs: the table of findings must not hang on the figures' library."""
    done = doctor(blocked="torch,transformers,trl,peft,datasets,accelerate,matplotlib,ipywidgets,IPython,numpy,huggingface_hub,psutil")
    assert done.returncode == 1
    assert "matplotlib" in done.stdout
    assert "verdict: unsupported" in done.stdout


def test_the_way_out_for_an_intel_mac_is_one(recorded, monkeypatch, tmp_path):
    """Its verdict names ``mac-lora run --preset smoke --from 02``: training must be placed there, without notebook 01."""
    from mac_lora_helpers import environment, training
    from mac_lora_helpers.artifacts import RunDir
    from mac_lora_helpers.config import resolve
    from mac_lora_helpers.suite.runner import choose

    probe = recorded("intel-old-torch")
    config = resolve({"preset": "smoke", "out_dir": str(tmp_path / "run")}, {})
    reasons = environment.check_environment(config, probe).verdict.reasons
    assert any("`mac-lora run --preset smoke --from 02`" in reason for reason in reasons)
    monkeypatch.setattr("mac_lora_helpers.environment.device.this_machine", lambda: probe)
    device, dtype = training.place(RunDir(config.out_dir), config)
    assert (device.name, dtype.name) == ("cpu", "float32")
    assert choose(start="02")[0] == "02_data_formatting"
