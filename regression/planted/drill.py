"""The drill: breaks one thing after another and looks whether the regression run turns red by the right figure.

    python regression/planted/drill.py [--report DIR] [NAME …]

A clean run comes first and must be green. For each plant the cases from the broken stage on are run again, with the fault
planted by ``sitecustomize``. Exit code 0: every plant was caught, by the figure that it ought to be caught by. 1: one was not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from plants import PLANTS, Plant  # noqa: E402

#: Cases of the drill, in their order, and which of them a fault in one strikes; each starts from the ones before it.
CASES = ("data", "train", "answers", "export")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"plants: {', '.join(PLANTS)}")
    parser.add_argument("--report", type=Path, default=Path("outputs/planted"), help="folder of the drill's reports")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(PLANTS)
    if unknown:
        parser.error(f"no such plant: {', '.join(sorted(unknown))}")
    clean = arguments.report / "clean"
    if regress(clean, CASES) != 0:
        print("the clean run is not green: mend that first")
        return 1
    missed = [name for name in arguments.names or PLANTS if not caught(name, clean, arguments.report / name)]
    total = len(arguments.names or PLANTS)
    print(f"{total - len(missed)} of {total} planted regressions were caught" + (f"; missed: {', '.join(missed)}" if missed else ""))
    return 1 if missed else 0


def regress(report: Path, cases: tuple[str, ...], planted: str = "") -> int:
    """Runs ``mac-lora regress``, with a fault planted in everything it starts; its exit code."""
    environment = dict(os.environ)
    command = [sys.executable, "-m", "mac_lora_helpers", "regress", "--report", str(report)]
    command += [part for case in cases for part in ("--case", case)]
    if planted:
        path = os.pathsep.join(filter(None, [str(HERE), environment.get("PYTHONPATH", "")]))
        environment |= {"PYTHONPATH": path, "PLANTED": planted}
    report.mkdir(parents=True, exist_ok=True)
    with (report / "out.txt").open("w") as out:
        return subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False).returncode


def caught(name: str, clean: Path, report: Path) -> bool:
    """Plants one fault; prints and returns whether the run turned red by the right figure."""
    plant = PLANTS[name]
    shutil.rmtree(report, ignore_errors=True)
    earlier = CASES[: CASES.index(plant.case)]
    for case in earlier:
        if case in ("data", "train"):
            shutil.copytree(clean / "cases" / case, report / "cases" / case)
    code = regress(report, (plant.case,), name)
    problem = _problem(plant, code, report)
    print(
        f"{'caught' if not problem else 'MISSED'}  {name}: {plant.what}" + (f"; {problem}" if problem else f"; red: {_red(report, plant)}"),
        flush=True,
    )
    return not problem


def _problem(plant: Plant, code: int, report: Path) -> str:
    """Why the plant does not count as caught; empty if it does."""
    if code != 1:
        return f"exit code {code}, not 1"
    case = _case(report, plant.case)
    red = {row["metric"] for row in case["metrics"] if not row["passed"]}
    if left := set(plant.red) - red:
        return f"not red: {', '.join(sorted(left))}; red: {', '.join(sorted(red)) or 'nothing'}"
    if bool(plant.stops) != (case["status"] == "failed"):
        return f"the case's status is {case['status']}: {case['message']}"
    return "" if plant.stops in case["message"] else f"the product's check said: {case['message']}"


def _red(report: Path, plant: Plant) -> str:
    case = _case(report, plant.case)
    told = [row["metric"] for row in case["metrics"] if not row["passed"]]
    return ", ".join(told + (["the product's own check"] if plant.stops else []))


def _case(report: Path, name: str) -> dict[str, Any]:
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))["cases"]
    return next(case for case in found if case["name"] == name)


if __name__ == "__main__":
    sys.exit(main())
