"""Full, read-only and forbidden disks: real ones, in a mount namespace of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drills.conftest import Made
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.ownership import MARKER

PYTHON = sys.executable
#: Steps that write; each prints its name and what came of it.
STEPS = """
import json, sys
from pathlib import Path
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import UserError
run = RunDir(sys.argv[1])
wanted = sys.argv[2:]

def figure():
    import matplotlib
    matplotlib.use("agg")
    from matplotlib.figure import Figure
    run.save_figure("loss_figure", Figure())

def folder():
    with run.folder("adapter") as place:
        (place / "new").write_bytes(b"x" * 300_000)

def weights():
    import numpy
    from safetensors.numpy import save_file
    with run.folder("adapter") as place:
        save_file({"a": numpy.zeros(300_000, dtype="float32")}, place / "adapter_model.safetensors")

def array():
    import numpy
    with run.folder("gguf", needs=300_000 if "needs" in wanted else None) as place:
        numpy.zeros(300_000, dtype="int8").tofile(place / "model.gguf")

def lines():
    run.write_lines("train", ({"text": "y" * 1000} for _ in range(300)))

STEPS = {
    "json": lambda: run.write_json("job_result", {"new": "x" * 300_000}), "lines": lines, "folder": folder, "figure": figure,
    "array": array, "needs": array, "weights": weights,
    "text": lambda: run.write_text("card", "z" * 300_000), "path": lambda: run.path("manifest"),
    "running": lambda: run.running("a run").__enter__(), "read": lambda: run.read_json("job_result"),
}
for name in wanted:
    try:
        STEPS[name]()
        print(name, "done", sep="\\t")
    except UserError as error:
        print(name, type(error).__name__, str(error).replace("\\n", " | "), sep="\\t")
"""


def in_namespace(commands: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command after shell commands that mount something; skips where that is not allowed."""
    wrapped = ["unshare", "--map-root-user", "--mount", "sh", "-ec", f'{commands}\nexec "$@"', "sh", *command]
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("mounts of one's own need Linux")
    if subprocess.run([*wrapped[:3], "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    return subprocess.run(wrapped, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **variables})


def small_disk(folder: Path, kilobytes: int) -> str:
    return f"mount -t tmpfs -o size={kilobytes}k tmpfs '{folder}'"


@pytest.fixture
def old(tmp_path) -> Path:
    """A folder with an old artefact, to be copied onto the disk."""
    RunDir(tmp_path / "old").claim()
    (tmp_path / "old" / "job_result.json").write_text('{"old": 1}')
    (tmp_path / "disk").mkdir()
    return tmp_path


STEP_NAMES = ["json", "lines", "folder", "weights", "array", "figure", "text"]


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    assert "Traceback" not in done.stderr, done.stderr
    return {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines() if "\t" in line}


def test_a_full_disk_is_told_and_leaves_what_was_there(old):
    disk = old / "disk"
    mounts = f"{small_disk(disk, 64)}\ncp -a '{old}/old/.' '{disk}'\nmkdir '{disk}/adapter'; echo 1 > '{disk}/adapter/old'"
    script = STEPS + "print('left', sorted(str(p.relative_to(run.root)) for p in run.root.rglob('*') if p.is_file()), sep='\\t')"
    found = outcomes(in_namespace(mounts, PYTHON, "-c", script, str(disk), *STEP_NAMES, "read"))
    for name in [n for n in STEP_NAMES if n != "figure"]:
        assert found[name][0] == "CheckFailed", (name, found[name])
        assert "the disk is full; there was room for " in found[name][1]
        assert "what was finished before is kept" in found[name][1]
    assert found["figure"][0] in ("CheckFailed", "done")  # a small picture may still fit
    assert found["read"] == ["done"]
    assert {"job_result.json", "adapter/old"} <= set(json.loads(found["left"][0].replace("'", '"')))
    assert not [name for name in json.loads(found["left"][0].replace("'", '"')) if "/." in f"/{name}" and name != MARKER]


def test_what_cannot_fit_is_not_begun(old):
    """NumPy says of a full disk two numbers; who knows what is needed says it before the first byte."""
    disk = old / "disk"
    found = outcomes(in_namespace(small_disk(disk, 64), PYTHON, "-c", STEPS, str(disk), "needs"))
    assert found["needs"][0] == "CheckFailed"
    assert "and 300.0 kB are needed" in found["needs"][1]


def test_a_read_only_disk_is_told_and_can_be_read(old):
    disk = old / "disk"
    mounts = f"{small_disk(disk, 512)}\ncp -a '{old}/old/.' '{disk}'\nmount -o remount,ro '{disk}'"
    found = outcomes(in_namespace(mounts, PYTHON, "-c", STEPS, str(disk), *STEP_NAMES, "path", "running", "read"))
    assert found.pop("read") == ["done"]
    for name, (kind, text) in found.items():
        assert kind == "InputError", name
        assert "the disk is read-only" in text
        assert "out_dir" in text


@pytest.mark.parametrize("arguments", [["run"], ["run", "--only", "01"]])
def test_the_command_line_on_a_full_disk(old, arguments):
    disk = old / "disk"
    mounts = f"{small_disk(disk, 64)}\nhead -c 70000 /dev/zero > '{disk}/.DS_Store' 2> /dev/null || true"
    done = in_namespace(mounts, PYTHON, "-m", "mac_lora_helpers", *arguments, "--run-dir", str(disk))
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_on_a_read_only_disk(old):
    disk = old / "disk"
    mounts = f"{small_disk(disk, 64)}\nmount -o remount,ro '{disk}'"
    done = in_namespace(mounts, PYTHON, "-m", "mac_lora_helpers", "run", "--run-dir", f"{disk}/new/run")
    assert done.returncode == 2
    assert "read-only" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_room_for_scratch_files(old, tmp_path):
    """Rows are kept in a temporary file while they are checked."""
    disk = old / "disk"
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * 2000}]}
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({**row, "n": i}) + "\n" for i in range(300)))
    done = in_namespace(small_disk(disk, 64), PYTHON, "-m", "mac_lora_helpers", "check-data", str(tmp_path / "d.jsonl"), TMPDIR=str(disk))
    assert done.returncode == 1, done.stderr
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_disk_fills_up_while_a_notebook_works(old):
    """Notebook 02's data do not fit: said so, and no half of them is left."""
    disk = old / "disk"
    command = [PYTHON, "-m", "mac_lora_helpers", "run", "--run-dir", f"{disk}/run", "--only", "02"]
    script = '"$@" || code=$?; ls -A "$0/run" "$0/run/data"; exit ${code:-0}'
    done = in_namespace(small_disk(disk, 260), "sh", "-c", script, str(disk), *command)
    assert done.returncode == 1, done.stdout
    assert "docs/troubleshooting.md#disk-full" in done.stderr
    assert "Traceback" not in done.stderr
    assert "manifest" not in done.stdout


def powerless(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command for which a file's permissions hold, also when the tests run as root."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("as root, permissions hold only without root's powers (setpriv)")
        dropped = "-dac_override,-dac_read_search,-fowner"
        prefix = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]
    return subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=300, check=False)


#: Reads as notebooks 03, 04 and 05 do, and prints what came of it.
READ = """
import sys
from mac_lora_helpers.errors import UserError
sys.path.insert(0, sys.argv[1])
import json
from pathlib import Path
from drills.conftest import Made
from drills import test_damaged_artefacts as stages
made = Made(Path(sys.argv[2]), json.loads(sys.argv[3]))
for name in sys.argv[4:]:
    try:
        getattr(stages, name)(made)
        print(name, "done", sep="\\t")
    except UserError as error:
        print(name, type(error).__name__, str(error).replace("\\n", " | "), sep="\\t")
"""


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("data", ["read_data"]),
        ("data/tokens", ["read_data"]),
        ("data/manifest.json", ["read_data"]),
        ("data/test.jsonl", ["read_data"]),
        ("adapter", ["read_trained", "read_for_export", "read_for_card", "read_for_push"]),
        ("adapter/adapter_model.safetensors", ["read_trained", "read_for_export", "read_for_card", "read_for_push"]),
        ("train_config.json", ["read_trained", "read_for_export"]),
        ("eval/metrics.json", ["read_for_card"]),
    ],
)
def test_what_may_not_be_read_is_told(name, readers, light):
    path = light.folder / name
    path.chmod(0)
    try:
        done = powerless(PYTHON, "-c", READ, str(Path(__file__).parents[1]), str(light.folder), json.dumps(light.values), *readers)
    finally:
        path.chmod(0o755)
    found = outcomes(done)
    assert set(found) == set(readers), done.stderr
    for reader, (kind, *text) in found.items():
        assert kind in ("InputError", "CheckFailed", "MissingArtifact", "UserError"), (reader, kind, text)


def test_a_folder_that_may_not_be_written(light: Made):
    light.run.write_json("job_result", {})
    light.folder.chmod(0o555)
    try:
        done = powerless(PYTHON, "-c", STEPS, str(light.folder), "json", "folder", "running", "read")
    finally:
        light.folder.chmod(0o755)
    found = outcomes(done)
    assert found.pop("read") == ["done"]
    for kind, text in found.values():
        assert kind == "InputError"
        assert "may not use it" in text


@pytest.mark.parametrize("place", ["/proc/mac-lora/run", "/dev/null/run", "/sys/mac-lora"])
def test_places_where_nothing_can_be_made(place):
    if sys.platform != "linux":
        pytest.skip("Linux's own folders")
    done = subprocess.run(
        [PYTHON, "-m", "mac_lora_helpers", "run", "--run-dir", place], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "out_dir" in done.stderr
