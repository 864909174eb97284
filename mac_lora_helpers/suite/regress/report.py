"""The report: one dictionary, and its forms for a terminal, for programs and for CI."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mac_lora_helpers.files import atomic_file, portable
from mac_lora_helpers.suite.regress.bands import number
from mac_lora_helpers.suite.regress.baselines import conditions
from mac_lora_helpers.suite.regress.judge import CaseReport
from mac_lora_helpers.ui.tables import Table

JSON, JUNIT, PAGE = "report.json", "junit.xml", "report.html"


def make(cases: Sequence[CaseReport], began: str) -> dict[str, Any]:
    """The report as plain data; what ``report.json`` holds."""
    figures = [row for case in cases for row in case.metrics]
    return {
        "status": "passed" if all(case.passed for case in cases) else "failed",
        "began": began,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "conditions": {**conditions(), "threads": os.environ.get("OMP_NUM_THREADS", "1")},
        "counts": {
            "cases": len(cases),
            "green": sum(case.passed for case in cases),
            "metrics": len(figures),
            "within": sum(row.passed for row in figures),
            "without_baseline": sum(len(case.new) for case in cases),
        },
        "first_failure": first_failure(cases),
        "cases": [case.to_dict() for case in cases],
    }


def first_failure(cases: Sequence[CaseReport]) -> dict[str, Any] | None:
    """Where to look first: the first figure out of its band, or the first case that did not run to its end."""
    for case in cases:
        if case.status in ("failed", "timeout"):
            told = {"case": case.name, "status": case.status, "message": case.message, "file": f"cases/{case.name}/stderr.txt"}
            return {**told, "red": [row.metric for row in case.red]}
        if case.red:
            row = case.red[0]
            kept = ("metric", "about", "baseline", "got", "band", "reason", "file")
            return {"case": case.name, "status": "out of band", **{name: getattr(row, name) for name in kept}}
        if case.new:
            return {"case": case.name, "status": "no baseline", "metrics": case.new}
    return None


def terminal(report: dict[str, Any], folder: Path) -> str:
    """A table of the cases, every figure out of its band, and one line that says it all."""
    parts = [str(Table(["case", "result", "seconds", "figures", "red"], [_line(case) for case in report["cases"]]))]
    red = [(case["name"], *_cells(row)) for case in report["cases"] for row in case["metrics"] if not row["passed"]]
    if red:
        parts.append(str(Table(["case", "metric", "baseline", "got", "band"], red, title="Out of their bands")))
    parts += _first(report["first_failure"], folder)
    counts = report["counts"]
    told = f"{counts['green']} of {counts['cases']} cases green, {counts['within']} of {counts['metrics']} figures within their bands"
    new = f", {counts['without_baseline']} without a baseline" if counts["without_baseline"] else ""
    parts.append(f"{report['status'].upper()}: {told}{new}: {portable(str(folder / PAGE))}")
    return "\n\n".join(parts)


def _line(case: dict[str, Any]) -> tuple[Any, ...]:
    rows, red = case["metrics"], sum(not row["passed"] for row in case["metrics"])
    word = (
        "passed"
        if case["passed"]
        else "red"
        if case["status"] == "passed" and red
        else "no baseline"
        if case["status"] == "passed"
        else case["status"]
    )
    return case["name"], word, f"{case['seconds']:.0f}", len(rows), red or ""


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return row["metric"], number(row["baseline"]), number(row["got"]), row["band"]


def _first(failure: dict[str, Any] | None, folder: Path) -> list[str]:
    if failure is None:
        return []
    lines = [f"First: {failure['case']}, {failure['status']}"]
    if "metric" in failure:
        lines[0] = f"First: {failure['case']}, {failure['metric']} ({failure['about']})"
        lines.append(f"  baseline {number(failure['baseline'])}, got {number(failure['got'])}, band {failure['band']}")
        lines.append(f"  the band's reason: {failure['reason']}")
    elif "metrics" in failure:
        lines.append(f"  {len(failure['metrics'])} figures have none; look at them, then: mac-lora regress --update")
    else:
        lines += [f"  {line}" for line in failure["message"].splitlines()]
        lines += [f"  red: {', '.join(failure['red'])}"] if failure["red"] else []
    if "file" in failure:
        lines.append(f"  look at {portable(str(folder / failure['file']))}")
    return ["\n".join(lines)]


def junit(report: dict[str, Any]) -> bytes:
    """JUnit XML: a suite a case, a test a figure, and one test for whether the case ran."""
    root = ElementTree.Element("testsuites", name="mac-lora regress")
    for case in report["cases"]:
        tests = [("ran", case["status"], case["message"] or case["status"])]
        tests += [(row["metric"], "passed" if row["passed"] else "failed", _sentence(row)) for row in case["metrics"]]
        tests += [(name, "failed", "no baseline") for name in case["new"]]
        failed = sum(status not in ("passed", "skipped") for _, status, _ in tests)
        skipped = sum(status == "skipped" for _, status, _ in tests)
        counts = {"tests": str(len(tests)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}
        suite = ElementTree.SubElement(root, "testsuite", name=case["name"], time=f"{case['seconds']:.2f}", **counts)
        for name, status, told in tests:
            element = ElementTree.SubElement(suite, "testcase", classname=f"regress.{case['name']}", name=name)
            if status != "passed":
                ElementTree.SubElement(element, "skipped" if status == "skipped" else "failure", message=_printable(told))
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _sentence(row: dict[str, Any]) -> str:
    return f"baseline {number(row['baseline'])}, got {number(row['got'])}, band {row['band']} ({row['reason']}); look at {row['file']}"


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(
        char
        for char in text
        if char in "\n\t" or (ord(char) >= 32 and not 0xD800 <= ord(char) <= 0xDFFF and ord(char) not in (0xFFFE, 0xFFFF))
    )


def past(folder: Path, history: Path) -> list[dict[str, Any]]:
    """Earlier reports below ``history``, oldest first; what cannot be read is left out."""
    found = []
    for file in sorted(history.glob(f"*/{JSON}")):
        if file.resolve() == (folder / JSON).resolve():
            continue
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            found.append((report["made"], {case["name"]: case for case in report["cases"]}))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [{"made": made, "cases": cases} for made, cases in sorted(found, key=lambda pair: pair[0])]


def save(folder: Path, report: dict[str, Any], page: str) -> None:
    """Writes the three files, each whole or not at all."""
    text = portable(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=str)) + "\n"
    for name, content in ((JSON, text.encode()), (JUNIT, junit(report)), (PAGE, page.encode())):
        with atomic_file(folder / name) as temporary:
            temporary.write_bytes(content)
