"""The cases in YAML: read, expanded and checked whole before anything runs."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mac_lora_helpers.artifacts import NOTEBOOKS
from mac_lora_helpers.config import Config, resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.suite.preflight import preflight
from mac_lora_helpers.suite.regress import located, metrics
from mac_lora_helpers.suite.regress.bands import Band
from mac_lora_helpers.suite.regress.located import Located

NUMBERS = tuple(name[:2] for name in NOTEBOOKS)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
#: Set by the runner for every case, so a case may not.
_OURS = ("out_dir", "preset")


def _numbers(value: Any) -> Any:
    """YAML reads 03 as the number 3."""
    return (
        [f"{item:02d}" if isinstance(item, int) and not isinstance(item, bool) else item for item in value]
        if isinstance(value, list)
        else value
    )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class CaseText(_Strict):
    """A case as it stands in the file.

    ``after``: the case whose run directory it starts from: it gets a copy of what the notebooks before its own have made.
    ``kill_at``: an artefact; when it appears the case is killed outright, and started again where it was.
    ``grid``: parameter → values; the case is made once for each combination, its name takes the values on.
    ``bands`` take the place of the suite's bands of the same metric; ``without``: metrics that are not compared here.
    """

    name: str
    about: str = ""
    preset: Literal["smoke", "real", "local"] | None = None
    parameters: dict[str, Any] = {}
    notebooks: Annotated[list[Literal[NUMBERS]], BeforeValidator(_numbers)] = Field(default=list(NUMBERS), min_length=1)
    after: str | None = None
    kill_at: str | None = None
    timeout: float | None = Field(None, gt=0)
    tags: list[str] = []
    grid: dict[str, list[Any]] = {}
    bands: list[Any] = []
    without: list[str] = []


class Defaults(_Strict):
    """What every case gets that does not say otherwise; ``timeout`` in seconds."""

    preset: Literal["smoke", "real", "local"] = "smoke"
    parameters: dict[str, Any] = {}
    timeout: float = Field(900, gt=0)


class SuiteText(_Strict):
    """The file's top level."""

    defaults: dict[str, Any] = {}
    bands: list[Any] = []
    cases: list[Any] = Field(min_length=1)


@dataclass(frozen=True)
class Case:
    """One case, expanded and checked. ``parameters`` are explicit ones, typed; ``bands`` those that apply to it, in order."""

    name: str
    about: str
    preset: str
    parameters: dict[str, Any]
    notebooks: tuple[str, ...]
    after: str | None
    kill_at: str | None
    timeout: float
    tags: tuple[str, ...]
    bands: tuple[Band, ...]

    @property
    def first(self) -> int:
        """Number of its first notebook."""
        return int(self.notebooks[0])

    def identity(self) -> dict[str, Any]:
        """What decides its figures; bands and texts do not."""
        return {
            "preset": self.preset,
            "parameters": self.parameters,
            "notebooks": self.notebooks,
            "after": self.after,
            "kill_at": self.kill_at,
        }


@dataclass(frozen=True)
class Suite:
    """A checked file of cases, each after the one that it starts from; its baselines lie beside it."""

    file: Path
    cases: tuple[Case, ...]

    @property
    def baselines(self) -> Path:
        return self.file.parent / "baselines"

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)

    def choose(self, names: list[str], tags: list[str]) -> tuple[Case, ...]:
        """The named or tagged cases, with those that they start from or are compared with.

        Raises:
            InputError: no case has that name or tag.
        """
        known, all_tags = [case.name for case in self.cases], {tag for case in self.cases for tag in case.tags}
        for name in names:
            if name not in known:
                raise InputError(f"no case {name!r}", where="--case", fix=located.nearest(name, known))
        for tag in tags:
            if tag not in all_tags:
                raise InputError(f"no case has the tag {tag!r}", where="--tag", fix=located.nearest(tag, sorted(all_tags)))
        wanted = {case.name for case in self.cases if case.name in names or set(case.tags) & set(tags)} or set(known)
        while more := {needed for name in wanted for needed in _needs(self.case(name))} - wanted:
            wanted |= more
        return tuple(case for case in self.cases if case.name in wanted)


def _needs(case: Case) -> set[str]:
    return {name for name in (case.after, *(band.case for band in case.bands)) if name}


def load_suite(file: Path) -> Suite:
    """Reads a file of cases and checks all of it.

    Raises:
        InputError: anything that does not fit, with file, line and the nearest known name.
    """
    found = located.read(file)
    text = located.checked(SuiteText, found, found.data)
    defaults = located.checked(Defaults, found, text.defaults, "defaults")
    bands = _bands(found, text.bands, "bands")
    cases: list[Case] = []
    for index, value in enumerate(text.cases):
        case = located.checked(CaseText, found, value, "cases", index)
        own = _bands(found, case.bands, "cases", index, "bands")
        for parameters, name in _expanded(found, case, index):
            cases.append(_case(found, case, name, parameters, defaults, bands, own, index))
            if [other.name for other in cases].count(name) > 1:
                raise found.error(f"two cases are named {name!r}", "cases", index, "name", fix="give each its own name")
    _check_links(found, cases, text.cases)
    return Suite(file, tuple(cases))


def _expanded(found: Located, case: CaseText, index: int) -> list[tuple[dict[str, Any], str]]:
    """(grid parameters, name) for each combination."""
    for name, values in case.grid.items():
        if not values:
            raise found.error(f"grid {name!r} has no values", "cases", index, "grid", name, fix="list at least one")
    made = []
    for values in itertools.product(*case.grid.values()):
        name = "-".join([case.name, *(re.sub(r"[^A-Za-z0-9._]+", "-", str(value)).strip("-") or "none" for value in values)])
        if not _NAME.fullmatch(name):
            raise found.error(
                f"{name!r} cannot be a case's name", "cases", index, "name", fix="letters, digits, dot, dash, underscore; at most 80"
            )
        made.append((dict(zip(case.grid, values, strict=True)), name))
    return made


def _case(
    found: Located, case: CaseText, name: str, grid: dict[str, Any], defaults: Defaults, bands: list[Band], own: list[Band], index: int
) -> Case:
    preset = case.preset or defaults.preset
    explicit = {**defaults.parameters, **case.parameters, **grid}
    typed = _typed(found, explicit, preset, {"grid": grid, "parameters": case.parameters}, index)
    if sorted(case.notebooks) != case.notebooks or len(set(case.notebooks)) != len(case.notebooks):
        raise found.error("notebooks are not in order, each once", "cases", index, "notebooks", fix="for example [02, 03]")
    for metric in case.without:
        _known(found, metric, "cases", index, "without")
    replaced = {band.metric for band in own} | set(case.without)
    applying = [*(band for band in bands if band.metric not in replaced), *own]
    numbers = {0, *map(int, case.notebooks)}
    return Case(
        name=name,
        about=case.about,
        preset=preset,
        parameters=typed,
        notebooks=tuple(case.notebooks),
        after=case.after,
        kill_at=case.kill_at,
        timeout=case.timeout or defaults.timeout,
        tags=tuple(case.tags),
        bands=tuple(band for band in applying if metrics.made_by(band.metric) in numbers),
    )


def _typed(found: Located, explicit: Mapping[str, Any], preset: str, places: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The parameters as the config types them; whatever it refuses is told with the line."""

    def path(name: str) -> tuple[str | int, ...]:
        held = next((key for key, values in places.items() if name in values), None)
        return ("cases", index, held, name) if held else ("defaults", "parameters", name)

    for name in explicit:
        if name in _OURS:
            raise found.error(
                f"{name} is not a case's to set as a parameter", *path(name), fix="preset has a key of its own; out_dir is the runner's"
            )
        if name not in Config.model_fields:
            raise found.error(f"unknown parameter {name!r}", *path(name), fix=located.nearest(name, Config.model_fields))
    values = {name: _beside(found.file, name, value) for name, value in explicit.items()}
    try:
        config = resolve({**values, "preset": preset}, env={})
        preflight(config)
    except InputError as error:
        named = next((name for name in explicit if re.search(rf"\b{name}\b", f"{error.where} {error.what}")), "")
        where = found.place(*(path(named) if named else ("cases", index)))
        raise InputError(error.what, where=where, fix=error.fix) from None
    return {name: getattr(config, name) for name in explicit}


def _beside(file: Path, name: str, value: Any) -> Any:
    """Data files are named as they lie beside the file of cases."""
    if name != "data_files" or not isinstance(value, str) or not value:
        return value
    parts = [part.strip() for part in value.split(",")]
    return ", ".join(os.path.relpath(file.parent / part) if any(file.parent.glob(part)) else part for part in parts if part)


def _bands(found: Located, values: list[Any], *path: str | int) -> list[Band]:
    bands: list[Band] = []
    for index, value in enumerate(values):
        band = located.checked(Band, found, value, *path, index)
        for key in ("metric", "of"):
            if getattr(band, key) is not None:
                _known(found, getattr(band, key), *path, index, key)
        if band.metric in [other.metric for other in bands]:
            raise found.error(f"two bands for {band.metric}", *path, index, fix="keep one")
        bands.append(band)
    return bands


def _known(found: Located, metric: str, *path: str | int) -> None:
    if metric not in metrics.KNOWN:
        near = located.nearest(metric, metrics.KNOWN)
        fix = near if near.startswith("did") else "docs/regression.md lists the metrics"
        raise found.error(f"unknown metric {metric!r}", *path, fix=fix)


def _check_links(found: Located, cases: list[Case], texts: list[Any]) -> None:
    """``after`` and the bands' cases name cases that stand further up."""
    names = [case.name for case in cases]
    for position, case in enumerate(cases):
        for linked in sorted(_needs(case)):
            if linked not in names[:position]:
                index = next(i for i, text in enumerate(texts) if case.name.startswith(text["name"]))
                what = "stands further down" if linked in names else "is not there"
                raise found.error(
                    f"case {case.name} needs {linked!r}, which {what}", "cases", index, fix=located.nearest(linked, names[:position])
                )
