"""``mac-lora regress``: runs the cases, holds their figures against the baselines, prints one table and writes ``junit.xml``."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import atomic_file
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.suite.regress.cases import Case, Source, choose, load_cases
from mac_lora_helpers.suite.regress.figures import compare, is_number, number, place_of, read_figure
from mac_lora_helpers.suite.regress.process import RUN, Result, kill, run_case
from mac_lora_helpers.text import visible
from mac_lora_helpers.ui.tables import Table

#: The project's own cases.
CASES = Path(__file__).parents[3] / "tests" / "regression" / "cases.yaml"
_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--cases", metavar="FILE", default=CASES, type=Path, help="the cases, in YAML (default: the project's own)")
    parser.add_argument("-k", dest="names", action="append", default=[], metavar="NAME", help="cases whose name holds this")
    parser.add_argument("--report", metavar="DIR", type=Path, help="folder for the runs and junit.xml")
    parser.add_argument("--notebooks", metavar="DIR", type=Path, help="other notebooks than the project's own")
    parser.add_argument("--jobs", default=1, type=int, metavar="N", help="cases at once")
    parser.add_argument("--update", action="store_true", help="take the figures of the cases that passed as the new baselines")
    parser.add_argument("--reason", metavar="TEXT", default="", help="why the baselines change; kept in the baseline files")
    parser.add_argument("--list", action="store_true", help="show the cases and run nothing")


def regress(arguments: argparse.Namespace) -> int:
    """Runs and compares. 0: every figure is within its band. 1: one is not, or a case did not run to its end.

    Raises:
        InputError: cases, baselines or options that do not fit; nothing has run.
    """
    cases = choose(load_cases(arguments.cases), arguments.names)
    baselines = {case.name: _read_baseline(arguments.cases, case) for case in cases}
    if arguments.list:
        print(Table(["case", "notebooks", "after", "about"], [(c.name, " ".join(c.notebooks), c.after or "", c.about) for c in cases]))
        return 0
    if arguments.jobs < 1 or arguments.update != bool(arguments.reason.strip()):
        fix = '--jobs 1 or more; --update with --reason "what changed, and why the new figures are right"'
        raise InputError("these options do not go together", where="--jobs, --update, --reason", fix=fix)
    folder = arguments.report or Path(f"outputs/regression/{datetime.now(UTC):%Y-%m-%d_%H%M%S}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("the report folder is not empty", where=f"--report {folder}", fix="name a new one")
    results = run_cases(cases, folder, arguments.jobs, arguments.notebooks)
    if arguments.update:
        for case in cases:
            if results[case.name].status == "passed":
                baselines[case.name] = _update(arguments.cases, case, measure(case, folder, results), arguments.reason)
    rows = {case.name: judge(case, baselines[case.name].get("values", {}), folder, results) for case in cases}
    write_junit(folder / "junit.xml", rows, results)
    return _tell(rows, results, folder)


def run_cases(cases: Sequence[Case], folder: Path, jobs: int, notebooks: Path | None = None) -> dict[str, Result]:
    """Every case's result; a case starts when the one that it starts from has passed. Ctrl-C stops what runs."""
    ends: dict[str, Future[Result]] = {}

    def one(case: Case) -> Result:
        if case.after and ends[case.after].result().status != "passed":
            return Result("skipped", f"not run: {case.after}, which it starts from, did not pass")
        print(f"▶ {case.name}", flush=True)
        result = run_case(case, folder / case.name, folder / case.after / RUN if case.after else None, notebooks=notebooks)
        print(f"  {case.name}: {result.status} after {result.seconds:.0f} s", flush=True)
        return result

    folder.mkdir(parents=True, exist_ok=True)
    if jobs == 1:  # in this thread, so that Ctrl-C reaches the case that runs
        for case in cases:
            ends[case.name] = Future()
            ends[case.name].set_result(one(case))
    else:
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for case in cases:
                    ends[case.name] = pool.submit(one, case)
                wait(ends.values())
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                kill(os.getpid(), itself=False)
                raise
    return {name: end.result() for name, end in ends.items()}


@dataclass(frozen=True)
class Row:
    """One figure beside its baseline; ``band`` in words, ``place`` the file to look at, below the report folder."""

    metric: str
    baseline: Any
    got: Any
    band: str
    passed: bool
    reason: str
    place: str


def measure(case: Case, folder: Path, results: Mapping[str, Result]) -> dict[str, Any]:
    """Metric → figure of a case that has run; a ratio is divided."""

    def read(name: str, metric: str) -> Any:
        return read_figure(folder / name / RUN, metric, results[name].cost)

    found = {}
    for band in case.bands:
        got = read(case.name, band.metric)
        if band.kind == "ratio":
            below = read(band.case or case.name, band.of or "")
            got = got / below if is_number(got) and is_number(below) and below else None
        found[band.metric] = got
    return found


def judge(case: Case, values: Mapping[str, Any], folder: Path, results: Mapping[str, Result]) -> list[Row]:
    """The case's figures held against their baselines; of a case that stopped only those that it came to."""
    rows, got = [], measure(case, folder, results) if results[case.name].status != "skipped" else {}
    for band in case.bands:
        value, baseline = got.get(band.metric), values.get(band.metric)
        if band.kind == "same":
            baseline = read_figure(folder / str(band.case) / RUN, band.metric, {})
        if value is None and (baseline is None or results[case.name].status != "passed"):
            continue
        passed, told = compare(band, value, baseline)
        if band.has_baseline and band.metric not in values:
            passed, told = False, "no baseline: --update"
        place = f"{case.name}/{RUN}/{place_of(band.metric)}"
        rows.append(Row(band.metric, baseline, value, told, passed, band.reason, place))
    return rows


def write_junit(path: Path, rows: Mapping[str, Sequence[Row]], results: Mapping[str, Result]) -> None:
    """JUnit XML: a suite for each case, a test for each figure, and one test for whether the case ran."""
    root = ElementTree.Element("testsuites", name="mac-lora regress")
    for name, result in results.items():
        told = [("ran", result.status, result.message)]
        told += [(r.metric, "passed" if r.passed else "failed", f"{number(r.got)}, not {r.band} ({r.reason})") for r in rows[name]]
        bad = sum(status in ("failed", "timeout") for _, status, _ in told)
        counts = {"tests": str(len(told)), "failures": str(bad), "skipped": str(int(result.status == "skipped"))}
        suite = ElementTree.SubElement(root, "testsuite", name=name, time=f"{result.seconds:.2f}", **counts)
        for metric, status, message in told:
            test = ElementTree.SubElement(suite, "testcase", classname=f"regress.{name}", name=metric)
            if status != "passed":
                ElementTree.SubElement(test, "skipped" if status == "skipped" else "failure", message=visible(portable(message)))
    with atomic_file(path) as temporary:
        temporary.write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _tell(rows: Mapping[str, Sequence[Row]], results: Mapping[str, Result], folder: Path) -> int:
    table, red = [], []
    for name, result in results.items():
        off = [row for row in rows[name] if not row.passed]
        word = "red" if off and result.status == "passed" else result.status
        table.append((name, word, f"{result.seconds:.0f}", len(rows[name]), len(off) or ""))
        red += [(name, row.metric, number(row.baseline), number(row.got), row.band, portable(str(folder / row.place))) for row in off]
    print(Table(["case", "result", "seconds", "figures", "red"], table))
    if red:
        print(Table(["case", "figure", "baseline", "got", "band", "look at"], red, title="Out of their bands"))
    for name, result in results.items():
        print(
            f"{name}: {result.message}\n  look at {portable(str(folder / name))}" if result.message else "", end="\n" * bool(result.message)
        )
    green = sum(word == "passed" for _, word, *_ in table)
    print(f"{'PASSED' if green == len(table) else 'FAILED'}: {green} of {len(table)} cases green: {portable(str(folder / 'junit.xml'))}")
    return int(green < len(table))


def _read_baseline(cases: Path, case: Case) -> dict[str, Any]:
    """A case's baseline file, ``{}`` where there is none yet.

    Raises:
        InputError: it is damaged, or a value is none that its band can use.
    """
    file = cases.parent / "baselines" / f"{case.name}.json"
    if not file.exists():
        return {}
    source = Source(file)
    if not isinstance(source.data, dict) or source.data.get("case") != case.name or not isinstance(source.data.get("values"), dict):
        raise source.error(f"this is no baseline of {case.name!r}", fix="restore it from git, or remove it and run --update")
    for band in case.bands:
        value = source.data["values"].get(band.metric)
        if band.kind in ("relative", "at_least", "at_most", "ratio") and value is not None and not is_number(value):
            what = f"{band.metric} is {value!r}, and a band of kind {band.kind} wants a number"
            raise source.error(what, "values", band.metric, fix="measure it again: --update")
    return source.data


def _update(cases: Path, case: Case, measured: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Writes a case's baselines and adds the change, with its reason, to the file's history."""
    old = _read_baseline(cases, case)
    values = {band.metric: measured[band.metric] for band in case.bands if band.has_baseline}
    useless = [name for name, value in values.items() if value in ("nan", "inf", "-inf")]
    had = old.get("values", {})
    changed = {name: [had.get(name), values.get(name)] for name in {**had, **values} if had.get(name) != values.get(name)}
    if useless or not changed:
        print(f"{case.name}: " + (f"not updated, {useless[0]} is not finite" if useless else "nothing changed"))
        return old
    print(Table(["figure", "baseline", "now"], [(n, number(a), number(b)) for n, (a, b) in changed.items()], title=case.name))
    made_on = {"platform": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    change = {
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "reason": portable(reason.strip()),
        "made_on": {**made_on, **{name: version(name) for name in _LIBRARIES}},
        "changed": changed if old else {},
    }
    new = {"case": case.name, "values": values, "history": [*old.get("history", []), change]}
    with atomic_file(cases.parent / "baselines" / f"{case.name}.json") as temporary:
        temporary.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return new
