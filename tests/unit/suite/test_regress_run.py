"""``mac-lora regress`` over small notebooks: green and red, updated, killed, interrupted."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from unit.suite.regress_project import Project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def test_from_first_figures_to_red_and_to_a_new_baseline(project, monkeypatch, capsys):
    """One story, as each run costs seconds: baselines made, a regression found by its figure, an update with its reason."""
    monkeypatch.setenv("SEED", "7")  # a parameter that the shell exports must not count
    assert project.regress("--update", "--reason", "first <measurement>", report="first") == 0
    assert "PASSED: 2 of 2 cases green" in capsys.readouterr().out
    assert project.baseline("train")["values"] == {"train_metrics.steps": 40, "train_metrics.last_loss": 1.000042}
    made = project.baseline("train")["history"][0]
    assert (made["reason"], made["changed"]) == ("first <measurement>", {})
    assert "torch" in made["made_on"]

    written = "write_text(json.dumps({'steps': max_steps, 'last_loss': 1.5}))"
    project.note(3, f"import json, pathlib\n(pathlib.Path(out_dir) / 'train_metrics.json').{written}")
    assert project.regress("--jobs", "2", report="later") == 1
    told = capsys.readouterr().out
    assert "1.00004   1.5  0.990042 … 1.01004  later/train/run/train_metrics.json" in told
    assert told.rstrip().splitlines()[-1].startswith("FAILED: 1 of 2 cases green")
    assert project.tests("later") == {
        "data": {"ran": "passed", "data.manifest.fingerprint": "passed"},
        "train": {
            "ran": "passed",
            "train_metrics.steps": "passed",
            "train_metrics.last_loss": "1.5, not 0.990042 … 1.01004 (rounding errors)",
        },
    }

    assert project.regress("--update", "--reason", "a new recipe", report="last") == 0
    kept = project.baseline("train")
    assert kept["values"]["train_metrics.last_loss"] == 1.5
    assert [change["reason"] for change in kept["history"]] == ["first <measurement>", "a new recipe"]
    assert kept["history"][1]["changed"] == {"train_metrics.last_loss": [1.000042, 1.5]}


def test_a_failed_notebook_is_red_with_its_own_words_and_stops_what_follows(project, capsys):
    project.note(2, "raise ValueError('a <b>bad</b> row')")
    assert project.regress() == 1
    assert "a <b>bad</b> row" in capsys.readouterr().out
    found = project.tests()
    assert "a <b>bad</b> row" in found["data"]["ran"]
    assert found["train"] == {"ran": "not run: data, which it starts from, did not pass"}


def test_a_figure_without_a_baseline_is_red(project):
    assert project.regress("-k", "data") == 1
    assert "no baseline" in project.tests()["data"]["data.manifest.fingerprint"]


def test_a_case_that_takes_too_long_is_killed_and_told(project, capsys):
    project.cases("cases:\n- {name: slow, notebooks: [01], timeout: 6}\n")
    project.note(1, "import time\ntime.sleep(120)")
    assert project.regress() == 1
    assert "not done after 6 s" in capsys.readouterr().out
    assert ours(project.folder) == []


def test_a_killed_case_goes_on_where_it_was(project):
    project.cases("cases:\n- {name: train, notebooks: [02, 03], kill_at: half.txt}\n")
    project.note(2, "import pathlib\nwith (pathlib.Path(out_dir) / 'two.txt').open('a') as out: print('x', file=out)")
    code = "import pathlib, time\nhalf = pathlib.Path(out_dir) / 'half.txt'\nbefore = half.exists()\nhalf.touch()\n"
    project.note(3, code + "if not before: time.sleep(600)")
    assert project.regress() == 0
    assert (project.folder / "report/train/run/two.txt").read_text() == "x\n"  # 02 had passed: not run again
    assert ours(project.folder) == []


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupted_it_stops_its_cases(project, jobs):
    project.note(2, "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(600)")
    command = [sys.executable, "-m", "mac_lora_helpers", "regress", "--cases", "cases.yaml", "--jobs", jobs]
    command += ["--report", "report", "--notebooks", "notebooks"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not (project.folder / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert ours(project.folder) == []


def ours(folder):
    """Processes that still work in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.cwd().startswith(str(folder)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
        except (psutil.Error, OSError):
            continue
    return found
