"""Measurements against baselines: what is green, what is red, and where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import NOTEBOOKS
from mac_lora_helpers.suite.regress import metrics
from mac_lora_helpers.suite.regress.bands import Band, compare, is_number
from mac_lora_helpers.suite.regress.baselines import Baselines
from mac_lora_helpers.suite.regress.cases import Case
from mac_lora_helpers.suite.regress.process import RUN, read_result
from mac_lora_helpers.suite.regress.schedule import case_folder


@dataclass(frozen=True)
class Judged:
    """One figure: ``band`` in words, ``low``/``high`` its ends, ``file`` where to look (below the report folder)."""

    metric: str
    about: str
    kind: str
    baseline: Any
    got: Any
    band: str
    low: float | None
    high: float | None
    passed: bool
    reason: str
    file: str


@dataclass
class CaseReport:
    """One case's outcome; ``status``: passed, failed, timeout or skipped. ``notebooks``: executed ones, below the report folder."""

    name: str
    about: str
    status: str
    seconds: float
    message: str
    parameters: dict[str, Any]
    notebooks: list[str]
    figures: list[str]
    metrics: list[Judged] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    @property
    def red(self) -> list[Judged]:
        return [row for row in self.metrics if not row.passed]

    @property
    def passed(self) -> bool:
        return self.status == "passed" and not self.red and not self.new

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def measure(case: Case, report: Path) -> dict[str, Any]:
    """Metric → figure of a finished case, for every band that has a baseline."""
    return {band.metric: _figure(case, band, report) for band in case.bands if band.has_baseline}


def _figure(case: Case, band: Band, report: Path) -> Any:
    got = _read(case.name, band.metric, report)
    if band.kind != "ratio":
        return got
    below = _read(band.case or case.name, band.of or "", report)
    return got / below if is_number(got) and is_number(below) and below else None


def _read(name: str, metric: str, report: Path) -> Any:
    folder = case_folder(report, name)
    return metrics.read_metric(folder / RUN, metric, (read_result(folder) or {}).get("cost"))


def judge(cases: Sequence[Case], baselines: Baselines, report: Path) -> list[CaseReport]:
    """Every case that has a result, held against its baselines."""
    return [_judge(case, baselines.values(case.name), report) for case in cases]


def _judge(case: Case, values: dict[str, Any], report: Path) -> CaseReport:
    folder = case_folder(report, case.name)
    result = read_result(folder) or {"status": "skipped", "seconds": 0.0, "message": "not run"}
    found = CaseReport(
        name=case.name,
        about=case.about,
        status=result["status"],
        seconds=result["seconds"],
        message=result["message"],
        parameters={"preset": case.preset, **case.parameters},
        notebooks=_present(report, folder, [f"notebooks/{name}.ipynb" for name in NOTEBOOKS if name[:2] in case.notebooks]),
        figures=_present(report, folder, _figures(case)),
    )
    if result["status"] == "skipped":
        return found
    for band in case.bands:
        if band.has_baseline and band.metric not in values:
            found.new.append(band.metric)
        else:
            found.metrics.append(_row(case, band, values.get(band.metric), report, found.status == "passed"))
    found.metrics = [row for row in found.metrics if row is not None]
    return found


def _figures(case: Case) -> list[str]:
    made = {"02": "data/report.png", "03": "loss.png", "04": "eval/comparison.png"}
    return [path for number, path in made.items() if number in case.notebooks]


def _present(report: Path, folder: Path, names: list[str]) -> list[str]:
    return [(folder / RUN / name).relative_to(report).as_posix() for name in names if (folder / RUN / name).exists()]


def _row(case: Case, band: Band, baseline: Any, report: Path, whole: bool) -> Judged | None:
    """None: no such figure and none expected, or the case stopped before it had it; that it stopped is told once."""
    got = _figure(case, band, report)
    if band.kind == "same":
        baseline = _read(band.case or "", band.metric, report)
    if got is None and (baseline is None or not whole):
        return None
    verdict = compare(band, got, baseline)
    file = metrics.place_of(band.metric)
    folder = case_folder(report, case.name).relative_to(report)
    return Judged(
        metric=band.metric,
        about=metrics.KNOWN[band.metric],
        kind=band.kind,
        baseline=baseline,
        got=got,
        band=verdict.told,
        low=verdict.low,
        high=verdict.high,
        passed=verdict.passed,
        reason=band.reason,
        file=(folder / RUN / file if file else folder / "result.json").as_posix(),
    )
