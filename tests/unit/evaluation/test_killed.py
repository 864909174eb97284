"""Notebook 04's artefacts belong together: killed while they are saved, the old ones are there or the new."""

import signal
import subprocess
import sys

import pytest

from mac_lora_helpers.artifacts import RunDir

#: Saves figures of run ``word`` as notebook 04's cell does; killed before the n-th call that changes the disk.
SAVE = """
import os, signal, sys
from types import SimpleNamespace
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.evaluation import save
folder, word, fatal, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), 0
def deadly(call):
    def wrapped(*arguments, **named):
        global count
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return wrapped
for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "open"):
    setattr(os, name, deadly(getattr(os, name)))
run = RunDir(folder)
with run.begin(4) as stage:
    metrics = {"base": {"loss": 1.0}, "tuned": {"loss": 1.0}, "examples": 1, "verdict": word}
    save(stage, metrics, [{"prompt": word}], SimpleNamespace(adapter=SimpleNamespace(folder=run.root / "adapter")))
    stage.write_text("eval_figure", word)
print(count)
"""


def run_save(folder, word, fatal=0):
    return subprocess.run([sys.executable, "-c", SAVE, str(folder), word, str(fatal)], capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_killed_at_ten_moments_it_is_the_old_evaluation_or_the_new(tmp_path):
    calls = int(run_save(tmp_path / "counted", "old").stdout)
    seen = set()
    for moment in range(10):
        folder = tmp_path / str(moment)
        assert run_save(folder, "old").returncode == 0
        assert run_save(folder, "new", 1 + moment * calls // 10).returncode == -signal.SIGKILL
        run = RunDir(folder)
        said = {run.read_json("eval_metrics")["verdict"], run.read_lines("eval_samples")[0]["prompt"], run.need("eval_figure").read_text()}
        assert len(said) == 1
        seen |= said
        assert run_save(folder, "newest").returncode == 0
    assert seen == {"old", "new"}
