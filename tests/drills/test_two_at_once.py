"""Two processes and one run directory: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from mac_lora_helpers import locks
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.locks import RunDirBusy
from mac_lora_helpers.ownership import MARKER

#: A process that takes a lock, says so, and holds it until it is told to stop.
HOLDER = """
import sys, time
from mac_lora_helpers.artifacts import RunDir
run = RunDir(sys.argv[2])
with getattr(run, sys.argv[1])("training"):
    print("held", flush=True)
    sys.stdin.readline()
"""
#: A process that writes once; prints what came of it.
WRITER = """
import sys
from mac_lora_helpers import locks
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import UserError
locks.PATIENCE = float(sys.argv[2])
try:
    RunDir(sys.argv[1]).write_json("job_result", {"by": sys.argv[3]})
    print("written")
except UserError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def holder(tmp_path):
    """``holder("writing" | "running")`` starts another process that holds the run directory."""
    started = []

    def start(kind: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, kind, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(20)
        process.stdout.close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)


def let_go(process: subprocess.Popen) -> None:
    process.communicate("\n", timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("kind", ["writing", "running"])
def test_the_second_is_told_who_holds_it(kind, holder, tmp_path, impatient):
    process = holder(kind)
    with pytest.raises(RunDirBusy) as caught:
        RunDir(tmp_path).write_json("job_result", {})
    told = str(caught.value)
    record = json.loads((tmp_path / (".run.lock" if kind == "running" else ".write.lock")).read_text())
    assert record["pid"] == process.pid
    for part in (f"process {process.pid}", record["host"], record["since"], "training", "out_dir"):
        assert part in told
    assert not (tmp_path / "job_result.json").exists()
    let_go(process)
    RunDir(tmp_path).write_json("job_result", {})
    assert sorted(os.listdir(tmp_path)) == [MARKER, "job_result.json"], "a lock was left behind"


@pytest.mark.parametrize("kind", ["writing", "running"])
def test_readers_need_no_lock(kind, holder, tmp_path):
    RunDir(tmp_path).write_json("job_result", {"a": 1})
    holder(kind)
    assert RunDir(tmp_path).read_json("job_result") == {"a": 1}


@pytest.mark.parametrize("kind", ["writing", "running"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(kind, signum, holder, tmp_path, capfd):
    process = holder(kind)
    process.send_signal(signum)
    process.wait(20)
    run = RunDir(tmp_path)
    with getattr(run, kind)("next"):
        run.write_json("job_result", {})
    told = "".join(capfd.readouterr())
    assert "taken over" in told
    assert f"process {process.pid}" in told
    assert sorted(os.listdir(tmp_path)) == [MARKER, "job_result.json"]


def test_two_runs_of_the_suite(holder, tmp_path):
    process = holder("running")
    with pytest.raises(RunDirBusy, match=f"process {process.pid}"), RunDir(tmp_path).running("second"):
        pass
    let_go(process)


def test_a_run_does_not_start_while_a_notebook_writes(holder, tmp_path, impatient):
    holder("writing")
    with pytest.raises(RunDirBusy, match="training since"), RunDir(tmp_path).running("second"):
        pass
    assert not (tmp_path / ".run.lock").exists()


def test_kernels_of_the_run_may_write_and_others_may_not(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), "0.2"]
    with RunDir(tmp_path).running("the suite") as _:
        own = subprocess.run([*command, "kernel"], capture_output=True, text=True, check=True)
        strange = {name: value for name, value in os.environ.items() if name != locks.MARK}
        other = subprocess.run([*command, "other"], capture_output=True, text=True, check=True, env=strange)
        old = subprocess.run(
            [*command, "kernel of a dead run"], capture_output=True, text=True, check=True, env={**strange, locks.MARK: "0"}
        )
    assert own.stdout == "written\n", own.stdout
    assert other.stdout.startswith("RunDirBusy")
    assert old.stdout.startswith("RunDirBusy")
    assert RunDir(tmp_path).read_json("job_result") == {"by": "kernel"}
    assert locks.MARK not in os.environ


def test_a_short_write_is_waited_for(holder, tmp_path):
    process = holder("writing")
    threading.Timer(0.5, process.stdin.close).start()
    RunDir(tmp_path).write_json("job_result", {})
    assert RunDir(tmp_path).has("job_result")


def test_many_writers_at_once_each_write_whole(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), "60"]
    processes = [subprocess.Popen([*command, "x" * 20_000 + str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)]
    for i in range(30):
        RunDir(tmp_path).write_json("job_result", {"by": f"me{i}"})
        RunDir(tmp_path).read_json("job_result")
    assert [process.communicate(timeout=60)[0] for process in processes] == ["written\n"] * 2
    assert sorted(os.listdir(tmp_path)) == [MARKER, "job_result.json"]


def test_blocks_of_one_process_nest(tmp_path):
    run = RunDir(tmp_path)
    with run.writing("outer"), RunDir(tmp_path).writing("inner"), run.folder("adapter") as folder:
        (folder / "a").write_text("1")
        run.write_json("job_result", {})
    assert sorted(os.listdir(tmp_path)) == [MARKER, "adapter", "job_result.json"]


def test_a_lock_file_with_rubbish_in_it(tmp_path, capfd):
    for text in ("", "{", "[1]", '{"pid": {}}', "\0" * 5000):
        (tmp_path / ".write.lock").write_text(text)
        RunDir(tmp_path).write_json("job_result", {})
    assert sorted(os.listdir(tmp_path)) == [MARKER, "job_result.json"]


def test_the_lock_names_no_secret_and_no_home(tmp_path, monkeypatch):
    secret = "hf_" + "q9W8" * 9
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["mac-lora", "run", "-p", "repo_id", secret, "--run-dir", str(tmp_path / "x y")])
    with RunDir(tmp_path / "r").running("run"):
        text = (tmp_path / "r" / ".run.lock").read_text()
    assert secret not in text
    assert str(tmp_path) not in text
    assert "mac-lora run -p repo_id" in text


def test_a_further_process_of_a_distributed_training_is_no_stranger(holder, tmp_path, monkeypatch):
    holder("writing")
    monkeypatch.setenv("RANK", "1")
    RunDir(tmp_path).write_json("job_result", {})


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    """A temporary file, a temporary folder, and an artefact that was just being replaced."""
    run = RunDir(tmp_path)
    run.write_json("manifest", {"a": 1})
    (tmp_path / "data" / ".manifest.abcd1234.json").write_text("{")
    (tmp_path / ".adapter.abcd1234").mkdir()
    (tmp_path / ".adapter.abcd1234" / "half").write_text("1")
    (tmp_path / ".adapter.abcd1234.old").mkdir()
    (tmp_path / ".adapter.abcd1234.old" / "whole").write_text("1")
    with run.running("next"):
        pass
    assert os.listdir(run.path("adapter")) == ["whole"]
    assert sorted(os.listdir(tmp_path)) == [MARKER, "adapter", "data"]
    assert os.listdir(tmp_path / "data") == ["manifest.json"]


def test_the_command_line_refuses_and_leaves_the_other_alone(holder, tmp_path):
    process = holder("running")
    done = subprocess.run(
        [sys.executable, "-m", "mac_lora_helpers", "run", "--run-dir", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"in use by process {process.pid}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run.json").exists()
    assert process.poll() is None
