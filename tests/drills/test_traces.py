"""What is read has a shape, what is killed leaves no trace, what is wrong is said early and by name."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from drills.conftest import Made
from drills.test_damaged_artefacts import read_data, read_for_card, read_for_push
from drills.test_disks import powerless
from mac_lora_helpers.artifacts import ARTIFACTS, NOTEBOOKS, RunDir, adapter_digest
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.files import SCRATCH, Scratch, mismatch
from mac_lora_helpers.layout import SHAPES

#: JSON that is JSON but not ours.
STRANGE = {"list": [], "null": None, "text": "x", "number": 3, "nested": [[[]]]}
COMMAND = [sys.executable, "-m", "mac_lora_helpers"]


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("name", [name for name, (path, _) in ARTIFACTS.items() if path.endswith(".json") and name != "draft"])
def test_json_that_is_not_ours_is_named_with_file_and_notebook(name, strange, tmp_path):
    run = RunDir(tmp_path).claim()
    run.path(name).write_text(json.dumps(strange))
    with pytest.raises(InputError, match=f"{run.place(name).name} cannot be read: the whole is") as told:
        run.read_json(name)
    assert NOTEBOOKS[max(ARTIFACTS[name][1], 1) - 1] in told.value.fix


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("name", SHAPES)
def test_a_field_of_the_wrong_kind_is_named(name, strange, light):
    """Each field of real artefacts in turn; whoever reads says the field, or can do without it."""
    if not light.run.has(name):
        pytest.skip("not made in this run")
    whole = light.run.read_json(name)
    for field in whole:
        light.run.write_json(name, {**whole, field: strange})
        for reader in (read_data, read_for_card, read_for_push):
            with contextlib.suppress(UserError):
                reader(light)


def test_a_shape_says_where_it_is_wrong():
    shape = {"rows": {"read": int}, "checks": [{"name": str}], "loss?": (float, None)}
    right = {"rows": {"read": 1}, "checks": [{"name": "a"}], "loss": None}
    assert mismatch(right, shape) == ""
    assert mismatch({**right, "loss": 2}, shape) == "", "a whole number is a number"
    assert mismatch({**right, "rows": {"read": True}}, shape) == "rows.read is true or false, not a whole number"
    assert mismatch({**right, "rows": {}}, shape) == "rows.read is missing"
    assert mismatch({**right, "checks": [{"name": "a"}, None]}, shape) == "checks[1] is null, not an object"
    assert mismatch({**right, "loss": "x"}, shape) == "loss is text, not a number or null"


# The terminal


@pytest.mark.parametrize("words", ["--help", "run --help", "doctor", "estimate"])
def test_a_closed_pipe_ends_quietly(words, tmp_path):
    line = f"set -o pipefail; {sys.executable} -m mac_lora_helpers {words} | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("name", ["prompt", "data_files", "model_id", "out_dir"])
def test_a_parameter_that_is_not_utf8_gets_a_sentence(name, tmp_path):
    arguments = [word.encode() for word in [*COMMAND, "run", "--only", "01", "-p", name]]
    done = subprocess.run([*arguments, b"a\xff\xfeb"], cwd=tmp_path, capture_output=True, timeout=100, check=False)
    assert done.returncode == 2
    assert b"not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


# Killed


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_in_any_way_says_so_and_leaves_nothing(signum, tmp_path):
    """The real command and its kernel, stopped in its first notebook; after SIGKILL the next reader says it, the next run writes it."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("out_dir = 'x'", metadata={"tags": ["parameters"]})])
    book.cells.append(nbformat.v4.new_code_cell("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(90)"))
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(book, tmp_path / f"{NOTEBOOKS[0]}.ipynb")
    (tmp_path / "tmp").mkdir()
    command = [*COMMAND, "run", "--only", "01", "--notebooks", ".", "--run-dir", "run"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    end = time.monotonic() + 120
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signum)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == (-signum if signum == signal.SIGKILL else 130)
    assert "Traceback" not in err
    run = RunDir(tmp_path / "run")
    assert run.read_json("run")["status"] == "interrupted"
    assert run.read_json("run")["notebooks"][0]["status"] == "interrupted"
    with run.running("the next"):
        pass
    assert json.loads(run.need("run").read_text())["status"] == "interrupted"
    assert sorted(os.listdir(run.root)) == [".mac-lora.json", "notebooks", "run.json"]
    assert os.listdir(run.root / "notebooks") == []


def test_scratch_of_a_killed_process_is_swept_and_that_of_a_live_one_is_not(tmp_path):
    code = "import sys; from mac_lora_helpers.files import Scratch; s = Scratch('data', sys.argv[1]); print(s.path, flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()", str(tmp_path)]
    others = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    dead, alive = (Path(other.stdout.readline().strip()) for other in others)
    for folder in (dead, alive):
        (folder / "rows.jsonl").write_text("secret rows")
        os.utime(folder, (0, 0))
    others[0].kill()
    others[0].wait()
    (tmp_path / f"{SCRATCH}not-a-folder").write_text("mine")
    with Scratch("data", str(tmp_path)) as own:
        assert own.is_dir()
        assert not dead.exists()
        assert (alive / "rows.jsonl").exists()
    assert not own.exists()
    others[1].communicate("")
    assert not alive.exists()
    assert os.listdir(tmp_path) == [f"{SCRATCH}not-a-folder"]


# Digests


def test_equal_trainings_have_equal_digests(light, tmp_path):
    """PEFT writes target_modules in any order; what an older version recorded in its own order still holds."""
    adapter = light.folder / "adapter"
    before, path = adapter_digest(adapter), adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "target_modules": settings["target_modules"][::-1]}))
    assert adapter_digest(adapter) == before
    older = adapter_digest(adapter, as_written=True)
    assert older != before
    light.run.write_json("train_config", {**light.run.read_json("train_config"), "adapter_digest": older})
    light.run.check_trained()
    path.write_text(json.dumps({**settings, "target_modules": settings["target_modules"][:-1]}))
    with pytest.raises(UserError, match="not the adapter"):
        light.run.check_trained()


# Early


def mac_lora(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("name", ["train_metrics.json", "eval/metrics.json", "train_config.json"])
def test_what_05_reads_at_its_end_is_looked_at_before_it_begins(name, light: Made):
    (light.folder / name).write_text('{"steps": ')
    with pytest.raises(InputError, match=Path(name).name):
        light.run.begin(5)
    done = mac_lora("run", "--only", "05", "--run-dir", str(light.folder), folder=light.folder.parent)
    assert done.returncode == 2
    assert f"{Path(name).name} cannot be read" in done.stderr
    assert not (light.folder / "notebooks").exists() or not os.listdir(light.folder / "notebooks")
    assert light.run.read_json("run")["notebooks"][0]["failure"]["what"].startswith(Path(name).name)


def test_an_input_is_called_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to("nowhere.jsonl")
    for name, called in {"pipe.jsonl": "a pipe", "link.jsonl": "a link that leads nowhere"}.items():
        done = mac_lora("check-data", name, folder=tmp_path)
        assert done.returncode == 2
        assert called in done.stderr, done.stderr


def test_a_models_code_that_may_not_be_read_is_named(model_with_code, tmp_path):
    folder, _ = model_with_code
    (folder / "own.py").chmod(0)
    command = [*COMMAND, "run", "--only", "02", "--run-dir", str(tmp_path / "run"), "-p", "model_id", str(folder)]
    done = powerless(*command, "-p", "trust_remote_code", "true")
    assert done.returncode == 2, done.stderr
    assert "own.py may not be read" in done.stderr
