"""The reference recipe as the libraries want it today: what notebook 03's cells take besides what they spell out."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any

from mac_lora_helpers.adapter import Adapter
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.compat import known_warnings
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError, first_line
from mac_lora_helpers.language import language_part
from mac_lora_helpers.model import require_base
from mac_lora_helpers.training import curve, memory, processes
from mac_lora_helpers.training.targets import find_targets, linear_modules, top_layers

#: Parameters below which a second CPU thread gains nothing.
_TINY = 20_000_000

#: Settings of ``SFTConfig`` that are the same for every training, and stated because their defaults are not the
#: recipe's or changed between versions. The weights are in their dtype already, so mixed precision stays off; the data
#: come as tokens, so nothing is tokenized, cut, packed or given an end-of-sequence token.
FIXED: dict[str, Any] = {
    "optim": "adamw_torch",
    "max_grad_norm": 1.0,
    "router_aux_loss_coef": 0.0,  # routers of experts stay as they are: nothing to balance, and the loss stays the answers' own
    "fp16": False,
    "bf16": False,
    "packing": False,
    "padding_free": False,
    "shuffle_dataset": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "dataloader_num_workers": 0,  # workers deadlock on macOS with Python 3.12
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,  # every adapter takes part in every step
    "logging_first_step": True,
    "logging_nan_inf_filter": False,  # it would hide a NaN in the logged mean
    "save_strategy": "steps",
    "push_to_hub": False,
    "disable_tqdm": True,
}


def place(run: RunDir, config: Config) -> tuple[Any, Any]:
    """Device and dtype for this run, chosen on this machine; a choice of notebook 01 that no longer holds is named.

    Returns:
        Two ``environment.Choice``: ``.name`` and ``.reason``.
    """
    from mac_lora_helpers import environment

    device = environment.choose_device(config)
    dtype = environment.choose_dtype(config, device)
    saved = run.read_json("environment") if run.has("environment") else {}
    return _compare(device, saved.get("device")), _compare(dtype, saved.get("dtype"))


def _compare(now: Any, saved: dict[str, str] | None) -> Any:
    if not saved or saved.get("name") == now.name:
        return now
    note = f"{now.reason}; environment.json says {saved.get('name')}: it was made on another machine or with other settings"
    return dataclasses.replace(now, reason=note)


@contextlib.contextmanager
def loading(config: Config, device: Any) -> Iterator[None]:
    """Around ``from_pretrained``: the seed, the GPU of this process, a quiet library, and an error that says what to do.

    Raises:
        InputError: the folder or the Hub has no such model, or it needs remote code.
    """
    import trl.trainer.sft_trainer  # noqa: F401 - loaded now: libraries are no part of what a training needs
    from safetensors import SafetensorError
    from transformers import set_seed

    require_base(config)
    processes.choose_gpu(device.name)
    memory.settle()
    memory.BASELINE[device.name] = memory.used(device.name)
    set_seed(config.seed)
    try:
        with quiet():
            yield
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"the model {config.model_id!r} cannot be loaded: {first_line(error)}",
            where="parameter model_id",
            fix="a folder with config.json and *.safetensors weights, or a Hub id within reach (`hf auth login` for a gated one)",
        ) from error


def from_disk(config: Config) -> dict[str, Any]:
    """``from_pretrained``'s settings for the files: no pickles, and of a vision-text checkpoint the language part alone."""
    return {"use_safetensors": True, **language_part(config)}


def load_model(config: Config, device: Any, dtype: Any) -> Any:
    """The base model as notebook 03 loads it, for what comes after the training."""
    import torch
    from transformers import AutoModelForCausalLM

    with loading(config, device):
        model = AutoModelForCausalLM.from_pretrained(
            config.model_path, dtype=getattr(torch, dtype.name), **from_disk(config), trust_remote_code=config.trust_remote_code
        )
    settle_threads(model.num_parameters(), device.name)
    return model.to(device.name)


def with_start(model: Any, run: RunDir, config: Config) -> Any:
    """The model with the adapter of ``start_adapter``, to be trained further as it is: its rank and targets count, not this run's.

    Raises:
        InputError: no such adapter, or not one of this model's.
    """
    from peft import PeftModel

    found = Adapter.find(run, config.model_copy(update={"adapter_dir": config.start_adapter}))
    try:
        model = PeftModel.from_pretrained(model, found.folder, is_trainable=True)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{found.name} is no adapter of this model: {first_line(error)}",
            where="parameter start_adapter",
            fix=f"set model_id to the model that it was made for ({found.base or 'its settings do not say which'})",
        ) from error
    lora = model.peft_config["default"]
    print(f"the training starts from {found.name}: r {lora.r}, alpha {lora.lora_alpha}, {', '.join(sorted(lora.target_modules))}")
    return model


def settle_threads(parameters: int, device: str) -> None:
    """One CPU thread for a tiny model: its matrix products are too small to share, and threads that wait for each
    other spin, which beside any other work costs tenfold. OMP_NUM_THREADS decides where it is set."""
    import torch

    if device == "cpu" and parameters < _TINY and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def layers(model: Any, config: Config) -> dict[str, Any]:
    """``LoraConfig``'s settings for ``lora_layers``: adapters in the top layers alone; and for weights stored the other way round.

    Raises:
        InputError: ``lora_layers`` is more than the model has, or its layers are not recognized.
    """
    from transformers.pytorch_utils import Conv1D

    indices, pattern = top_layers(model, config.lora_layers, find_targets(model, config.lora_targets))
    conv1d = any(isinstance(module, Conv1D) for module in linear_modules(model).values())
    return {"layers_to_transform": indices, "layers_pattern": pattern, "fan_in_fan_out": conv1d}


def total_steps(config: Config, rows: int) -> int:
    """Optimizer steps of a training on so many rows."""
    return config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * math.ceil(rows / config.effective_batch_size))


def running(config: Config, device: Any, tokens: dict[str, Any]) -> dict[str, Any]:
    """``SFTConfig``'s settings that change nothing in the numbers: where it runs, how often it looks, logs and saves.

    Raises:
        InputError: the rows of a step cannot be dealt out evenly over the processes, or ``track`` names a package that is missing.
    """
    count = processes.count()
    if config.effective_batch_size % count:
        raise InputError(
            f"the {config.effective_batch_size} rows of an optimizer step cannot be dealt out evenly over {count} processes",
            where="parameter gradient_accumulation_steps",
            fix=f"a multiple of {count}, or another number of processes",
        )
    every = curve.every(config, total_steps(config, len(tokens["train"])), len(tokens.get("valid") or ()))
    if config.track != "off":
        _require_tracker(config.track)
    return {
        "use_cpu": device.name == "cpu",
        "torch_empty_cache_steps": 10 if device.name == "mps" else None,
        "activation_checkpointing": config.gradient_checkpointing is not False,  # auto: settled with the trainer, by what fits
        "logging_steps": config.logging_steps,
        "eval_strategy": "steps" if every else "no",
        "eval_steps": every or None,
        "save_steps": config.save_steps,
        "save_total_limit": config.save_total_limit,
        "report_to": "none" if config.track == "off" else config.track,
        "project": "mac-lora-helpers",
        "seed": config.seed,
        "data_seed": config.seed,
    }


def _require_tracker(name: str) -> None:
    """The package is here, and the environment does not send its figures away: they stay on this machine."""
    if importlib.util.find_spec(name) is None:
        fix = 'pip install -e ".[track]", or set track=off'
        raise InputError(f"track={name}, but the package {name} is not installed", where="parameter track", fix=fix)
    for variable in [key for key in os.environ if key.startswith(f"{name.upper()}_") and not key.endswith("_DIR")]:
        del os.environ[variable]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress bars and chatter of transformers off inside the block; a notebook step has one output."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with known_warnings():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
