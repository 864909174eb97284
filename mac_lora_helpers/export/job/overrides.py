"""What the cloud run shall do differently: ``job_overrides`` read and checked, and the list of differences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mac_lora_helpers.config import Config, resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import portable

#: The stages whose parameters are the recipe; only they may differ.
STAGES = ("data", "training", "evaluation")
#: Evaluation's parameter for an adapter of this machine.
_NEVER = ("adapter_dir",)
_WHERE = "parameter job_overrides"


def overrides_of(config: Config) -> dict[str, Any]:
    """``job_overrides`` as parameters with their own types: ``max_steps=-1, dataset_split=train_sft``.

    A comma separates only where a name and ``=`` follow it, so that values may hold commas.

    Raises:
        InputError: no ``name=value``, a name that is no parameter of the recipe, one that is given twice, or a value
            that does not fit.
    """
    given: dict[str, str] = {}
    for part in re.split(r",\s*(?=[A-Za-z_]\w*\s*=)", config.job_overrides.strip()):
        if not part.strip():
            continue
        name, sign, value = part.partition("=")
        name = name.strip()
        if not sign or name in given:
            fix = "write name=value, name=value, for example max_steps=-1, dataset_split=train_sft"
            raise InputError(f"{name!r} {'is given twice' if sign else 'has no value'}", where=_WHERE, fix=fix)
        given[name] = value.strip()
    checked = resolve(given, env={}) if given else config  # refuses unknown names and values that do not fit
    allowed = [name for name in config.names(*STAGES) if name not in _NEVER]
    for name in given:
        if name not in allowed:
            raise InputError(f"{name} is no part of the recipe", where=_WHERE, fix=f"one of {', '.join(allowed)}")
    return {name: getattr(checked, name) for name in given}


def differences(changes: Mapping[str, Any], local: Mapping[str, Any], job: Config) -> list[dict[str, str]]:
    """One entry for each changed parameter whose value in the job is another than the local run's."""
    return [
        {"parameter": name, "local": portable(str(local[name])), "job": portable(str(getattr(job, name)))}
        for name in changes
        if getattr(job, name) != local[name]
    ]


def told(item: Mapping[str, str]) -> str:
    """A difference in words."""
    return f"{item['parameter']}: {item['local']} → {item['job']}"
