"""Odd folder names, a clock that goes back, a home that is not there, a terminal without UTF-8, one row and ten thousand."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drills.conftest import rows, train
from drills.test_damaged_artefacts import read_data, read_for_card, read_for_export, read_for_push, read_trained
from mac_lora_helpers import data
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.ownership import MARKER

NAMES = {
    "spaces": "my  first run ",
    "quotes": 'it\'s "quoted" `run`',
    "non-ascii": "Läufe-на-北京-ﷺ",
    "emoji": "run 🚀👩‍🔬",
    "long": "x" * 200,
    "leading dash": "-rf",
    "option": "--run-dir",
    "dots": "...",
    "dollar": "$HOME ${x} $(id)",
    "glob": "run[1]*?",
    "braces": "{0} {run} %s %d",
    "percent": "100%25",
    "newline": "two\nlines",
    "tab": "a\tb",
    "backslash": "a\\b",
    "tilde inside": "a~b",
    "hash": "#1; rm",
    "right to left": "\u202eabc",
    "combining": "e\u0301",
    "hidden": ".run",
}


def stage_02(run: RunDir, source: Path) -> dict:
    config = resolve({"preset": "smoke", "data_files": str(source), "out_dir": str(run.root)}, env={})
    opened = data.load(config)
    found = data.validate(opened, config)
    splits = data.split(found, config)
    return data.save(run, opened, found, splits, data.encode(splits, data.load_tokenizer(config), config), config)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_folder_name_holds_a_run(name, tmp_path):
    """Data from a file in such a folder into a run directory of that name, and back."""
    place = tmp_path / name
    place.mkdir()
    source = place / f"{name[:200]}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(8, "x")))
    run = RunDir(resolve({"out_dir": str(place / name)}, env={}).out_dir)
    with run.running("a run"):
        manifest = stage_02(run, source)
        with run.folder("adapter") as folder:
            (folder / "adapter_config.json").write_text("{}")
    assert manifest["rows"]["accepted"] == 8
    assert data.load_tokens(RunDir(place / name))[0] == manifest
    assert sorted(os.listdir(place / name)) == [MARKER, "adapter", "data"]


@pytest.mark.parametrize("name", ["x" * 256, "a\0b", "x/" * 3000])
def test_names_that_no_disk_takes(name, tmp_path):
    with pytest.raises(InputError, match="run directory cannot be made"):
        RunDir(tmp_path / name)


def test_leftovers_are_cleared_in_a_folder_with_glob_characters(tmp_path):
    run = RunDir(tmp_path / "run[1]*?")
    run.write_json("job_result", {})
    (run.root / ".job_result.abcd1234.json").write_text("{")
    with run.running("next"):
        pass
    assert sorted(os.listdir(run.root)) == [MARKER, "job_result.json"]


# Clocks


@pytest.mark.parametrize("when", [0.0, 4e9], ids=["1970", "2096"])
def test_files_from_another_time(when, light):
    for path in light.folder.rglob("*"):
        os.utime(path, (when, when))
    for reader in (read_data, read_trained, read_for_export, read_for_card, read_for_push):
        reader(light)


def test_a_clock_that_goes_back_while_training(finished, tmp_path, monkeypatch):
    """Every question for the time is answered a day earlier than the one before."""
    made = finished.copy(tmp_path / "run", "checkpoints", "export", "eval", "adapter")
    days, begin = itertools.count(), time.time()
    monkeypatch.setattr(time, "time", lambda: begin - 86_400 * next(days))
    train(made)
    monkeypatch.undo()
    metrics = made.run.read_json("train_metrics")
    assert metrics["steps"] == 6
    assert metrics["seconds"] > 0
    seconds = [row["seconds"] for row in made.run.read_lines("train_log")]
    assert seconds == sorted(seconds)
    whole = (finished.folder / "adapter/adapter_model.safetensors").read_bytes()
    assert (made.folder / "adapter/adapter_model.safetensors").read_bytes() == whole


# Home, locale


def mac_lora(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, "-m", "mac_lora_helpers", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=580, check=False)


PLAIN = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_terminal_that_knows_only_ascii(tmp_path):
    odd = [{"messages": [{"role": "user", "content": f"Größe {i} 北京?"}, {"role": "assistant", "content": "naïve 🚀"}]} for i in range(9)]
    (tmp_path / "Daten-ä.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in odd), encoding="utf-8")
    done = mac_lora("check-data", "Daten-ä.jsonl", "--json", folder=tmp_path, **PLAIN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("ascii"))
    assert b"Traceback" not in done.stderr
    done = mac_lora("run", "-p", "data_files", "Daten-ö.jsonl", folder=tmp_path, **PLAIN)
    assert done.returncode == 2
    assert b"no such file" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("home", ["/dev/null/home", "/nowhere/at/all", ""])
def test_no_home(home, tmp_path):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(9, "x")))
    done = mac_lora("check-data", "d.jsonl", "--json", folder=tmp_path, HOME=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_notebooks_without_home_utf8_or_a_simple_name(tmp_path):
    """All at once: an odd run directory, an ASCII terminal, a home that cannot be written."""
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20, "x")))
    name = 'it\'s "my" run [1] $HOME'
    quick = {"max_steps": 3, "eval_examples": 2, "max_new_tokens": 4, "data_files": "d.jsonl", "preset": "smoke"}
    parameters = [part for key, value in quick.items() for part in ("-p", key, str(value))]
    parameters += [part for number in ("01", "02", "03", "04") for part in ("--only", number)]
    done = mac_lora("run", f"--run-dir={name}", *parameters, folder=tmp_path, HOME="/dev/null/home", **PLAIN)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / name / "run.json").read_text())["status"] == "passed"
    assert not [path.name for path in (tmp_path / name).iterdir() if path.name.startswith(".") and path.name != MARKER]


# Few rows and many


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_hardly_any_rows(count, tmp_path):
    source = tmp_path / "d.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(count, "x")))
    run = RunDir(tmp_path / "run")
    if count < 2:
        with pytest.raises(UserError) as refused:
            stage_02(run, source)
        assert refused.value.fix
        assert not run.has("manifest")
        return
    manifest = stage_02(run, source)
    assert manifest["splits"]["train"] >= 1
    assert manifest["splits"]["test"] >= 1


def test_ten_thousand_rows(tmp_path):
    source = tmp_path / "d.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(10_000, "x")))
    run = RunDir(tmp_path / "run")
    manifest = stage_02(run, source)
    assert sum(manifest["splits"].values()) == manifest["rows"]["accepted"] == 10_000
    _, tokens = data.load_tokens(run)
    assert len(tokens["train"]) == manifest["token_rows"]["train"]
    shutil.rmtree(run.root)
