"""``mac-lora estimate``: would this training fit here, and how long would it take? From the configuration alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.training import memory
from mac_lora_helpers.training.fit import Fit, fit, probe_here, steps_of
from mac_lora_helpers.training.forecast import MEANINGS
from mac_lora_helpers.training.recipe import first_line


def estimate(config: Config, probe: bool | None = None) -> dict[str, Any]:
    """Predicts memory, steps and time; loads no weights.

    Args:
        config: the resolved parameters.
        probe: time a step by a probe of one layer and the head (seconds); None: if the model's weights are on this machine.

    Returns:
        ``model_id device dtype batch{rows,tokens} parameters{base,adapter} path checkpointing{on,reason}
        memory{parts,total_bytes,expected_bytes} available_bytes machine fits steps step_source step_seconds total_seconds
        time_source where{where,reasons} verdict advice savings calibration``. ``steps`` is None when neither ``max_steps`` nor
        prepared data tell it, the seconds while nothing tells them.

    Raises:
        InputError: no such model configuration, or a LoRA target that it does not have.
    """
    from mac_lora_helpers import environment

    device = environment.choose_device(config)
    dtype = environment.choose_dtype(config, device)
    asked = config.model_copy(update={"dtype": dtype.name})
    model_config, lengths = read_model_config(config), _known_lengths(config)
    found = fit(asked, model_config, None, lengths, device.name)
    if _weights_are_here(config) if probe is None else probe:
        probe_here(asked, model_config, found.forecast, device.name)
        found = fit(asked, model_config, found.available_bytes, lengths, device.name)
    return {**_told(config, found), "step_source": steps_of(asked, lengths)[1], "machine": _machine(device.name), "where": _where(asked)}


def _told(config: Config, found: Fit) -> dict[str, Any]:
    return {
        "model_id": config.model_id,
        "device": found.device,
        "dtype": found.dtype,
        "batch": {"rows": found.batch[0], "tokens": found.batch[1]},
        "parameters": found.forecast.parameters,
        "path": {"name": found.path, "reason": found.path_reason},
        "checkpointing": {"on": found.gradient_checkpointing, "reason": found.checkpointing_reason},
        "memory": {"parts": found.parts, "total_bytes": found.total_bytes, "expected_bytes": found.expected_bytes},
        "available_bytes": found.available_bytes,
        "fits": found.fits,
        "steps": found.steps,
        "step_seconds": found.step_seconds,
        "total_seconds": found.total_seconds,
        "time_source": found.time_source,
        "verdict": "fits" if found.fits else "does not fit",
        "advice": found.advice[0] if found.advice else "",
        "savings": [{"setting": item.setting, "saves_bytes": item.saves, "fits": item.fits} for item in found.savings],
        "calibration": found.calibration,
    }


def _machine(device: str) -> dict[str, int | None]:
    """This machine's memory, what is free of it, and on MPS what Metal recommends."""
    import psutil

    whole = psutil.virtual_memory()
    return {"memory_bytes": int(whole.total), "free_bytes": int(whole.available), "recommended_bytes": memory.recommended(device)}


def _where(config: Config) -> dict[str, Any]:
    """local, cloud or unsupported, by notebook 01's rubric."""
    from mac_lora_helpers import environment

    return environment.check_environment(config).verdict.to_dict()


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, meaning) of an estimate for a table."""
    sizes = [(name, memory.text(size), MEANINGS[name]) for name, size in found["memory"]["parts"].items()]
    batch = found["batch"]
    peak = memory.text(found["memory"]["total_bytes"])
    table = [*sizes, ("together", peak, f"peak for a batch of {batch['rows']} × {batch['tokens']} tokens")]
    if found["calibration"]:
        table.append(("expected", memory.text(found["memory"]["expected_bytes"]), found["calibration"]))
    table.append(("available", memory.text(found["available_bytes"]), f"nine tenths of what is free now on {found['device']}"))
    table.append(("steps", str(found["steps"] or "unknown"), found["step_source"]))
    table.append(("a step", duration(found["step_seconds"]), found["time_source"] or "not known: --probe times one layer and the head"))
    table.append(("training", duration(found["total_seconds"]), "steps × a step"))
    table.append(("path", found["path"]["name"], found["path"]["reason"]))
    table.append(("checkpointing", "on" if found["checkpointing"]["on"] else "off", found["checkpointing"]["reason"]))
    return table


def duration(seconds: float | None) -> str:
    """For people: 0.4 s, 12 min, 3.5 h."""
    if seconds is None:
        return "unknown"
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def read_model_config(config: Config) -> Any:
    """The model's transformers configuration, from its folder or the Hub.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(config.model_path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the configuration of {config.model_id!r} cannot be read: {first_line(error)}",
            where="parameter model_id",
            fix="a folder with config.json, or a Hub id that this machine can reach",
        ) from error


def _weights_are_here(config: Config) -> bool:
    folder = Path(config.model_path)
    return folder.is_dir() and any(folder.glob("*.safetensors"))


def _known_lengths(config: Config) -> list[int] | None:
    """The rows' lengths when notebook 02 has run in this run directory."""
    if not os.path.isdir(os.path.expanduser(config.out_dir)) or not RunDir(config.out_dir).has("tokens"):
        return None
    from mac_lora_helpers import data

    _, tokens = data.load_tokens(RunDir(config.out_dir))
    return [len(ids) for ids in tokens["train"].with_format("arrow")["input_ids"]]
