"""Where the answer is shown: above the traceback in a notebook, on the command line, in run.json. The original stays."""

import json

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from mac_lora_helpers import training
from mac_lora_helpers.artifacts import NOTEBOOKS
from mac_lora_helpers.config import resolve
from mac_lora_helpers.suite.cli import main
from mac_lora_helpers.suite.runner import NotebookFailed, run_suite

CONFIGURED = "from mac_lora_helpers.config import configure\nconfig = configure(globals())"


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """An IPython of its own, after the cell that every notebook has."""
    monkeypatch.chdir(tmp_path)
    shell = InteractiveShell.instance(colors="nocolor")
    shell.run_cell(CONFIGURED)
    yield shell
    InteractiveShell.clear_instance()


def test_the_answer_stands_above_the_traceback(shell, capsys):
    result = shell.run_cell("bytearray(1 << 60)")
    shown = capsys.readouterr().out
    assert isinstance(result.error_in_exec, MemoryError)
    assert 0 <= shown.index("Known failure: Memory ran out") < shown.index("to do:") < shown.index("docs/troubleshooting.md#out-of-memory")
    assert shown.index("docs/troubleshooting.md#out-of-memory") < shown.index("Traceback") < shown.index("bytearray(")


def test_an_unrelated_error_is_shown_as_always(shell, capsys):
    result = shell.run_cell("1 / 0")
    shown = capsys.readouterr().out
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert "ZeroDivisionError: division by zero" in shown
    assert "Known failure" not in shown


def test_an_error_of_ours_names_the_page(shell, capsys):
    shell.run_cell("from mac_lora_helpers.artifacts import RunDir\nRunDir('here').read_json('manifest')")
    shown = capsys.readouterr().out
    assert "run 02_data_formatting.ipynb first" in shown
    assert "more:  docs/troubleshooting.md#earlier-notebook" in shown
    assert "Traceback" not in shown


def test_somebody_elses_handler_is_left_alone(shell):
    def handler(*_):
        return None

    shell.set_custom_exc((KeyError,), handler)
    shell.run_cell(CONFIGURED)
    assert shell.custom_exceptions == (KeyError,)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a first notebook of the given cells."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(*sources):
        cells = [nbformat.v4.new_code_cell("seed: int = 42  # seed", metadata={"tags": ["parameters"]})]
        cells += [nbformat.v4.new_code_cell(source) for source in sources]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        file = tmp_path / "notebooks" / f"{NOTEBOOKS[0]}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), file)

    return tmp_path, write


def test_a_headless_run_tells_it_and_keeps_the_original(project, capsys):
    folder, write = project
    write(CONFIGURED, "try:\n    bytearray(1 << 60)\nexcept MemoryError as error:\n    raise RuntimeError('no batch') from error")
    assert main(["run", "--only", "01", "--notebooks", "notebooks"]) == 1
    told = capsys.readouterr().err
    assert "RuntimeError: no batch" in told
    assert "shorten `max_seq_length`" in told
    assert "more:  docs/troubleshooting.md#out-of-memory" in told
    record = json.loads((folder / "outputs/local-lora/run.json").read_text())
    assert record["status"] == "failed"
    assert record["notebooks"][0]["failure"]["more"] == "docs/troubleshooting.md#out-of-memory"
    cell = nbformat.read(folder / f"outputs/local-lora/notebooks/{NOTEBOOKS[0]}.ipynb", as_version=4).cells[-1]
    kinds = [output.output_type for output in cell.outputs]
    assert kinds == ["display_data", "error"]
    assert "Memory ran out" in cell.outputs[0].data["text/html"]
    assert cell.outputs[1].ename == "RuntimeError"


def test_a_cell_before_the_config_is_recognised_by_its_text(project):
    _, write = project
    write("from transformers.utils.versions import require_version\nrequire_version('numpy>=99')")
    with pytest.raises(NotebookFailed) as caught:
        run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], notebooks="notebooks")
    assert caught.value.known.key == "versions"


@pytest.mark.parametrize(
    ("source", "key"), [("import os; os._exit(9)", "dead-kernel"), ("input('go on?')", "waiting")], ids=["killed", "waits for a person"]
)
def test_what_happens_to_the_kernel(project, source, key):
    _, write = project
    write(CONFIGURED, source)
    with pytest.raises(NotebookFailed) as caught:
        run_suite(resolve({}, {}), {}, [NOTEBOOKS[0]], notebooks="notebooks")
    assert caught.value.known.key == key


def test_the_command_line_answers_and_keeps_the_original(monkeypatch, capsys):
    monkeypatch.setattr(training, "estimate", lambda *_, **__: bytearray(1 << 60))
    assert main(["estimate"]) == 1
    told = capsys.readouterr().err
    assert told.index("Memory ran out") < told.index("docs/troubleshooting.md#out-of-memory") < told.index("The original error")
    assert "MemoryError" in told


def test_the_command_line_does_not_swallow_what_it_does_not_know(monkeypatch):
    monkeypatch.setattr(training, "estimate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["estimate"])


def test_an_interrupted_cell_fails_with_a_sentence(shell, capsys):
    result = shell.run_cell("import _thread, time\n_thread.interrupt_main()\ntime.sleep(5)")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    shown = capsys.readouterr().out
    assert "Stopped by you" in shown
    assert "Traceback" not in shown
