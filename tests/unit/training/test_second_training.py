"""A second training over a finished run: what later notebooks read is the old run or the new one, at every moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_rows import dataset, rows, trained_by_cells

from mac_lora_helpers import training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve

SCRIPT = """
import json, sys
sys.path[:0] = sys.argv[2:]
from training_rows import dataset, trained_by_cells
from mac_lora_helpers import training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
import mac_lora_helpers.training.log as log
log.WRITE_EVERY = 0.0
given = json.loads(open(sys.argv[1]).read())
config = resolve(given["config"], env={})
run = RunDir(config.out_dir)
print("ready", flush=True)
names = trained_by_cells(run, config, {"train": dataset(given["rows"])}, last="result")
print("finished", flush=True)
"""


def state_of(run):
    """What 04 and 05 would read; raises where it does not belong together."""
    run.check_trained()
    config, metrics, log = run.read_json("train_config"), run.read_json("train_metrics"), run.read_lines("train_log")
    assert metrics["adapter_digest"] == config["adapter_digest"]
    assert metrics["steps"] == config["steps"] == log[-1]["step"]
    return metrics["steps"]


@pytest.fixture
def finished(tmp_path, model_folder):
    """A finished run of three steps, and how to start a training of six over it in a process of its own."""
    values = {"preset": "local", "model_id": str(model_folder), "device": "cpu", "max_seq_length": 32, "gradient_accumulation_steps": 2}
    values |= {"lora_r": 4, "lora_alpha": 8, "save_steps": 2, "logging_steps": 1, "out_dir": str(tmp_path / "run")}
    given, folders = tmp_path / "given.json", [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    run = RunDir(tmp_path / "run")
    run.write_json("manifest", {"fingerprint": "sha256:data-1"})

    def start(steps):
        given.write_text(json.dumps({"config": {**values, "max_steps": steps}, "rows": rows(12)}))
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(given), *folders], stdout=subprocess.PIPE, text=True)

    process = start(3)
    assert "finished" in process.communicate(timeout=200)[0]
    assert state_of(run) == 3
    return run, start


@pytest.mark.slow
def test_killed_at_any_moment_the_run_is_old_or_new(finished):
    """SIGKILL and SIGTERM in turn; each start goes on where the one before was killed, until one ends."""
    run, start = finished
    source, seen = random.Random(int(os.environ.get("KILL_SEED", "0"))), []
    for attempt in range(10):
        process = start(6)
        process.stdout.readline()
        time.sleep(source.uniform(0, 6))
        process.send_signal(signal.SIGKILL if attempt % 2 else signal.SIGTERM)
        process.communicate(timeout=200)
        seen.append(state_of(run))
    assert set(seen) <= {3, 6}
    assert seen == sorted(seen), "never back to the old one"
    process = start(6)
    process.communicate(timeout=200)
    assert state_of(run) == 6


def test_the_old_run_stays_whole_until_the_new_one_is_finished(finished):
    run, _ = finished
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file() and not path.name.startswith(".")}
    config = resolve({**run.read_json("train_config")["config"], "max_steps": 6, "resume": "auto"}, env={})
    names = trained_by_cells(run, config, {"train": dataset(rows(12))}, last="train")
    assert names["trainer"].state.global_step == 6
    assert all(path.read_bytes() == content for path, content in before.items())
    names["trainer"].save_model()
    training.examine(names["trainer"])
    assert state_of(run) == 3
    names["stage"].finish()
    assert state_of(run) == 6
