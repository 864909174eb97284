"""The drill: breaks one thing after another and looks whether the regression run turns red by the right figure.

    python tests/regression/planted/drill.py [--report DIR] [NAME …]

A clean run comes first and must be green. For each plant the case that it strikes is run again, from what the clean run left, with the
fault planted by ``sitecustomize``. Exit code 0: every plant was caught, by the figure that it ought to be caught by. 1: one was not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from plants import PLANTS, Plant  # noqa: E402

from mac_lora_helpers.suite.regress.cases import choose, load_cases  # noqa: E402
from mac_lora_helpers.suite.regress.command import Row, judge, run_cases  # noqa: E402
from mac_lora_helpers.suite.regress.process import RUN, Result, run_case  # noqa: E402

#: Each starts from the ones before it.
CASES = tuple(case for case in choose(load_cases(HERE.parent / "cases.yaml"), []) if case.name in ("data", "train", "answers", "export"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"plants: {', '.join(PLANTS)}")
    parser.add_argument("--report", type=Path, default=Path("outputs/planted"), help="folder of the drill's runs")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(PLANTS)
    if unknown:
        parser.error(f"no such plant: {', '.join(sorted(unknown))}")
    clean = arguments.report / "clean"
    results = run_cases(CASES, clean, 1)
    red = [(name, row.metric, row.got, row.band) for name in results for row in rows(name, clean, results) if not row.passed]
    if red or any(result.status != "passed" for result in results.values()):
        print(f"the clean run is not green: mend that first. {red or results}")
        return 1
    missed = [name for name in arguments.names or PLANTS if not caught(name, clean, arguments.report / name, results)]
    total = len(arguments.names or PLANTS)
    print(f"{total - len(missed)} of {total} planted regressions were caught" + (f"; missed: {', '.join(missed)}" if missed else ""))
    return 1 if missed else 0


def rows(name: str, folder: Path, results: Mapping[str, Result]) -> list[Row]:
    """The case's figures beside their baselines."""
    case = next(case for case in CASES if case.name == name)
    return judge(case, json.loads((HERE.parent / f"baselines/{name}.json").read_text())["values"], folder, results)


def caught(name: str, clean: Path, folder: Path, results: Mapping[str, Result]) -> bool:
    """Plants one fault in the case that it strikes; prints and returns whether the run turned red by the right figure."""
    plant = PLANTS[name]
    case = next(case for case in CASES if case.name == plant.case)
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    result = run_case(case, folder / case.name, clean / case.after / RUN if case.after else None, {"PYTHONPATH": path, "PLANTED": name})
    red = [row.metric for row in rows(case.name, folder, {**results, case.name: result}) if not row.passed]
    problem = _problem(plant, result, red)
    told = f"; {problem}" if problem else f"; red: {', '.join([*red, *(['the own check'] if plant.stops else [])])}"
    print(f"{'MISSED' if problem else 'caught'}  {name}: {plant.what}{told}", flush=True)
    return not problem


def _problem(plant: Plant, result: Result, red: list[str]) -> str:
    """Why the plant does not count as caught; empty if it does."""
    if left := set(plant.red) - set(red):
        return f"not red: {', '.join(sorted(left))}; red: {', '.join(red) or 'nothing'}; the case {result.status}: {result.message}"
    if bool(plant.stops) != (result.status == "failed"):
        return f"the case's status is {result.status}: {result.message}"
    return "" if plant.stops in result.message else f"the suite's own check said: {result.message}"


if __name__ == "__main__":
    sys.exit(main())
