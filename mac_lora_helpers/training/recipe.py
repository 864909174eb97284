"""The reference recipe as the libraries want it today: model, ``LoraConfig``, ``SFTConfig``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.compat import known_warnings
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.language import language_part
from mac_lora_helpers.model import require_base
from mac_lora_helpers.training import memory, processes
from mac_lora_helpers.training.targets import find_targets, linear_modules, top_layers

#: Parameters below which a second CPU thread gains nothing.
_TINY = 20_000_000


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


def load_model(config: Config, device: Any, dtype: Any) -> Any:
    """The base model in ``dtype`` on ``device``, key-value cache off (training never reads it).

    Raises:
        InputError: the folder or the Hub has no such model, or it needs remote code.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, set_seed

    processes.choose_gpu(device.name)
    memory.settle()
    baseline = memory.used(device.name) - memory.library_bytes()
    set_seed(config.seed)
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                require_base(config),
                dtype=getattr(torch, dtype.name),
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                **language_part(config),
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"the model {config.model_id!r} cannot be loaded: {first_line(error)}",
                where="parameter model_id",
                fix="a folder with config.json and *.safetensors weights, or a Hub id within reach (`hf auth login` for a gated one)",
            ) from error
    model.to(device.name)
    settle_threads(model.num_parameters(), device.name)
    model.config.use_cache = False
    model.memory_baseline = baseline
    return model


def settle_threads(parameters: int, device: str) -> None:
    """One CPU thread for a tiny model: its matrix products are too small to share, and threads that wait for each
    other spin, which beside any other work costs tenfold. OMP_NUM_THREADS decides where it is set."""
    import torch

    if device == "cpu" and parameters < _TINY and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def lora_config(config: Config, model: Any) -> Any:
    """``peft.LoraConfig`` with targets that exist in this model, in every layer or in the ``lora_layers`` top ones.

    Raises:
        InputError: ``lora_targets`` names a module that the model does not have, or ``lora_layers`` more layers than it has.
    """
    with memory.importing():
        from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    targets = find_targets(model, config.lora_targets)
    indices, pattern = top_layers(model, config.lora_layers, targets)
    conv1d = any(isinstance(module, Conv1D) for module in linear_modules(model).values())
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=targets,
        layers_to_transform=indices,
        layers_pattern=pattern,
        fan_in_fan_out=conv1d,
    )


#: Settings of ``SFTConfig`` that are the same for every training, and stated because their defaults are not the
#: recipe's or changed between versions. The weights are in their dtype already, so mixed precision stays off; the data
#: come as tokens, so nothing is tokenized, cut, packed or given an end-of-sequence token.
FIXED: dict[str, Any] = {
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
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
    "eval_strategy": "no",
    "report_to": "none",
    "push_to_hub": False,
    "disable_tqdm": True,
}


def sft_config(config: Config, run: RunDir, device: Any, dtype: Any) -> Any:
    """``trl.SFTConfig`` for this run: the parameters, and ``FIXED``.

    With several processes each takes its share of ``gradient_accumulation_steps``: an optimizer step sees the same rows.

    Raises:
        InputError: ``gradient_accumulation_steps`` cannot be dealt out evenly.
        CheckFailed: transformers would train on another device than the chosen one.
    """
    with memory.importing():
        from mac_lora_helpers.training import sft  # noqa: F401
    from trl import SFTConfig

    limit = {"max_steps": config.max_steps} if config.max_steps > 0 else {"num_train_epochs": config.num_train_epochs}
    args = SFTConfig(
        output_dir=str(run.path("checkpoints")),
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=_dealt_out(config),
        learning_rate=config.learning_rate,
        max_length=config.max_seq_length,
        activation_checkpointing=config.gradient_checkpointing is not False,  # auto: settled with the trainer, by what fits
        use_cpu=device.name == "cpu",
        torch_empty_cache_steps=10 if device.name == "mps" else None,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=config.logging_steps,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        **limit,
        **FIXED,
    )
    if args.device.type != device.name:
        raise CheckFailed(f"the trainer would use {args.device.type}, not {device.name}", where="parameter device")
    args._n_gpu = min(args.n_gpu, 1)  # one process, one GPU: transformers would split batches over all it sees (DataParallel)
    return args


def _dealt_out(config: Config) -> int:
    """Forward passes of this process in an optimizer step."""
    count, steps = processes.count(), config.gradient_accumulation_steps
    if steps % count:
        raise InputError(
            f"gradient_accumulation_steps={steps} cannot be dealt out evenly over {count} processes",
            where="parameter gradient_accumulation_steps",
            fix=f"a multiple of {count}, or another number of processes",
        )
    return steps // count


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


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
