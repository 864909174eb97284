"""``mac-lora regress`` over small notebooks: green and red, kept and gone on with, killed, and the report's forms."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest
from unit.suite.regress_project import Project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A project with baselines of its own, measured once, while the shell exports parameters that must not count."""
    folder = tmp_path_factory.mktemp("measured")
    made = Project(folder)
    command = [sys.executable, "-m", "mac_lora_helpers", "regress", "--report", "report", "--update", "--reason", "first <measurement>"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "SEED": "7", "MAX_STEPS": "3"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made, done.stdout


@pytest.fixture
def green(measured, tmp_path, monkeypatch):
    """A copy of it, to be broken."""
    made, told = measured
    shutil.copytree(made.folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    copy = Project(tmp_path / "copy", fresh=False)
    copy.told = told
    return copy


def test_from_first_figures_to_red_and_to_a_new_baseline(green, capsys):
    """One story, as each run costs seconds: baselines made, a regression found by its figure, an update with its reason."""
    assert "PASSED: 2 of 2 cases green, 3 of 3 figures" in green.told
    assert green.baseline("train")["values"] == {"train_metrics.steps": 40, "train_metrics.last_loss": 1.000042}
    made = green.baseline("train")["history"][0]
    assert (made["reason"], made["changed"]) == ("first <measurement>", {})
    assert "torch" in made["made_on"]

    written = "write_text(json.dumps({'steps': max_steps, 'last_loss': 1.5}))"
    green.note(3, f"import json, pathlib\n(pathlib.Path(out_dir) / 'train_metrics.json').{written}")
    assert green.regress(report="later") == 1
    told = capsys.readouterr().out
    assert "▶ data" in told  # other code: measured again
    assert re.search(r"First: train, train_metrics.last_loss .*\n  baseline 1.00004, got 1.5, band 0.990042 … 1.01004\n", told)
    assert "the band's reason: rounding errors" in told
    assert "look at later/cases/train/run/train_metrics.json" in told
    assert told.rstrip().splitlines()[-1].startswith("FAILED: 1 of 2 cases green, 2 of 3 figures within their bands")
    assert green.report("later")["first_failure"]["metric"] == "train_metrics.last_loss"
    assert green.report("later")["first_failure"]["case"] == "train"

    assert green.regress("--update", "--reason", "a new recipe", report="later") == 0
    told = capsys.readouterr().out
    assert "2 of 2 cases have been run with this code: kept" in told
    assert "1 figures would change" in told
    kept = green.baseline("train")
    assert kept["values"]["train_metrics.last_loss"] == 1.5
    assert [change["reason"] for change in kept["history"]] == ["first <measurement>", "a new recipe"]
    assert kept["history"][1]["changed"] == {"train_metrics.last_loss": [1.000042, 1.5]}


def test_the_reports_forms(green):
    tests = ElementTree.parse(green.folder / "report/junit.xml").getroot()
    assert [suite.get("name") for suite in tests] == ["data", "train"]
    assert tests[1].get("failures") == "0"
    assert {case.get("name") for case in tests[1]} == {"ran", "train_metrics.steps", "train_metrics.last_loss"}
    page = (green.folder / "report/report.html").read_text()
    assert "40 &lt;b&gt;steps&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert str(green.folder) not in page
    links = re.findall(r'href="([^#"]+\.ipynb)"', page)
    assert len(links) == 2
    assert all((green.folder / "report" / link).exists() for link in links)
    earlier = green.report()
    earlier["made"] = "2026-01-01T00:00:00+00:00"
    earlier["cases"][1]["metrics"][1]["got"] = 0.5
    (green.folder / "before").mkdir()
    (green.folder / "before/report.json").write_text(json.dumps(earlier))
    (green.folder / "broken").mkdir()
    (green.folder / "broken/report.json").write_text("{")
    assert green.regress() == 0
    page = (green.folder / "report/report.html").read_text()
    assert "1 earlier reports in the trends" in page
    assert "2 reports, from 0.5 to 1.00004" in page


def test_a_failed_notebook_is_red_with_its_own_words_and_stops_what_follows(project, capsys):
    project.note(2, "raise ValueError('a <b>bad</b> row')")
    assert project.regress() == 1
    told = capsys.readouterr().out
    assert "First: data, failed" in told
    assert "a <b>bad</b> row" in told
    assert "train: not run: it starts from data" in told
    found = project.report()
    assert [case["status"] for case in found["cases"]] == ["failed", "skipped"]
    assert "a &lt;b&gt;bad&lt;/b&gt; row" in (project.folder / "report/report.html").read_text()
    suites = ElementTree.parse(project.folder / "report/junit.xml").getroot()
    assert [suite.get("failures") for suite in suites] == ["3", "0"] or suites[0].get("failures") != "0"
    assert suites[1].get("skipped") == "1"


def test_a_case_that_takes_too_long_is_killed_and_told(project, capsys):
    project.cases("cases:\n- {name: slow, notebooks: [01], timeout: 6}\n")
    project.note(1, "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(120)")
    assert project.regress() == 1
    assert "not done after 6 s" in capsys.readouterr().out
    assert project.report()["cases"][0]["status"] == "timeout"
    assert _ours(project.folder) == []


def test_a_killed_case_goes_on_where_it_was(project):
    project.cases("cases:\n- {name: train, notebooks: [02, 03], kill_at: half.txt}\n")
    project.note(2, "import pathlib\nwith (pathlib.Path(out_dir) / 'two.txt').open('a') as out: print('x', file=out)")
    code = "import pathlib, time\nhalf = pathlib.Path(out_dir) / 'half.txt'\nbefore = half.exists()\nhalf.touch()\n"
    code += "if not before: time.sleep(600)"
    project.note(3, code)
    project.regress()
    assert project.result("train")["status"] == "passed"
    assert (project.folder / "report/cases/train/run/two.txt").read_text() == "x\n"  # 02 had passed: not run again
    assert _ours(project.folder) == []


def test_interrupted_it_stops_its_case_and_goes_on_with_those_left(project):
    project.note(3, "import pathlib, time\npathlib.Path('begun').touch()\nif not pathlib.Path('go').exists(): time.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, "-m", "mac_lora_helpers", "regress", "--report", "report"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 300
    while not (project.folder / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert project.regress() == 2  # the folder is taken
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "go on with the cases left: mac-lora regress --report report" in told
    assert project.result("data")["status"] == "passed"
    assert not (project.folder / "report/cases/train/result.json").exists()
    assert _ours(project.folder) == []
    data = (project.folder / "report/cases/data/result.json").stat().st_mtime_ns
    (project.folder / "go").touch()
    project.regress()
    assert project.result("train")["status"] == "passed"
    assert (project.folder / "report/cases/data/result.json").stat().st_mtime_ns == data


def test_list_runs_nothing(project, capsys):
    assert project.regress("--list") == 0
    assert "train" in capsys.readouterr().out
    assert not (project.folder / "report").exists()


def test_two_jobs_at_once(project, monkeypatch):
    monkeypatch.setattr("mac_lora_helpers.suite.regress.schedule._forecast", lambda case: 1)
    project.cases("cases:\n- {name: data, notebooks: [02]}\n- {name: other, notebooks: [02]}\n")
    project.note(
        2,
        "import json, pathlib, time\n(pathlib.Path(out_dir) / 'data').mkdir(parents=True)\n"
        "(pathlib.Path(out_dir) / 'data/manifest.json').write_text('{}')\ntime.sleep(1)",
    )
    project.regress("--jobs", "2")
    assert {project.result(name)["status"] for name in ("data", "other")} == {"passed"}


def test_a_job_more_needs_memory(project, monkeypatch):
    from mac_lora_helpers.suite.regress import schedule
    from mac_lora_helpers.suite.regress.cases import load_suite

    cases = load_suite(project.folder / "regression/cases.yaml").cases
    monkeypatch.setattr(schedule, "_forecast", lambda case: 10**15)
    room = schedule._Room("4")
    assert room.has(cases[0], [])
    running = [type("Running", (), {"case": cases[0]})()]
    assert not room.has(cases[1], running)
    monkeypatch.setattr(schedule, "_forecast", lambda case: -schedule.BESIDE)
    room.needs.clear()
    assert room.has(cases[1], running)
    assert not schedule._Room("1").has(cases[1], running)


def _ours(folder):
    """Processes that still work in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.cwd().startswith(str(folder)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.slow
def test_repeats_with_nothing_changed_are_counted_and_kept(green):
    script = Path(__file__).parents[3] / "regression" / "repeats.py"

    def repeat():
        return subprocess.run([sys.executable, str(script), "--times", "2"], cwd=green.folder, capture_output=True, text=True)

    done = repeat()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "0 false alarms in 2 repeats (4 cases, 6 figures)"
    assert re.search(r"train +train_metrics.last_loss +1.00004 +1.00004 +0%", done.stdout)

    kept = json.loads((green.folder / "regression/baselines/train.json").read_text())
    kept["values"]["train_metrics.last_loss"] = 1.2
    (green.folder / "regression/baselines/train.json").write_text(json.dumps(kept))
    done = repeat()
    assert done.returncode == 1
    assert "2 of 2 cases have been run with this code: kept" in (green.folder / "outputs/repeats/01/out.txt").read_text()
    assert "2 false alarms in 2 repeats" in done.stdout
