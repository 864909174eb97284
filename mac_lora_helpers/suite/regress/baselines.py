"""What the figures were when somebody said that they are right: one file a case, with the reasons of every change."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mac_lora_helpers.files import atomic_file, portable
from mac_lora_helpers.suite.regress import located, metrics
from mac_lora_helpers.suite.regress.bands import is_number
from mac_lora_helpers.suite.regress.cases import Case, Suite

Value = bool | int | float | str | None
_NUMERIC = ("relative", "at_least", "at_most", "ratio")


class Change(BaseModel):
    """One update: when, why, on what machine, and what changed from what to what."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    when: str
    reason: str = Field(min_length=1)
    made_on: dict[str, str] = {}
    changed: dict[str, list[Any]] = {}


class BaselineText(BaseModel):
    """A baseline file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    case: str
    values: dict[str, Value]
    history: list[Change] = Field(min_length=1)


@dataclass
class Baselines:
    """All baselines of a suite, by case."""

    folder: Path
    by_case: dict[str, BaselineText] = field(default_factory=dict)

    def values(self, case: str) -> dict[str, Any]:
        return self.by_case[case].values if case in self.by_case else {}


def load_baselines(suite: Suite) -> Baselines:
    """Reads every baseline file beside the cases.

    Raises:
        InputError: a file that is damaged, names a case or metric that is not there, or a value that its band cannot use.
    """
    kept = Baselines(suite.baselines)
    for file in sorted(suite.baselines.glob("*.json")):
        found = located.read(file)
        text = located.checked(BaselineText, found, found.data)
        names = [case.name for case in suite.cases]
        if text.case != file.stem or text.case not in names:
            fix = f"{located.nearest(text.case, names)} Rename the file and its case with it, or remove it"
            raise found.error(f"a baseline of {text.case!r}: no such case, or not this file's name", "case", fix=fix)
        _check_values(found, text, suite.case(text.case))
        kept.by_case[text.case] = text
    return kept


def _check_values(found: located.Located, text: BaselineText, case: Case) -> None:
    bands = {band.metric: band for band in case.bands}
    for metric, value in text.values.items():
        if metric not in metrics.KNOWN:
            near = located.nearest(metric, metrics.KNOWN)
            raise found.error(f"unknown metric {metric!r}", "values", metric, fix=near if near.startswith("did") else "remove the line")
        band = bands.get(metric)
        if band and band.kind in _NUMERIC and value is not None and not is_number(value):
            what = f"{metric} has a band of kind {band.kind}, but its baseline is {value!r}, not a number"
            raise found.error(what, "values", metric, fix="measure it again: mac-lora regress --update")


def conditions() -> dict[str, str]:
    """Where a figure was measured: platform, Python and the libraries that decide numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"platform": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf", "xllamacpp"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def changes(kept: Baselines, case: Case, measured: dict[str, Any]) -> dict[str, list[Any]]:
    """Metric → [baseline, measured] for what an update would write: new figures, and those that are not the same."""
    had = kept.values(case.name)
    wanted = {band.metric: measured.get(band.metric) for band in case.bands if band.has_baseline}
    found = {name: [had.get(name), value] for name, value in wanted.items() if name not in had or had[name] != value}
    gone = {name: [value, None] for name, value in had.items() if name not in wanted}
    return {**found, **gone}


def write(kept: Baselines, case: Case, measured: dict[str, Any], reason: str, measured_on: dict[str, str]) -> None:
    """Writes one case's baselines and adds the change, with its reason, to the file's history."""
    old = kept.by_case.get(case.name)
    change = Change(
        when=datetime.now(UTC).strftime("%Y-%m-%d"),
        reason=portable(reason.strip()),
        made_on=measured_on,
        changed=changes(kept, case, measured) if old else {},
    )
    values = {band.metric: measured.get(band.metric) for band in case.bands if band.has_baseline}
    text = BaselineText(case=case.name, values=values, history=[*(old.history if old else []), change])
    with atomic_file(kept.folder / f"{case.name}.json") as temporary:
        temporary.write_text(json.dumps(text.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    kept.by_case[case.name] = text
