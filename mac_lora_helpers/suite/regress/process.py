"""One case in a process of its own: started, timed, killed with everything that it started."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mac_lora_helpers.artifacts import ARTIFACTS, RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.suite.regress.cases import Case

RUN = "run"


@dataclass
class Result:
    """How a case ended; ``status``: passed, failed, timeout or skipped. ``cost`` in processor seconds."""

    status: str
    message: str = ""
    seconds: float = 0.0
    cost: dict[str, float] = field(default_factory=dict)


def run_case(case: Case, folder: Path, start: Path | None, env: dict[str, str] | None = None, notebooks: Path | None = None) -> Result:
    """Runs a case's notebooks into ``folder/run`` and waits for them; Ctrl-C stops them.

    Args:
        start: run directory to start from: what the notebooks before the case's own made there is copied.
        env: added to the environment of the process. notebooks: other notebooks than the project's own.
    """
    shutil.rmtree(folder, ignore_errors=True)
    RunDir(folder / RUN).claim()
    if start is not None:
        _copy_earlier(start, folder / RUN, int(case.notebooks[0]))
    cost, begin = {"reference_seconds": reference_seconds(), "cpu_seconds": 0.0}, time.monotonic()
    start_process = functools.partial(_start, case, folder, env=env, own=notebooks)
    status = _wait(case, folder, start_process, begin, cost)
    text = portable((folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")).strip()
    words = {"passed": "", "timeout": f"not done after {case.timeout:g} s"}
    message = words.get(status, "\n".join(text.splitlines()[-12:]) or "it ended without a word")
    return Result(status, message, time.monotonic() - begin, cost)


def _start(case: Case, folder: Path, notebooks: tuple[str, ...], env: dict[str, str] | None, own: Path | None) -> subprocess.Popen[bytes]:
    values = {"preset": case.preset, **case.parameters}
    command = [sys.executable, "-m", "mac_lora_helpers", "run", "--run-dir", os.path.relpath(folder / RUN)]
    command += [part for name, value in values.items() for part in ("-p", name, str(value))]
    command += [part for number in notebooks for part in ("--only", number)] + (["--notebooks", str(own)] if own else [])
    with (folder / "stdout.txt").open("ab") as out, (folder / "stderr.txt").open("ab") as err:
        environment = _environment() | (env or {})
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True)


def _wait(
    case: Case, folder: Path, start: Callable[[tuple[str, ...]], subprocess.Popen[bytes]], begin: float, cost: dict[str, float]
) -> str:
    """passed, failed or timeout. A case with ``kill_at`` is killed when that file appears, and its unfinished notebooks are run again."""
    killed, process = not case.kill_at, start(case.notebooks)
    try:
        while True:
            pid, code, usage = os.wait4(process.pid, os.WNOHANG)
            cost["cpu_seconds"] += usage.ru_utime + usage.ru_stime if pid else 0.0
            if pid:
                process.returncode = os.waitstatus_to_exitcode(code)
                return "passed" if process.returncode == 0 and killed else "failed"
            if time.monotonic() - begin > case.timeout:
                return "timeout"
            if not killed and (folder / RUN / str(case.kill_at)).exists():
                kill(process.pid)
                process.wait()
                killed, done = True, _passed(folder / RUN)
                process = start(tuple(number for number in case.notebooks if number not in done))
            time.sleep(0.05)
    finally:
        if process.returncode is None:
            kill(process.pid)
            process.wait()


def kill(pid: int, itself: bool = True) -> None:
    """Kills a process and all that it started: kernels have sessions of their own."""
    import psutil  # not at the top: `doctor` must start without it

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*([parent] if itself else []), *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _environment() -> dict[str, str]:
    """The caller's environment without parameters in it: a SEED that the shell exports must not decide a case."""
    names = {name.upper() for name in Config.model_fields}
    return {"OMP_NUM_THREADS": "1", **{name: value for name, value in os.environ.items() if name not in names}}


def _copy_earlier(source: Path, target: Path, first: int) -> None:
    """What the notebooks before number ``first`` have made, checkpoints apart."""
    for name, (relative, number) in ARTIFACTS.items():
        if 0 < number < first and name != "checkpoints" and (source / relative).exists():
            copy = shutil.copytree if (source / relative).is_dir() else shutil.copy2
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            copy(source / relative, target / relative, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))


def _passed(run: Path) -> set[str]:
    try:
        entries = json.loads((run / "run.json").read_text(encoding="utf-8"))["notebooks"]
        return {entry["name"][:2] for entry in entries if entry["status"] == "passed"}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def reference_seconds(repeats: int = 3) -> float:
    """Processor seconds of a fixed piece of work on one thread, the smallest of some repeats: numpy and plain Python."""
    import numpy as np

    values = np.random.default_rng(0).random(2_000_000, dtype=np.float32)

    def work() -> float:
        begin = time.process_time()
        np.sort(values)
        np.exp(values).sum()
        sum(index * index for index in range(1_500_000))
        return time.process_time() - begin

    return max(min(work() for _ in range(repeats)), 1e-6)
