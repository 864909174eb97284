"""Notebook 03 without a notebook: one call, in one process or in each of several that ``accelerate launch`` started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mac_lora_helpers import data
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.training import processes
from mac_lora_helpers.training.audit import finish
from mac_lora_helpers.training.build import build_trainer
from mac_lora_helpers.training.recipe import load_model, lora_config, place, sft_config
from mac_lora_helpers.training.resume import last_checkpoint
from mac_lora_helpers.training.saving import save_adapter


def run_training(
    run: RunDir, config: Config, on_log: Callable[[list[dict[str, Any]]], None] | None = None, made_by: str = "02_data_formatting.ipynb"
) -> dict[str, Any] | None:
    """Trains on the run directory's tokens and leaves what notebook 03 leaves, the figure excepted.

    Several processes do one training together: the rows of an optimizer step are dealt out over them, so the same config
    gives the same losses. The first one alone writes and audits; the others wait for it.

    Args:
        run: with ``data/`` of notebook 02. config: the resolved parameters; the data's are taken from ``data/manifest.json``.
        on_log: called in the first process with all log rows so far after each new one.
        made_by: what made the data, for the message when a parameter contradicts them.

    Returns:
        ``train_metrics.json``; None in a process that is not the first.

    Raises:
        MissingArtifact: notebook 02 has not run. InputError: parameters that do not fit the data, the model or the number
            of processes. TrainingStopped, TrainingInterrupted, CheckFailed: as in training and its audit.
    """
    with processes.one_voice():
        manifest, tokens = data.load_tokens(run)
        config = config.inherit(manifest["config"], "data", made_by=made_by)
        device, dtype = place(run, config)
        model = load_model(config, device, dtype)
        args, lora = sft_config(config, run, device, dtype), lora_config(config, model)
        print(f"training on {device.name} ({device.reason}) in {dtype.name}, {_processes()}", flush=True)
        trainer = build_trainer(model, data.load_tokenizer(config), tokens, lora, args, run, config, on_log=on_log or _silent)
        checkpoint = last_checkpoint(run, config)
        processes.wait()  # every process has looked at the checkpoints before the first one changes them
        result = trainer.train(resume_from_checkpoint=checkpoint)
        try:
            return _write(trainer, result, run, config) if processes.is_main() else None
        finally:
            processes.wait()
            processes.leave()


def _write(trainer: Any, result: Any, run: RunDir, config: Config) -> dict[str, Any]:
    save_adapter(trainer, run, config)
    return finish(trainer, result, run, config)


def _processes() -> str:
    count = processes.count()
    return "one process" if count == 1 else f"{count} processes"


def _silent(_: list[dict[str, Any]]) -> None:
    """Without a listener ``build_trainer`` would show a notebook's progress."""
