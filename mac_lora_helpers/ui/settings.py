"""The settings of a run as one table, and as the command that runs with them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from typing import Any

from mac_lora_helpers.config import Config, parameter_info, preset_values
from mac_lora_helpers.ui.tables import Table

#: Where a value came from, in words.
SOURCES = {
    "parameter": "set in the parameters cell or by papermill",
    "environment": "set in the environment",
    "form": "typed into a form",
    "draft": "typed into a form",
    "saved": "from an earlier notebook",
}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}


def settings_table(config: Config, names: Iterable[str]) -> Table:
    """Parameters with value, origin and meaning; what differs from the preset carries a mark."""
    rows = []
    for name in names:
        mark = f"● preset {config.preset} has {plain(preset_values(config.preset)[name])}; " if differs(config, name) else ""
        rows.append((name, plain(getattr(config, name)), mark + origin(config, name), parameter_info(name)["help"]))
    return Table(["parameter", "value", "from", "meaning"], rows)


def differs(config: Config, name: str) -> bool:
    """Whether a parameter has another value than its preset gives it."""
    return getattr(config, name) != preset_values(config.preset)[name]


def origin(config: Config, name: str) -> str:
    """Where a value came from, and where a typed one went that does not count, in words."""
    source = config.source_of(name)
    words = SOURCES.get(source, f"preset {config.preset}" if source == "preset" else source)
    typed = config.draft.read() if config.draft and source not in ("form", "draft") else {}
    if name in typed and typed[name] != getattr(config, name):
        words += f"; {plain(typed[name])}, typed into a form, does not count beside it"
        words += ": run the notebook that asks for it again" if source == "saved" else ""
    return words


def command(config: Config) -> str:
    """``mac-lora run …`` that gives this config again: what differs from the preset, and what the environment holds today."""
    names = [name for name in type(config).model_fields if name != "preset"]
    values = {name: getattr(config, name) for name in names if differs(config, name) or name.upper() in os.environ}
    options = [f"-p {name} {shlex.quote(_written(value))}" for name, value in values.items()]
    return " ".join(["mac-lora run", f"--preset {config.preset}", *options])


def allowed(name: str) -> str:
    """What a parameter may be, in words: ``at least 1, at most 512``, or the choices."""
    info = parameter_info(name)
    bounds = [f"{words} {_number(info['bounds'][key])}" for key, words in _BOUNDS.items() if key in info["bounds"]]
    return ", ".join(bounds or map(plain, info["choices"]))


def plain(value: Any) -> str:
    """A value for people: an empty one is called so."""
    return _written(value) or "(empty)"


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
