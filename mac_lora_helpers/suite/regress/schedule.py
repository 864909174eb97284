"""Runs the cases that are left: each after the one that it starts from, as many at once as memory allows."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mac_lora_helpers.config import resolve
from mac_lora_helpers.suite.regress.cases import Case
from mac_lora_helpers.suite.regress.process import RUN, Running, read_result
from mac_lora_helpers.suite.runner import notebooks_folder

#: Memory of a case beside its training: the kernel with its libraries, and papermill (measured: 0.7 GB with export's engines).
BESIDE = 1_200_000_000
#: Share of the free memory that cases may take together.
SHARE = 0.8
_STEP = 0.05

Say = Callable[[str], None]


def run_cases(cases: Sequence[Case], report: Path, jobs: str = "1", say: Say = print) -> None:
    """Runs what has no result yet under ``report/cases/``; a result of the same case and the same code is kept.

    Args:
        jobs: how many at once, or ``auto``.

    Raises:
        KeyboardInterrupt: after the cases that ran have been stopped; what was finished is kept.
    """
    identities = identify(cases)
    left = [case for case in cases if not _kept(report, case, identities[case.name])]
    if len(left) < len(cases):
        say(f"{len(cases) - len(left)} of {len(cases)} cases have been run with this code: kept")
    running: list[Running] = []
    room = _Room(jobs)
    try:
        while left or running:
            while case := next((case for case in left if _ready(case, left, running) and room.has(case, running)), None):
                left.remove(case)
                running += _begin(case, report, identities[case.name], say)
            running = [one for one in running if not _ended(one, say)]
            time.sleep(_STEP)
    finally:
        for one in running:
            one.stop()


def _ready(case: Case, left: Sequence[Case], running: Sequence[Running]) -> bool:
    return case.after not in {other.name for other in left} | {one.case.name for one in running}


def _begin(case: Case, report: Path, identity: str, say: Say) -> list[Running]:
    """The started case; or, where the one that it starts from has failed, its result: not run."""
    folder = case_folder(report, case.name)
    if case.after and (read_result(case_folder(report, case.after)) or {}).get("status") != "passed":
        folder.mkdir(parents=True, exist_ok=True)
        message = f"not run: it starts from {case.after}, which did not pass"
        result = {"case": case.name, "identity": "", "status": "skipped", "seconds": 0.0, "message": message, "cost": {}}
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        say(f"– {case.name}: {message}")
        return []
    say(f"▶ {case.name}")
    start = case_folder(report, case.after) / RUN if case.after else None
    return [Running(case, folder, start, identity)]


def _ended(one: Running, say: Say) -> bool:
    if not one.poll():
        return False
    result = read_result(one.folder) or {}
    say(f"  {'✓' if result['status'] == 'passed' else '✗'} {one.case.name}: ran {result['seconds']:.0f} s, {result['status']}")
    return True


def _kept(report: Path, case: Case, identity: str) -> bool:
    result = read_result(case_folder(report, case.name))
    return result is not None and result.get("identity") == identity


def case_folder(report: Path, name: str) -> Path:
    """Where a case's run directory, its output and its result are."""
    return report / "cases" / name


def identify(cases: Sequence[Case]) -> dict[str, str]:
    """Case → digest of what its figures come from: its parameters, the code, the libraries and the case that it starts from."""
    code, found = _code(), {}
    for case in cases:
        told = json.dumps([case.identity(), _data(case), code, found.get(case.after)], sort_keys=True, default=str)
        found[case.name] = hashlib.sha256(told.encode()).hexdigest()[:16]
    return found


def _code() -> str:
    from mac_lora_helpers.suite.regress.baselines import conditions

    digest = hashlib.sha256(json.dumps(conditions()).encode())
    package = Path(sys.modules["mac_lora_helpers"].__file__).parent
    files = [*package.rglob("*.py"), *(package / "smoke").rglob("*.*"), *notebooks_folder().glob("*.ipynb")]
    # What compares is not what is compared: a mended report does not make the measurements old.
    for file in sorted(file for file in files if file.is_file() and file.suffix != ".pyc" and "regress" not in file.parts):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _data(case: Case) -> list[str]:
    files = resolve({**case.parameters, "preset": case.preset}, env={}).data_patterns
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if Path(file).is_file()]


class _Room:
    """How many cases fit beside each other.

    With ``auto``: two cores a case, and the forecasts of all running cases within ``SHARE`` of the memory that was free at
    the start. One case always fits.
    """

    def __init__(self, jobs: str) -> None:
        self.most = max(1, (os.cpu_count() or 1) // 2) if jobs == "auto" else int(jobs)
        import psutil  # not at the top: `doctor` must start without it

        self.free = psutil.virtual_memory().available * SHARE
        self.needs: dict[str, int] = {}

    def has(self, case: Case, running: Sequence[Running]) -> bool:
        if not running:
            return True
        if len(running) >= self.most:
            return False
        return sum(self.need(one) for one in [*(other.case for other in running), case]) <= self.free

    def need(self, case: Case) -> int:
        """Bytes, from the training's forecast."""
        if case.name not in self.needs:
            self.needs[case.name] = BESIDE + _forecast(case)
        return self.needs[case.name]


def _forecast(case: Case) -> int:
    from mac_lora_helpers import training

    return training.forecast(resolve({**case.parameters, "preset": case.preset}, env={})).total_bytes or 0
