"""``mac-lora estimate``: what would this training take here, and what would take less? From the configuration alone."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.training import memory
from mac_lora_helpers.training.forecast import forecast, read_model_config


def estimate(config: Config) -> dict[str, Any]:
    """Predicts memory and steps; loads no weights.

    Returns:
        ``model_id device dtype batch{rows,tokens} parameters{base,adapter,layers} path{name,reason} checkpointing{on,reason}
        memory{parts,total_bytes,reason} available_bytes machine fits steps step_source where{where,reasons} verdict advice``.
        ``total_bytes`` and ``fits`` are None where the model cannot be counted (``reason`` says why), ``steps`` when neither
        ``max_steps`` nor prepared data tell it.

    Raises:
        InputError: no such model configuration.
    """
    from mac_lora_helpers import environment

    device = environment.choose_device(config)
    asked = config.model_copy(update={"dtype": environment.choose_dtype(config, device).name})
    lengths = _known_lengths(config)
    found = forecast(asked, read_model_config(config), lengths, device.name)
    steps, source = _steps(asked, lengths)
    return {
        "model_id": config.model_id,
        "device": found.device,
        "dtype": found.dtype,
        "batch": {"rows": found.shape[0], "tokens": found.shape[1]},
        "parameters": found.parameters,
        "path": {"name": found.path, "reason": found.path_reason},
        "checkpointing": {"on": found.gradient_checkpointing, "reason": found.checkpointing_reason},
        "memory": {"parts": found.parts, "total_bytes": found.total_bytes, "reason": found.reason},
        "available_bytes": found.available_bytes,
        "machine": _machine(device.name),
        "fits": found.fits,
        "steps": steps,
        "step_source": source,
        "where": environment.check_environment(asked).verdict.to_dict(),
        "verdict": {True: "fits", False: "does not fit", None: "not counted"}[found.fits],
        "advice": found.advice,
        "table": [
            *found.rows(),
            ("available", memory.text(found.available_bytes), f"nine tenths of what is free now on {device.name}"),
            ("steps", str(steps or "unknown"), source),
            ("path", found.path, found.path_reason),
            ("checkpointing", "on" if found.gradient_checkpointing else "off", found.checkpointing_reason),
        ],
    }


def _steps(config: Config, lengths: Sequence[int] | None) -> tuple[int | None, str]:
    """Optimizer steps and what tells them; None while neither ``max_steps`` nor prepared data do."""
    if config.max_steps > 0:
        return config.max_steps, "max_steps"
    if lengths is None:
        return None, "unknown until 02_data_formatting.ipynb has run"
    per_epoch = math.ceil(len(lengths) / config.effective_batch_size)
    return math.ceil(config.num_train_epochs * per_epoch), f"{len(lengths)} rows, {config.num_train_epochs:g} epochs"


def _machine(device: str) -> dict[str, int | None]:
    """This machine's memory, what is free of it, and on MPS what Metal recommends."""
    import psutil

    whole = psutil.virtual_memory()
    return {"memory_bytes": int(whole.total), "free_bytes": int(whole.available), "recommended_bytes": memory.recommended(device)}


def _known_lengths(config: Config) -> list[int] | None:
    """The rows' lengths when notebook 02 has run in this run directory."""
    if not os.path.isdir(os.path.expanduser(config.out_dir)) or not RunDir(config.out_dir).has("tokens"):
        return None
    from mac_lora_helpers import data

    _, tokens = data.load_tokens(RunDir(config.out_dir))
    return [len(ids) for ids in tokens["train"].with_format("arrow")["input_ids"]]
