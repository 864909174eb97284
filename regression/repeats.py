"""Runs the regression cases again and again, with nothing changed: whatever turns red is a false alarm.

    python regression/repeats.py [--times 20] [--report DIR] [--jobs N] [--case NAME …]

Each repeat is a whole ``mac-lora regress`` in a folder of its own; repeats that were finished are kept, so the command can be
stopped and started again. At the end: false alarms, and the figures that came nearest to the ends of their bands.
Exit code 0: no repeat turned red. 1: one did.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mac_lora_helpers.ui.tables import Table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="repeats (default: 20)")
    parser.add_argument("--report", type=Path, default=Path("outputs/repeats"), help="folder of the repeats' reports")
    parser.add_argument("--jobs", default="1", help="cases at once, as for mac-lora regress")
    parser.add_argument("--case", action="append", default=[], help="this case alone, with those it needs; may be given again")
    arguments = parser.parse_args()
    folders = [arguments.report / f"{number:02d}" for number in range(1, arguments.times + 1)]
    red = [folder for folder in folders if not green(folder, arguments.jobs, arguments.case)]
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in folders]
    print(summary(reports))
    cases, figures = sum(len(report["cases"]) for report in reports), sum(1 for _ in _figures(reports))
    print(f"{len(red)} false alarms in {len(folders)} repeats ({cases:,} cases, {figures:,} figures)")
    return 1 if red else 0


def green(folder: Path, jobs: str, cases: Sequence[str]) -> bool:
    """One repeat; prints and returns whether it was green. Ends the program where the run could not be made."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mac_lora_helpers", "regress", "--report", str(folder), "--history", str(folder), "--jobs", jobs]
    command += [part for case in cases for part in ("--case", case)]
    with (folder / "out.txt").open("a") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    last = (folder / "out.txt").read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
    print(f"{folder.name}: {last}", flush=True)
    if code not in (0, 1):
        sys.exit(code)
    return code == 0


def summary(reports: Sequence[dict[str, Any]]) -> Table:
    """The ten figures that came nearest to the end of their band, by the share of the band that they used."""
    worst: dict[tuple[str, str], tuple[float, float, float]] = {}
    for case, row in _figures(reports):
        key, used = (case, row["metric"]), _used(row)
        if used is not None:
            most, low, high = worst.get(key, (0.0, row["got"], row["got"]))
            worst[key] = max(most, used), min(low, row["got"]), max(high, row["got"])
    nearest = sorted(worst.items(), key=lambda item: -item[1][0])[:10]
    rows = [(case, metric, f"{low:.6g}", f"{high:.6g}", f"{used:.0%}") for (case, metric), (used, low, high) in nearest]
    return Table(["case", "figure", "lowest", "highest", "of its band"], rows, title="Nearest to the end of their bands")


def _used(row: dict[str, Any]) -> float | None:
    """0: on the baseline. 1: on the end of the band. None where there is no width."""
    ends = [end for end in (row["low"], row["high"]) if end is not None]
    if not ends or not isinstance(row["got"], int | float) or not isinstance(row["baseline"], int | float):
        return None
    used = [(row["got"] - row["baseline"]) / (end - row["baseline"]) for end in ends if end != row["baseline"]]
    return max([0.0, *used])


def _figures(reports: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((case["name"], row) for report in reports for case in report["cases"] for row in case["metrics"])


if __name__ == "__main__":
    sys.exit(main())
