"""SIGINT, SIGTERM and SIGKILL in every stage, then again: nothing lost, nothing mixed, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drills.conftest import Made
from mac_lora_helpers.ownership import MARKER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_each_signal_in_each_stage(finished: Made, tmp_path):
    script = Path(__file__).with_name("kill_stages.py")
    command = [sys.executable, str(script), str(finished.folder), json.dumps(finished.values), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    drills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(drills) == 15, done.stdout + done.stderr
    assert [drill for drill in drills if drill["wrong"]] == []
    assert done.returncode == 0, done.stderr
    assert "finished" not in {drill["ended"] for drill in drills}, "each must really have been stopped"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_run_of_the_suite_is_killed_in_03_and_started_again(signum, finished: Made, tmp_path):
    """The real command with its kernel: the second run is not refused by the first one's lock, and ends well."""
    made = finished.copy(tmp_path / "run", "checkpoints", "adapter", "eval", "export")
    (made.folder / "train_config.json").unlink()
    values = {**made.values, "max_steps": 60, "save_steps": 2, "logging_steps": 1}
    parameters = [part for name, value in values.items() for part in ("-p", name, str(value))]
    command = [sys.executable, "-m", "mac_lora_helpers", "run", "--run-dir", str(made.folder), "--only", "03", *parameters]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 400
    while not list(made.folder.glob(".building-03/checkpoints/checkpoint-*/checkpoint.json")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < end
        time.sleep(0.2)
    first.send_signal(signum)
    _out, err = first.communicate(timeout=120)
    assert first.returncode == (130 if signum == signal.SIGINT else -signum), err
    assert "Traceback" not in err
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert second.returncode == 0, second.stderr
    assert ("taken over" in second.stderr) == (signum == signal.SIGKILL)
    assert made.run.read_json("train_metrics")["steps"] == 60
    assert made.run.read_json("train_metrics")["resumed_from_step"], "what was trained before was not lost"
    assert [path.name for path in made.folder.iterdir() if path.name.startswith(".")] == [MARKER]
