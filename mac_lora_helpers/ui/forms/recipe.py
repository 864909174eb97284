"""A config as text to keep: a ``mac-lora run`` command, papermill's YAML, and what differs from the preset."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from typing import Any

from mac_lora_helpers.config import Config, preset_values
from mac_lora_helpers.ui.tables import Table

#: Where a value came from, in words.
SOURCES = {
    "parameter": "set in the parameters cell or by papermill",
    "environment": "set in the environment",
    "form": "set here",
    "saved": "from an earlier notebook",
}


def differs(config: Config, name: str) -> bool:
    """Whether a parameter has another value than its preset gives it."""
    return getattr(config, name) != preset_values(config.preset)[name]


def told(config: Config) -> dict[str, Any]:
    """Every parameter that somebody must set to get this config, the preset first.

    A parameter that the environment holds is told too: on another day it may hold something else.
    """
    names = [name for name in type(config).model_fields if name != "preset"]
    return {
        "preset": config.preset,
        **{name: getattr(config, name) for name in names if differs(config, name) or name.upper() in os.environ},
    }


def command(config: Config) -> str:
    """``mac-lora run …`` with what differs from the preset; one line for a shell."""
    values = {name: _plain(value) for name, value in told(config).items()}
    options = [f"--preset {values.pop('preset')}", *(f"-p {name} {shlex.quote(text)}" for name, text in values.items())]
    return " ".join(["mac-lora run", *options])


def papermill_yaml(config: Config) -> str:
    """The same for ``papermill -f parameters.yaml``."""
    import yaml

    return yaml.safe_dump(told(config), sort_keys=False, allow_unicode=True, width=1000)


def effective_table(config: Config, names: Iterable[str] | None = None) -> Table:
    """Every parameter with its value and where it came from; what differs from the preset carries a mark."""
    base = preset_values(config.preset)
    rows = []
    for name in names or type(config).model_fields:
        mark = f"● {_shown(base[name])}" if name != "preset" and differs(config, name) else ""
        rows.append((name, _shown(getattr(config, name)), mark, origin(config, name)))
    return Table(["parameter", "value", "● differs from the preset's", "from"], rows)


def origin(config: Config, name: str) -> str:
    """Where a value came from, for people."""
    source = config.source_of(name)
    return SOURCES.get(source, f"preset {config.preset}" if source == "preset" else source)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    return _plain(value) if str(value) else "(empty)"
