"""papermill over small notebooks of our five names: what is stored, told and left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from mac_lora_helpers.artifacts import NOTEBOOKS
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.suite.cli import main
from mac_lora_helpers.suite.runner import NotebookFailed, choose, run_suite

SECRET = "hf_" + "x1Y2" * 9


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with five small notebooks; ``write(number, *cells)`` replaces one."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(number, *sources):
        cells = [nbformat.v4.new_code_cell("max_steps: int = 200  # steps", metadata={"tags": ["parameters"]})]
        cells += [nbformat.v4.new_code_cell(source) for source in sources]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(book, tmp_path / "notebooks" / f"{NOTEBOOKS[number - 1]}.ipynb")

    for number in range(1, 6):
        write(number, f"print('notebook', {number}, max_steps)")
    return tmp_path, write


def record(project_folder):
    return json.loads((project_folder / "outputs/local-lora/run.json").read_text())


def executed(project_folder, number):
    return nbformat.read(project_folder / f"outputs/local-lora/notebooks/{NOTEBOOKS[number - 1]}.ipynb", as_version=4)


def outputs(notebook):
    return "".join(o.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs)


def test_all_five_in_order_with_typed_parameters(project, capsys):
    folder, _ = project
    assert main(["run", "--notebooks", "notebooks", "-p", "max_steps", "7"]) == 0  # nothing to sum up: said, not raised
    assert [entry["name"] for entry in record(folder)["notebooks"]] == list(NOTEBOOKS)
    assert record(folder)["status"] == "passed"
    assert record(folder)["parameters"] == {"max_steps": 7}
    assert outputs(executed(folder, 3)) == "notebook 3 7\n"
    assert "▶ 05_export_and_push" in capsys.readouterr().out


def test_a_failed_notebook_stops_the_run_and_says_where(project, capsys):
    folder, write = project
    write(2, "1", "raise ValueError('first line\\nthe last line')")
    assert main(["run", "--notebooks", "notebooks"]) == 1
    told = capsys.readouterr().err
    assert "the last line" in told
    assert "02_data_formatting, In [4]: raise ValueError" in told
    assert "outputs/local-lora/notebooks/02_data_formatting.ipynb" in told
    assert [(e["name"], e["status"]) for e in record(folder)["notebooks"]] == [(NOTEBOOKS[0], "passed"), (NOTEBOOKS[1], "failed")]
    assert record(folder)["status"] == "failed"


def test_a_user_error_keeps_its_place_and_fix(project, capsys):
    _, write = project
    write(1, "from mac_lora_helpers.errors import InputError\nraise InputError('not JSON', where='a.jsonl, line 2', fix='mend the line')")
    assert main(["run", "--notebooks", "notebooks"]) == 1
    told = capsys.readouterr().err
    assert "not JSON" in told
    assert "a.jsonl, line 2" in told
    assert "mend the line" in told
    assert "Traceback" not in told


def test_a_cell_that_exits_quietly_is_a_failure(project):
    folder, write = project
    write(1, "import sys; sys.exit(0)", "print('never')")
    with pytest.raises(NotebookFailed, match="not every cell"):
        run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], notebooks="notebooks")
    assert record(folder)["status"] == "failed"


def test_a_killed_kernel_is_told(project):
    _, write = project
    write(1, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookFailed, match="Kernel died"):
        run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], notebooks="notebooks")


def test_nothing_stored_holds_home_or_token(project, monkeypatch):
    folder, write = project
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    write(1, "import os\nprint(os.path.expanduser('~/x'), os.environ['HF_TOKEN'])", "raise RuntimeError(os.path.expanduser('~/y'))")
    with pytest.raises(NotebookFailed):
        run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], notebooks="notebooks")
    for path in (folder / "outputs").rglob("*"):
        if path.is_file():
            assert str(folder) not in path.read_text(), path
            assert SECRET not in path.read_text(), path
    assert "~/x" in outputs(executed(folder, 1))


def test_two_runs_at_once_in_one_folder_have_kernels_of_their_own(project):
    """Their sockets are not in the folder, where each would find the other's."""
    folder, write = project
    write(1, "import os; print(sorted(os.listdir()))")
    run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], notebooks="notebooks")
    assert outputs(executed(folder, 1)) == "['notebooks', 'outputs']\n"


def test_many_prints_are_one_output(project):
    folder, write = project
    write(1, "for i in range(60): print(i, flush=True)")
    run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], notebooks="notebooks")
    assert len(executed(folder, 1).cells[-1].outputs) == 1


def test_the_kernel_knows_that_it_is_headless(project):
    folder, write = project
    write(1, "import os; print(os.environ['MAC_LORA_HEADLESS'])")
    run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], notebooks="notebooks")
    assert outputs(executed(folder, 1)) == "1\n"
    assert "MAC_LORA_HEADLESS" not in os.environ


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((["03"], None), [2]), ((["3", "01"], None), [0, 2]), (([], "04"), [3, 4]), (([], None), [0, 1, 2, 3, 4])],
)
def test_choice_of_notebooks(arguments, expected):
    assert choose(*arguments) == [NOTEBOOKS[i] for i in expected]


def test_an_unknown_notebook_is_refused():
    with pytest.raises(InputError, match="no notebook"):
        choose(["09"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "max_stps", "3"],
        ["-p", "max_steps", "abc"],
        ["-p", "data_files", "nowhere.jsonl"],
        ["-p", "data_files", "empty.jsonl"],
        ["-p", "data_files", "notebooks"],
        ["-p", "model_id", "./nowhere"],
        ["-p", "model_id", "bare"],
        ["-p", "repo_id", SECRET],
        ["-p", "seed", "1", "-p", "seed", "2"],
        ["--preset", "smoke", "-p", "preset", "local"],
        ["--only", "7"],
    ],
)
def test_bad_input_is_exit_2_and_writes_nothing(project, capsys, arguments):
    folder, _ = project
    (folder / "empty.jsonl").write_text("")
    (folder / "bare").mkdir()
    (folder / "bare/config.json").write_text("{}")
    assert main(["run", *arguments]) == 2
    told = capsys.readouterr().err
    assert "to do:" in told
    assert SECRET not in told
    assert not (folder / "outputs").exists()


def test_a_value_that_begins_with_a_dash_is_a_value(capsys):
    from mac_lora_helpers.suite.cli import parse

    assert parse(["run", "-p", "prompt", "-x", "-p", "prompt_too", "--preset", "--only", "03"]).parameters == [
        ("prompt", "-x"),
        ("prompt_too", "--preset"),
    ]
    for incomplete in (["run", "-p", "prompt"], ["run", "-p", "--only", "3", "03"], ["run", "-p"]):
        with pytest.raises(SystemExit, match="2"):
            parse(incomplete)
    assert "expected 2 arguments" in capsys.readouterr().err


def test_stopping_leaves_a_true_record_and_no_half_notebook(project):
    folder, write = project
    write(1, "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(60)")
    command = [sys.executable, "-m", "mac_lora_helpers", "run", "--notebooks", "notebooks"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    _until(lambda: (folder / "begun").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert "interrupted" in process.stderr.read()
    assert record(folder)["status"] == "interrupted"
    assert os.listdir(folder / "outputs/local-lora/notebooks") == []


def _until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_an_interrupted_run_says_nothing_of_a_task_that_nobody_waited_for(project, monkeypatch, caplog):
    """As when the kernel dies of the same Ctrl-C before nbclient is done with it."""
    import asyncio
    import gc
    import logging

    import papermill

    async def dies():
        raise RuntimeError("Kernel died")

    async def interrupted():
        left = asyncio.ensure_future(dies())
        await asyncio.sleep(0)
        assert left.done()
        raise KeyboardInterrupt

    monkeypatch.setattr(logging.getLogger("asyncio"), "level", logging.NOTSET)
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: asyncio.run(interrupted()))
    with pytest.raises(KeyboardInterrupt):
        run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], progress=False, notebooks="notebooks")
    gc.collect()
    assert "Kernel died" not in caplog.text
    logging.getLogger("asyncio").setLevel(logging.NOTSET)
