"""One case in a process of its own: started, timed, killed with everything that it started."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import ARTIFACTS, NOTEBOOKS
from mac_lora_helpers.config import Config
from mac_lora_helpers.files import atomic_file, portable
from mac_lora_helpers.suite.regress.cases import Case

RESULT, RUN = "result.json", "run"
#: Seconds between asking to stop and killing.
_GRACE = 10.0


class Running:
    """A case that runs.

    Args:
        case: the case. folder: its own folder below the report. start: run directory that it starts from.
        identity: what its result is kept under.
    """

    def __init__(self, case: Case, folder: Path, start: Path | None, identity: str) -> None:
        self.case, self.folder, self.identity = case, folder, identity
        shutil.rmtree(folder, ignore_errors=True)
        (folder / RUN).mkdir(parents=True)
        if start is not None:
            copy_earlier(start, folder / RUN, case.first)
        self.cost = {"reference_seconds": reference_seconds(), "cpu_seconds": 0.0}
        self.begin, self.killed, self.process = time.monotonic(), False, self._start(case.notebooks)

    def _start(self, notebooks: tuple[str, ...]) -> subprocess.Popen[bytes]:
        values = {"preset": self.case.preset, **self.case.parameters}
        command = [sys.executable, "-m", "mac_lora_helpers", "run", "--run-dir", os.path.relpath(self.folder / RUN)]
        command += [part for name, value in values.items() for part in ("-p", name, str(value))]
        command += [part for number in notebooks for part in ("--only", number)]
        with (self.folder / "stdout.txt").open("ab") as out, (self.folder / "stderr.txt").open("ab") as err:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(), start_new_session=True)

    def poll(self) -> bool:
        """Whether the case has ended; its result is written then."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid:
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self._count(usage)
            self._settle({0: "passed"}.get(self.process.returncode, "failed"), self._told())
        elif self.case.kill_at and not self.killed and (self.folder / RUN / self.case.kill_at).exists():
            self._kill_and_go_on()
        elif time.monotonic() - self.begin > self.case.timeout:
            self.stop()
            self._settle("timeout", f"not done after {self.case.timeout:g} s")
        return self.process.returncode is not None

    def _count(self, usage: resource.struct_rusage) -> None:
        self.cost["cpu_seconds"] += usage.ru_utime + usage.ru_stime

    def _kill_and_go_on(self) -> None:
        """As if the machine had lost power; then the notebooks that have not passed are run again."""
        kill_tree(self.process.pid)
        self._count(os.wait4(self.process.pid, 0)[2])
        self.killed = True
        done = _passed(self.folder / RUN)
        left = tuple(number for number in self.case.notebooks if number not in done)
        self.process = self._start(left)

    def _told(self) -> str:
        if self.process.returncode == 0:
            missed = self.case.kill_at and not self.killed
            return f"the case ended before {self.case.kill_at} was seen, so it was not killed" if missed else ""
        text = portable((self.folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")).strip()
        return "\n".join(text.splitlines()[-12:]) or f"ended with {self.process.returncode} and said nothing"

    def _settle(self, status: str, message: str) -> None:
        result = {
            "case": self.case.name,
            "identity": self.identity,
            "status": "failed" if status == "passed" and message else status,
            "seconds": round(time.monotonic() - self.begin, 2),
            "message": message,
            "cost": {name: round(value, 4) for name, value in self.cost.items()},
        }
        with atomic_file(self.folder / RESULT) as temporary:
            temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def stop(self) -> None:
        """Asks to stop, waits a little, then kills; no result is written."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            kill_tree(self.process.pid)
            self.process.wait()


def kill_tree(pid: int) -> None:
    """Kills a process and all that it started: kernels have sessions of their own."""
    import psutil  # not at the top: `doctor` must start without it

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def environment() -> dict[str, str]:
    """The caller's environment without parameters in it: a SEED that the shell exports must not decide a case."""
    names = {name.upper() for name in Config.model_fields}
    return {"OMP_NUM_THREADS": "1", **{name: value for name, value in os.environ.items() if name not in names}}


def copy_earlier(source: Path, target: Path, first: int) -> None:
    """What the notebooks before number ``first`` have made, checkpoints apart."""
    for name, (relative, number) in ARTIFACTS.items():
        if not 0 < number < first or name == "checkpoints" or not (source / relative).exists():
            continue
        if (source / relative).is_dir():
            shutil.copytree(source / relative, target / relative, dirs_exist_ok=True)
        else:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / relative, target / relative)


def _passed(run: Path) -> set[str]:
    try:
        entries = json.loads((run / "run.json").read_text(encoding="utf-8"))["notebooks"]
        return {entry["name"][:2] for entry in entries if entry["status"] == "passed" and entry["name"] in NOTEBOOKS}
    except (OSError, ValueError, KeyError):
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


def read_result(folder: Path) -> dict[str, Any] | None:
    """A case's result, or None if it has none or a damaged one."""
    try:
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
