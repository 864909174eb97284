"""Puts model, tokens, adapter and settings together into the trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mac_lora_helpers import data
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.training import batches, fast, memory, processes, resume
from mac_lora_helpers.training.forecast import Forecast, forecast_for, turn_down
from mac_lora_helpers.training.log import RunLog


def build_trainer(
    model: Any,
    tokenizer: Any,
    tokens: dict[str, Any],
    lora: Any,
    args: Any,
    run: RunDir,
    config: Config,
    on_log: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Any:
    """TRL's ``SFTTrainer`` over the tokens of notebook 02, with log, guards and whole checkpoints.

    Args:
        model, lora, args: from ``load_model``, ``lora_config`` and ``sft_config``.
        tokenizer: from ``data.load_tokenizer``; pads on the right.
        tokens: ``{"train": Dataset, …}`` with ``input_ids`` and ``labels``.
        on_log: called with all log rows so far after each new one, for a live figure. Without it a notebook shows
            transformers' own progress table.

    Raises:
        CheckFailed: rows that cannot be trained on as they stand, or another effective length than asked for.
        MissingArtifact: no tokens or no manifest.
        InputError: ``track`` names a package that is not installed.
    """
    from transformers.trainer_callback import PrinterCallback

    from mac_lora_helpers.training.sft import LoraTrainer

    known = _check(tokens, args, config)
    grouped = data.batch_sampler(batches.lengths_of(tokens["train"]), args.per_device_train_batch_size, config.seed)
    rows = batches.dealt_out(tokens["train"], args.per_device_train_batch_size, processes.count())
    forecast = forecast_for(config, model, batches.lengths_of(tokens["train"]), args.device.type)
    _settle_checkpointing(args, config, forecast)
    trainer = LoraTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora,
        config=config,
        identity=resume.identity(run, config),
        run_log=RunLog(run, config.logging_steps, on_log, quietly=not processes.is_main()),
        explain_memory=lambda trainer: turn_down(config, trainer),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.order = batches.Order(grouped, args.per_device_train_batch_size, processes.count())
    trainer.data_collator = batches.WatchedCollator(batches.collator_for(tokenizer, grouped, args.device.type), known)
    trainer.forecast, trainer.tokens, trainer.fast = forecast, tokens, None
    if config.fast_path != "off":
        _take_fast_path(trainer, config)
        if not trainer.fast.applied and forecast.path == "fast":
            _expect_plain(trainer, config)
    if config.track != "off" and processes.is_main():
        from mac_lora_helpers.training.track import Tracker

        trainer.run_log.tracker = Tracker(run, config, trainer.identity)
    if on_log is None:
        _notebook_progress(trainer)
    return trainer


def _check(tokens: dict[str, Any], args: Any, config: Config) -> set[bytes]:
    if args.max_length != config.max_seq_length:
        raise CheckFailed(f"the trainer would use max_length={args.max_length}, not max_seq_length={config.max_seq_length}")
    return batches.check_rows(tokens.get("train"), config)


def _settle_checkpointing(args: Any, config: Config, forecast: Forecast) -> None:
    """With ``gradient_checkpointing`` auto: on if the training would not fit without."""
    if config.gradient_checkpointing != "auto":
        return
    args.activation_checkpointing = args.gradient_checkpointing = forecast.gradient_checkpointing
    print(f"gradient checkpointing {'on' if forecast.gradient_checkpointing else 'off'}: {forecast.checkpointing_reason}")


def _take_fast_path(trainer: Any, config: Config) -> None:
    """Says whether it is on and why: a path that silently is not there would be taken for a slow machine."""
    trainer.fast = fast.make_fast(trainer, recompute="mlp" if config.fast_path == "lean" else "auto")
    memory.settle()  # what the comparison left behind
    print(f"fast path {'on' if trainer.fast.applied else 'off'}: {trainer.fast.reason}")


def _expect_plain(trainer: Any, config: Config) -> None:
    """The fast path was refused: the plain path needs more memory, so its own forecast decides on checkpointing."""
    args, was_on = trainer.args, trainer.args.gradient_checkpointing
    base, lengths = trainer.model.get_base_model(), batches.lengths_of(trainer.tokens["train"])
    trainer.forecast = forecast_for(config.model_copy(update={"fast_path": "off"}), base, lengths, args.device.type)
    _settle_checkpointing(args, config, trainer.forecast)
    if args.gradient_checkpointing and not was_on:
        trainer.model.enable_input_require_grads()  # what TRL does where it knows at the start


def _notebook_progress(trainer: Any) -> None:
    from transformers.utils import is_in_notebook

    if is_in_notebook():
        from transformers.utils.notebook import NotebookProgressCallback

        trainer.add_callback(NotebookProgressCallback)
