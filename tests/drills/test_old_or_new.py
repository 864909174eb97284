"""A stage is finished whole or not at all: killed at every call that changes the disk, and whoever comes next sees one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mac_lora_helpers import locks
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed, InputError, UserError
from mac_lora_helpers.locks import RunDirBusy
from mac_lora_helpers.ownership import MARKER

#: Builds notebook 02's artefacts as run number ``word``; kills itself before the n-th call that changes the disk.
BUILD = """
import os, shutil, signal, sys
from mac_lora_helpers.artifacts import RunDir
folder, word, fatal = sys.argv[1], sys.argv[2], int(sys.argv[3])
count = 0
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
with RunDir(folder).begin(2) as stage:
    for name in ("train", "test"):
        stage.write_lines(name, [{"run": word}])
    if word == "one":
        stage.write_lines("rejected", [{"run": word}])
    with stage.folder("tokens") as tokens:
        (tokens / f"{word}.arrow").write_text(word)
    stage.write_json("manifest", {"fingerprint": word})
print(count)
"""
FILES = {
    "one": [MARKER, "data/manifest.json", "data/rejected.jsonl", "data/test.jsonl", "data/tokens/one.arrow", "data/train.jsonl"],
    "two": [MARKER, "data/manifest.json", "data/test.jsonl", "data/tokens/two.arrow", "data/train.jsonl"],
}


def build(folder: Path, word: str, fatal: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BUILD, str(folder), word, str(fatal)], capture_output=True, text=True, timeout=60)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != ".write.lock")


def is_whole(folder: Path, word: str) -> bool:
    run = RunDir(folder)
    said = [run.read_json("manifest")["fingerprint"], *(run.read_lines(name)[0]["run"] for name in ("train", "test"))]
    assert set(said) == {said[0]}, f"a mixture: {said}"
    return said[0] == word


def test_killed_at_every_call_it_is_the_old_run_or_the_new(tmp_path):
    (tmp_path / "old").mkdir()
    assert build(tmp_path / "old", "one").returncode == 0
    ended, fatal, seen = 0, 0, []
    while ended != 1:
        fatal += 1
        folder = tmp_path / f"run-{fatal}"
        subprocess.run(["cp", "-a", str(tmp_path / "old"), str(folder)], check=True)
        done = build(folder, "two", fatal)
        ended = done.returncode == 0
        assert ended or done.returncode == -signal.SIGKILL, done.stderr
        new = is_whole(folder, "two")  # the first reader puts in place what was finished
        seen.append(new)
        with RunDir(folder).running("the next run"):
            pass
        assert files(folder) == FILES["two" if new else "one"], f"killed at call {fatal}"
        assert build(folder, "two").returncode == 0
        assert is_whole(folder, "two"), "it can be made again"
        assert files(folder) == FILES["two"]
    assert seen == sorted(seen), "once it is the new one it stays so"
    assert seen.count(False) > 10
    assert seen.count(True) > 10
    assert fatal > 40


def test_putting_in_place_may_be_killed_as_well(tmp_path):
    """Killed while finishing, and again and again while the next process goes on with that."""
    reader = BUILD.split("with RunDir")[0] + "print(RunDir(folder).read_json('manifest')['fingerprint'])"
    (tmp_path / "old").mkdir()
    build(tmp_path / "old", "one")
    calls = int(build(tmp_path / "old", "one").stdout)
    for fatal in range(calls - 24, calls, 3):
        folder = tmp_path / f"run-{fatal}"
        subprocess.run(["cp", "-a", str(tmp_path / "old"), str(folder)], check=True)
        build(folder, "two", fatal)
        for more in range(1, 12):
            command = [sys.executable, "-c", reader, str(folder), "two", str(more)]
            subprocess.run(command, capture_output=True, timeout=60, check=False)
        with RunDir(folder).running("the next run"):
            pass
        assert files(folder) in (FILES["one"], FILES["two"])


def test_what_is_read_while_it_is_built(tmp_path):
    run = RunDir(tmp_path)
    run.write_json("manifest", {"fingerprint": "old"})
    run.write_json("environment", environment := made_up())
    with run.begin(2) as stage:
        assert stage.read_json("manifest")["fingerprint"] == "old"
        stage.write_json("manifest", {"fingerprint": "new"})
        assert stage.read_json("manifest")["fingerprint"] == "new"
        assert stage.read_json("environment") == environment
        assert RunDir(tmp_path).read_json("manifest")["fingerprint"] == "old"
        assert stage.place("manifest") == run.root / "data/manifest.json"
    assert run.read_json("manifest")["fingerprint"] == "new"
    assert sorted(os.listdir(tmp_path)) == [MARKER, "data", "environment.json"]


def made_up() -> dict:
    choice = {"name": "cpu", "reason": ""}
    return {"packages": {}, "device": choice, "dtype": choice, "checks": [], "verdict": {"where": "local", "reasons": []}}


def test_a_stage_that_fails_leaves_the_run_as_it_was(tmp_path):
    run = RunDir(tmp_path)
    run.write_json("manifest", {"fingerprint": "old"})
    with pytest.raises(ValueError, match="no"), run.begin(2) as stage:
        stage.write_json("manifest", {"fingerprint": "new"})
        raise ValueError("no")
    assert run.read_json("manifest")["fingerprint"] == "old"
    assert sorted(os.listdir(tmp_path)) == [MARKER, "data"]


def test_what_is_kept_is_taken_up_again(tmp_path):
    run = RunDir(tmp_path)
    with pytest.raises(KeyboardInterrupt), run.begin(3, keep=True) as stage:
        (stage.path("checkpoints") / "checkpoint-1").mkdir(parents=True)
        raise KeyboardInterrupt
    with run.running("the next run"):
        pass
    stage = RunDir(tmp_path).begin(3, keep=True)
    assert [path.name for path in stage.need("checkpoints").iterdir()] == ["checkpoint-1"]
    stage.finish()
    assert (tmp_path / "checkpoints/checkpoint-1").is_dir()
    assert sorted(os.listdir(tmp_path)) == [MARKER, "checkpoints"]
    run.begin(3, keep=True).discard()
    assert sorted(os.listdir(tmp_path)) == [MARKER, "checkpoints"]


def test_a_cell_that_is_run_again_starts_its_stage_again(tmp_path):
    run = RunDir(tmp_path)
    first = run.begin(2)
    first.write_lines("rejected", [{}])
    second = run.begin(2)
    assert not second.has("rejected")
    second.write_json("manifest", {"fingerprint": "a"})
    second.finish()
    assert sorted(os.listdir(tmp_path / "data")) == ["manifest.json"]
    assert not (tmp_path / ".write.lock").exists(), "both let go of the lock"


def test_others_wait_until_a_stage_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    code = (
        "import sys; from mac_lora_helpers.artifacts import RunDir; s = RunDir(sys.argv[1]).begin(3, keep=True); print('held', flush=True)"
    )
    command = [sys.executable, "-c", f"{code}; sys.stdin.readline()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunDirBusy, match=f"process {other.pid} .*building notebook 03"):
            RunDir(tmp_path).begin(2)
        other.communicate("\n")


def test_records_of_what_left_the_house_stay(tmp_path):
    run = RunDir(tmp_path)
    run.write_text("job_log", "log")
    run.write_text("card", "old")
    run.path("gguf").mkdir()
    with run.begin(5) as stage:
        stage.write_text("card", "new")
    assert run.need("job_log").read_text() == "log"
    assert run.need("card").read_text() == "new"
    assert not run.has("gguf"), "of an export there is the new one or the old one"


def test_files_of_the_users_own_beside_artefacts_stay(tmp_path):
    run = RunDir(tmp_path)
    run.write_json("manifest", {"fingerprint": "a"})
    (tmp_path / "data/notes.txt").write_text("mine")
    with run.begin(2) as stage:
        stage.write_json("manifest", {"fingerprint": "b"})
    assert (tmp_path / "data/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("made", ["link", "folder"])
def test_what_is_in_the_way_is_named_before_anything_moves(made, tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    run = RunDir(tmp_path / "run").claim()
    (run.root / "data").mkdir()
    (run.root / "data/manifest.json").symlink_to(outside) if made == "link" else (run.root / "data/manifest.json").mkdir()
    stage = run.begin(2)
    stage.write_lines("train", [{}])
    stage.write_json("manifest", {"fingerprint": "a"})
    with pytest.raises(InputError, match=r"data/manifest\.json"):
        stage.finish()
    stage.discard()
    assert outside.read_text() == "mine"
    assert os.listdir(run.root / "data") == ["manifest.json"]


def test_a_forged_journal_moves_nothing_from_elsewhere(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "train.jsonl").write_text("mine")
    run = RunDir(tmp_path / "run").claim()
    forged = run.root / ".finishing-02"
    forged.mkdir()
    (forged / ".journal.json").write_text('{"remove": ["../victim", "data/../../victim/train.jsonl"]}')
    (forged / "data").symlink_to(victim)
    with pytest.raises(UserError, match="data is a link"):
        run.write_json("manifest", {"fingerprint": "a"})
    assert os.listdir(victim) == ["train.jsonl"]


def test_lines_of_another_training_are_refused(tmp_path):
    run = RunDir(tmp_path)
    with run.begin(3) as stage:
        stage.write_lines("train_log", [{"step": 200}])
        stage.write_json("train_metrics", {"steps": 200})
    run.check_trained()
    run.write_lines("train_log", [{"step": 3}])
    with pytest.raises(CheckFailed, match=r"train_log\.jsonl is not of the run"):
        run.check_trained()
