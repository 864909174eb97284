"""``mac-lora estimate``: would this training fit here, and how many steps is it? From the configuration alone."""

from __future__ import annotations

import math
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.training import memory
from mac_lora_helpers.training.forecast import predict_memory
from mac_lora_helpers.training.recipe import first_line
from mac_lora_helpers.training.savings import turn_down

#: Share of the free memory that a training may plan for; the rest is for the system and what else runs.
SHARE = 0.9


def estimate(config: Config) -> dict[str, Any]:
    """Predicts memory and steps; loads no weights.

    Returns:
        ``model_id device dtype batch{rows,tokens} parameters{base,adapter} memory{parts,total_bytes} available_bytes
        fits steps step_source verdict advice``. ``steps`` is None when neither ``max_steps`` nor prepared data tell it.

    Raises:
        InputError: no such model configuration, or a LoRA target that it does not have.
    """
    from mac_lora_helpers import environment

    device = environment.choose_device(config)
    dtype = environment.choose_dtype(config, device)
    asked = config.model_copy(update={"dtype": dtype.name})
    model_config, lengths = read_model_config(config), _known_lengths(config)
    forecast = predict_memory(asked, model_config, lengths, device.name)
    available = int(memory.available(device.name) * SHARE)
    fits = forecast.fits(available)
    steps, source = _steps(config, lengths)
    return {
        "model_id": config.model_id,
        "device": device.name,
        "dtype": dtype.name,
        "batch": {"rows": forecast.shape[0], "tokens": forecast.shape[1]},
        "parameters": forecast.parameters,
        "memory": {"parts": forecast.parts, "total_bytes": forecast.total_bytes},
        "available_bytes": available,
        "fits": fits,
        "steps": steps,
        "step_source": source,
        "verdict": "fits" if fits else "does not fit",
        "advice": "" if fits else turn_down(asked, model_config, forecast, available, device.name),
    }


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


def _known_lengths(config: Config) -> list[int] | None:
    """The rows' lengths when notebook 02 has run in this run directory."""
    import os

    if not os.path.isdir(os.path.expanduser(config.out_dir)) or not RunDir(config.out_dir).has("tokens"):
        return None
    from mac_lora_helpers import data

    _, tokens = data.load_tokens(RunDir(config.out_dir))
    return [len(ids) for ids in tokens["train"].with_format("arrow")["input_ids"]]


def _steps(config: Config, lengths: list[int] | None) -> tuple[int | None, str]:
    if config.max_steps > 0:
        return config.max_steps, "max_steps"
    if lengths is None:
        return None, "unknown until 02_data_formatting.ipynb has run"
    batches = math.ceil(len(lengths) / config.per_device_train_batch_size)
    per_epoch = max(math.ceil(batches / config.gradient_accumulation_steps), 1)
    return math.ceil(config.num_train_epochs * per_epoch), f"{len(lengths)} rows, {config.num_train_epochs:g} epochs"
