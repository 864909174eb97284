"""The adapter on disk: PEFT's files and the tokenizer, whole or not at all, without a path of this machine."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir, adapter_digest
from mac_lora_helpers.config import Config
from mac_lora_helpers.model import base_weights
from mac_lora_helpers.training import curve

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def write_adapter(model: Any, folder: Path, model_id: str) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        model: the ``PeftModel``.
        folder: exists.
        model_id: the base as the user named it; PEFT would write the folder that it was loaded from.
    """
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; notebook 05 writes a real one
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["base_model_name_or_path"] = model_id
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_adapter(trainer: Any, run: RunDir, config: Config) -> Path:
    """Writes ``adapter/`` and ``train_config.json``.

    The tokenizer and its chat template lie beside the weights (a few MB), so that the adapter can be used, pushed and
    converted with the template that it was trained with.

    Returns:
        The adapter's folder.
    """
    with run.writing("saving the adapter"):
        with run.folder("adapter") as folder:
            write_adapter(trainer.model, folder, config.model_id)
            trainer.processing_class.save_pretrained(folder)
        run.write_json("train_config", train_config(trainer, run, config))
    return run.path("adapter")


def train_config(trainer: Any, run: RunDir, config: Config) -> dict[str, Any]:
    """Everything that this training was: parameters as asked; data, device, dtype, checkpointing, LoRA as resolved; versions."""
    lora = trainer.model.peft_config["default"]
    return {
        "config": config.model_dump(),
        "data_fingerprint": trainer.identity["data_fingerprint"],
        "adapter_digest": adapter_digest(run.path("adapter")),
        "base": base_weights(config),
        "device": trainer.args.device.type,
        "dtype": str(trainer.model.get_base_model().dtype).removeprefix("torch."),
        "gradient_checkpointing": bool(trainer.args.gradient_checkpointing),
        "lora": {
            "r": lora.r,
            "alpha": lora.lora_alpha,
            "dropout": lora.lora_dropout,
            "rslora": lora.use_rslora,
            "dora": lora.use_dora,
            "targets": sorted(lora.target_modules),
            "layers": lora.layers_to_transform,
            "modules": sum(1 for name, _ in trainer.model.named_parameters() if "lora_B." in name),
            "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        },
        "steps": trainer.state.global_step,
        "best_step": best_step(trainer),
        "versions": versions(),
    }


def best_step(trainer: Any) -> int | None:
    """The step whose adapter is saved because its validation loss was lowest; None where the last step's is."""
    point = curve.lowest(trainer.run_log.rows)
    return point[0] if trainer.curve.keep_best and point else None


def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide the numbers."""
    return {name: version(name) for name in PACKAGES}
