"""The cases in YAML: read, expanded and checked whole before anything runs; every mistake is told with its line."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mac_lora_helpers.artifacts import NOTEBOOKS
from mac_lora_helpers.config import PRESETS, Config, resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.suite.preflight import preflight
from mac_lora_helpers.suite.regress.figures import Band, made_by
from mac_lora_helpers.text import near

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_NUMBERS = [name[:2] for name in NOTEBOOKS]


def _numbers(value: Any) -> Any:
    """YAML reads 03 as the number 3."""
    return [f"{item:02d}" if type(item) is int else item for item in value] if isinstance(value, list) else value


class CaseText(BaseModel):
    """A case as it stands in the file; docs/regression.md explains the keys."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    about: str = ""
    preset: Literal[*PRESETS] | None = None
    parameters: dict[str, Any] = {}
    notebooks: Annotated[list[Literal[*_NUMBERS]], BeforeValidator(_numbers)] = Field(default=_NUMBERS, min_length=1)
    after: str | None = None
    kill_at: str | None = None
    timeout: float | None = Field(None, gt=0)
    grid: dict[str, list[Any]] = {}
    bands: list[Any] = []
    without: list[str] = []


class Defaults(BaseModel):
    """What every case gets that does not say otherwise; ``timeout`` in seconds."""

    model_config = ConfigDict(extra="forbid")

    preset: Literal[*PRESETS] = "smoke"
    parameters: dict[str, Any] = {}
    timeout: float = Field(900, gt=0)


class SuiteText(BaseModel):
    """The file's top level."""

    model_config = ConfigDict(extra="forbid")

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
    bands: tuple[Band, ...]

    @property
    def linked(self) -> set[str]:
        """The cases that it starts from or is compared with."""
        return {name for name in (self.after, *(band.case for band in self.bands)) if name}


class Source:
    """A YAML file (JSON is YAML too), and errors that name its lines.

    Raises:
        InputError: it cannot be read, is not YAML.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            text = file.read_text(encoding="utf-8")
            self.node, self.data = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
        except (OSError, UnicodeError) as error:
            raise InputError(f"the file cannot be read: {error}", where=str(file), fix="check the path") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", None) or "it cannot be parsed"
            raise InputError(f"not YAML: {what}", where=f"{file}:{mark.line + 1 if mark else 1}", fix="mend that line") from None

    def error(self, what: str, *path: str | int, fix: str) -> InputError:
        """An error at ``path``, a list of keys and places, or at the nearest thing above it that the file holds."""
        return InputError(what, where=f"{self.file}:{self._line(path)}", fix=fix)

    def _line(self, path: tuple[str | int, ...]) -> int:
        node, line = self.node, 1
        for key in path:
            if isinstance(node, yaml.MappingNode):
                found = [pair for pair in node.value if pair[0].value == key]
            else:
                items = node.value if isinstance(node, yaml.SequenceNode) else []
                found = [(items[key], items[key])] if isinstance(key, int) and key < len(items) else []
            if not found:
                return line
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        return line

    def checked(self, model: type[Any], value: Any, *path: str | int) -> Any:
        """``value`` as a pydantic model; the first mistake in it is told with its line, unknown keys with the nearest known one."""
        if not isinstance(value, Mapping):
            raise self.error("a mapping is wanted here", *path, fix=f"keys: {', '.join(model.model_fields)}")
        try:
            return model.model_validate(value)
        except ValidationError as error:
            item = error.errors()[0]
        name = ".".join(map(str, item["loc"]))
        keys = f"keys: {', '.join(model.model_fields)}"
        if item["type"] == "extra_forbidden":
            raise self.error(f"unknown key {name!r}", *path, *item["loc"], fix=near(name, model.model_fields, otherwise=keys))
        raise self.error(f"{name}: {item['msg'].removeprefix('Value error, ')}".removeprefix(": "), *path, *item["loc"], fix=keys)


def load_cases(file: Path) -> tuple[Case, ...]:
    """Reads a file of cases and checks all of it; each case stands after those that it starts from or is compared with.

    Raises:
        InputError: anything that does not fit, with file, line and the nearest known name.
    """
    source = Source(file)
    text = source.checked(SuiteText, source.data)
    defaults = source.checked(Defaults, text.defaults, "defaults")
    bands = _bands(source, text.bands, "bands")
    cases: list[Case] = []
    for index, value in enumerate(text.cases):
        case = source.checked(CaseText, value, "cases", index)
        for name, grid in _expanded(source, case, index):
            if name in [other.name for other in cases]:
                raise source.error(f"two cases are named {name!r}", "cases", index, "name", fix="give each its own name")
            cases.append(_case(source, case, name, grid, defaults, bands, index))
            for linked in sorted(cases[-1].linked - {other.name for other in cases[:-1]}):
                what = f"case {name} needs {linked!r}, which does not stand above it"
                raise source.error(what, "cases", index, fix=near(linked, [other.name for other in cases], otherwise="move it up"))
    return tuple(cases)


def choose(cases: tuple[Case, ...], names: list[str]) -> tuple[Case, ...]:
    """The cases whose names hold one of ``names`` (all, if there is none), with those that they need.

    Raises:
        InputError: no case has such a name.
    """
    for name in names:
        if not any(name in case.name for case in cases):
            known = [case.name for case in cases]
            raise InputError(f"no case {name!r}", where="-k", fix=near(name, known, otherwise=f"one of: {', '.join(known)}"))
    wanted = {case.name for case in cases if not names or any(name in case.name for name in names)}
    for case in reversed(cases):
        wanted |= case.linked if case.name in wanted else set()
    return tuple(case for case in cases if case.name in wanted)


def _expanded(source: Source, case: CaseText, index: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and grid parameters for each combination of a grid."""
    for name, values in case.grid.items():
        if not values:
            raise source.error(f"grid {name!r} has no values", "cases", index, "grid", name, fix="list at least one")
    for values in itertools.product(*case.grid.values()):
        name = "-".join([case.name, *(re.sub(r"[^A-Za-z0-9._]+", "-", str(value)).strip("-") or "none" for value in values)])
        if not _NAME.fullmatch(name):
            raise source.error(f"{name!r} cannot be a case's name", "cases", index, "name", fix="letters, digits, dot, dash, underscore")
        yield name, dict(zip(case.grid, values, strict=True))


def _case(source: Source, case: CaseText, name: str, grid: dict[str, Any], defaults: Defaults, bands: list[Band], index: int) -> Case:
    if sorted(set(case.notebooks)) != case.notebooks:
        raise source.error("notebooks are not in order, each once", "cases", index, "notebooks", fix="for example [02, 03]")
    own, preset = _bands(source, case.bands, "cases", index, "bands"), case.preset or defaults.preset
    places = dict.fromkeys(defaults.parameters, ("defaults", "parameters"))
    places |= dict.fromkeys(case.parameters, ("cases", index, "parameters")) | dict.fromkeys(grid, ("cases", index, "grid"))
    typed = _typed(source, {**defaults.parameters, **case.parameters, **grid}, preset, places)
    numbers, replaced = {0, *map(int, case.notebooks)}, {band.metric for band in own} | set(case.without)
    applying = [*(band for band in bands if band.metric not in replaced), *own]
    return Case(
        **{field: getattr(case, field) for field in ("about", "after", "kill_at")},
        name=name,
        preset=preset,
        parameters=typed,
        notebooks=tuple(case.notebooks),
        timeout=case.timeout or defaults.timeout,
        bands=tuple(band for band in applying if made_by(band.metric) in numbers),
    )


def _typed(source: Source, explicit: Mapping[str, Any], preset: str, places: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The parameters as the config types them; whatever it refuses is told with the line."""
    for name in explicit:
        if name in ("out_dir", "preset") or name not in Config.model_fields:
            fix = "preset is a key of the case; out_dir is set for it" if name in Config.model_fields else near(name, Config.model_fields)
            raise source.error(f"{name!r} is no parameter that a case can set", *places[name], name, fix=fix)
    values = {name: _beside(source.file, name, value) for name, value in explicit.items()}
    try:
        config = resolve({**values, "preset": preset}, env={})
        preflight(config)
    except InputError as error:
        told = f"{error.what} ({error.where})"
        named = next((n for n, value in values.items() if re.search(rf"\b{n}\b", told) or (value and str(value) in told)), "")
        raise source.error(told, *places.get(named, ()), named, fix=error.fix) from None
    return {name: getattr(config, name) for name in explicit}


def _beside(file: Path, name: str, value: Any) -> Any:
    """Data files are named as they lie beside the file of cases."""
    if name != "data_files" or not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return ", ".join(os.path.relpath(file.parent / part) if any(file.parent.glob(part)) else part for part in parts if part)


def _bands(source: Source, values: list[Any], *path: str | int) -> list[Band]:
    bands: list[Band] = []
    for index, value in enumerate(values):
        band = source.checked(Band, value, *path, index)
        for key, metric in (("metric", band.metric), ("of", band.of or band.metric)):
            if made_by(metric) is None:
                fix = "it begins with an artefact's name: docs/regression.md, Figures"
                raise source.error(f"no artefact holds {metric!r}", *path, index, key, fix=fix)
        if band.metric in [other.metric for other in bands]:
            raise source.error(f"two bands for {band.metric}", *path, index, fix="keep one")
        bands.append(band)
    return bands
