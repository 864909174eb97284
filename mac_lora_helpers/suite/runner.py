"""Executes the notebooks headless with papermill, in order, into the run directory."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import NOTEBOOKS, RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.files import Scratch, atomic_file
from mac_lora_helpers.layout import notebooks_folder
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.troubleshooting import Failure, explain, recognise, shown_in

_ENGINE = {"kernel_name": "python3", "coalesce_streams": True, "store_widget_state": False, "log_output": False}


class NotebookFailed(UserError):
    """A notebook stopped with an error; the message names the cell and the executed notebook.

    Attributes:
        known: the known failure that it is, if any.
    """

    known: Failure | None = None

    @classmethod
    def of(cls, known: Failure | None, what: str, *, where: str, fix: str) -> NotebookFailed:
        """The failure with the table's steps in front of ``fix``."""
        steps = known.advice if known else []
        failure = cls(what, where=where, fix="\n         ".join(filter(None, [*steps, fix])))
        failure.known = known
        return failure


def choose(only: Sequence[str] = (), start: str | None = None) -> list[str]:
    """Names of the notebooks to run, from numbers such as ``03`` or ``3``.

    Raises:
        InputError: a number that no notebook has.
    """

    def name_of(number: str) -> str:
        matches = [name for name in NOTEBOOKS if name == number or (number.isdigit() and int(name[:2]) == int(number))]
        if not matches:
            raise InputError(f"no notebook {number!r}", where="--only / --from", fix="one of 01, 02, 03, 04, 05")
        return matches[0]

    if only:
        wanted = {name_of(number) for number in only}
        return [name for name in NOTEBOOKS if name in wanted]
    return list(NOTEBOOKS[NOTEBOOKS.index(name_of(start)) :]) if start else list(NOTEBOOKS)


def run_suite(
    config: Config, explicit: Mapping[str, Any], names: Sequence[str], progress: bool | None = None, notebooks: str | Path | None = None
) -> dict[str, Any]:
    """Runs notebooks in order and keeps ``run.json`` true after each.

    Args:
        config: the resolved config; only its ``out_dir`` is used here.
        explicit: what the caller set; injected into every notebook as it is.
        names: notebooks to run, in order.
        progress: papermill's bar over the cells; by default only on a terminal.
        notebooks: the folder of other notebooks than the project's own.

    Returns:
        What ``run.json`` holds.

    Raises:
        NotebookFailed: the first failure; later notebooks are not run.
        RunDirBusy: another run or a notebook works in this run directory.
    """
    run, source = RunDir(config.out_dir), notebooks_folder(notebooks)
    with run.running("running the notebooks"):
        return _run_notebooks(run, source, {**explicit, "out_dir": config.out_dir}, dict(explicit), names, progress)


def _run_notebooks(
    run: RunDir, source: Path, parameters: dict[str, Any], explicit: dict[str, Any], names: Sequence[str], progress: bool | None
) -> dict[str, Any]:
    record: dict[str, Any] = {"status": "running", "parameters": explicit, "notebooks": []}
    for name in names:
        entry = {"name": name, "status": "running", "seconds": 0.0}
        record["notebooks"].append(entry)
        run.write_json("run", record)
        _say(f"▶ {name}")
        begin = time.monotonic()
        try:
            with _settled(run, record, entry, begin):
                run.check_early(int(name[:2]))
                execute(source / f"{name}.ipynb", run.path("executed") / f"{name}.ipynb", parameters, progress)
        finally:
            _say(f"  {'✓' if entry['status'] == 'passed' else '✗'} {entry['status']} after {entry['seconds']:.1f} s")
    record["status"] = "passed"
    run.write_json("run", record)
    return record


@contextlib.contextmanager
def _settled(run: RunDir, record: dict[str, Any], entry: dict[str, Any], begin: float) -> Iterator[None]:
    """Whatever happens inside, ``run.json`` says how it ended."""
    entry["status"] = "failed"
    try:
        yield
        entry["status"] = "passed"
    except KeyboardInterrupt:
        entry["status"] = "interrupted"
        raise
    except UserError as failure:
        known = getattr(failure, "known", None)
        entry["failure"] = {"what": failure.what, "where": failure.where, "fix": failure.fix} | ({"more": known.anchor} if known else {})
        raise
    finally:
        entry["seconds"] = round(time.monotonic() - begin, 2)
        record["status"] = "running" if entry["status"] == "passed" else entry["status"]
        run.write_json("run", record)


def execute(source: Path, target: Path, parameters: Mapping[str, Any], progress: bool | None = None) -> None:
    """Executes one notebook; the executed copy is stored without home directory or tokens, also when it failed.

    Raises:
        NotebookFailed: a cell raised, the kernel died, or cells were left out.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # Names are checked before; a notebook's cell need not mirror every parameter that it is given.
    logging.getLogger("papermill").setLevel(logging.ERROR)

    bar = sys.stderr.isatty() if progress is None else progress
    with _headless(), _private_kernels() as kernels, atomic_file(target) as temporary:
        failure: NotebookFailed | None = None
        try:
            papermill.execute_notebook(
                source, temporary, dict(parameters), progress_bar=bar, cwd=os.getcwd(), stdout_file=_Steps(), **_ENGINE, **kernels
            )
        except PapermillExecutionError as error:
            failure = _cell_failed(error, temporary, target)
        except KeyboardInterrupt:
            # The kernel ends with the run. asyncio would print a traceback about that if the kernel was the first to go.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise
        except Exception as error:
            what = f"{source.stem} could not be run: {type(error).__name__}: {_last_line(str(error))}"
            failure = NotebookFailed.of(explain(error), what, where=portable(str(target)), fix=f"look at {portable(str(target))}")
        _clean(temporary, source)
        failure = failure or _left_out(temporary, target)
    if failure:
        raise failure


@contextlib.contextmanager
def _private_kernels() -> Iterator[dict[str, Any]]:
    """Kernels spoken to over socket files of this user's instead of open ports; silent when they are shut down.

    The files lie in a folder of this run's own: by default they would be ``kernel-ipc-1`` and so on in the current folder, where
    two runs at once take each other's.
    """
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import CaselessStrEnum

    transport = CaselessStrEnum(["tcp", "ipc"], default_value="ipc")
    place = "/tmp" if len(tempfile.gettempdir()) > 60 else None  # a socket's path holds about a hundred characters
    with Scratch("k", place) as folder:
        own = {"transport": transport, "_ip_default": lambda self: os.path.join(folder, "k")}
        manager = type("PrivateKernelManager", (AsyncKernelManager,), own)
        yield {"kernel_manager_class": manager, "extra_arguments": ["--log-level=CRITICAL"]}


def _cell_failed(error: Any, executed: Path, target: Path) -> NotebookFailed:
    """The failed cell's own words; those of a ``UserError`` keep their place and their advice."""
    known = _answer_given(executed) or recognise(error.ename, error.evalue)
    lines = str(error.source).strip().splitlines() or [""]
    begins = ", which begins" if len(lines) > 1 else ""
    place, look = f"{target.stem}, In [{error.exec_count}]{begins}: {lines[0]}", f"look at {portable(str(target))}"
    told = re.fullmatch(r"(.*?)(?:\n  where: (.*?))?(?:\n  to do: (.*?))?", portable(str(error.evalue)).strip(), re.S)
    what, where, fix = (part or "" for part in told.groups())
    if where or fix:
        failure = NotebookFailed(
            what, where="\n         ".join(filter(None, [where, place])), fix="\n         ".join(filter(None, [fix, look]))
        )
        failure.known = known
        return failure
    lines = [line.strip() for line in f"{error.ename}: {what}".splitlines() if line.strip()]
    return NotebookFailed.of(known, " … ".join(dict.fromkeys([lines[0], lines[-1]])), where=place, fix=look)


def _cells(executed: Path) -> list[Any]:
    """The executed copy's cells; none where a full disk kept it from being written whole."""
    import nbformat

    try:
        return nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError):
        return []


def _answer_given(executed: Path) -> Failure | None:
    """The known failure whose answer the failed cell shows: the kernel saw the error itself and what caused it."""
    outputs = [cell.get("outputs", []) for cell in _cells(executed)]
    return shown_in(str([cell for cell in outputs if any(output.output_type == "error" for output in cell)]))


def _left_out(executed: Path, target: Path) -> NotebookFailed | None:
    """A cell that calls ``sys.exit(0)`` ends papermill without an error and without the later cells."""
    cells = _cells(executed)
    missing = [i for i, cell in enumerate(cells) if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None]
    if not missing:
        return None
    return NotebookFailed(
        "the notebook ended early: not every cell was executed",
        where=f"{target.stem}, from cell {missing[0] + 1}",
        fix=f"look at {portable(str(target))}",
    )


def _clean(executed: Path, source: Path) -> None:
    """Home directory and tokens out of the stored notebook; papermill's own absolute paths too."""
    import nbformat

    if not _cells(executed):
        executed.write_bytes(source.read_bytes())
        return
    text = portable(executed.read_text(encoding="utf-8"))
    notebook = nbformat.reads(text, as_version=4)
    stored = notebook.metadata.get("papermill", {})
    stored.update({"input_path": source.name, "output_path": source.name})
    nbformat.write(notebook, executed)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return portable(lines[-1]) if lines else ""


@contextlib.contextmanager
def _headless() -> Iterator[None]:
    """Notebooks show no form, and the kernel is this Python's, whatever kernels the user has registered."""
    wanted = {"MAC_LORA_HEADLESS": "1", "JUPYTER_PATH": os.path.join(sys.prefix, "share", "jupyter"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _Steps:
    """What a notebook prints while it runs, as far as it says how far a training is: passed on to the terminal."""

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if re.match(r"step [\d,]+ of ", line):
                _say(f"  {line}")

    def flush(self) -> None:
        """Nothing waits."""


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # whoever read along has gone; the run goes on
        hush()


def hush() -> None:
    """What is still printed goes nowhere: the other end of the pipe is closed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
