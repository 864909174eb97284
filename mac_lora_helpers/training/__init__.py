"""Notebook 03: LoRA fine-tuning with TRL's ``SFTTrainer``, watched, resumable and audited.

The trainer is TRL's; around it stand the choice of LoRA targets, the memory forecast, the guards, checkpoints
that are whole or not there, the log, the validation curve and the audit. Importing this package loads no torch.
"""

from typing import Any

from mac_lora_helpers.training.audit import examine
from mac_lora_helpers.training.cells import run_cells, run_training
from mac_lora_helpers.training.forecast import Forecast, estimate, forecast
from mac_lora_helpers.training.recipe import FIXED, from_disk, layers, load_model, loading, place, running
from mac_lora_helpers.training.resume import last_checkpoint
from mac_lora_helpers.training.targets import candidates, find_targets

__all__ = [
    "FIXED",
    "Forecast",
    "LoraTrainer",
    "candidates",
    "estimate",
    "examine",
    "find_targets",
    "forecast",
    "from_disk",
    "last_checkpoint",
    "layers",
    "load_model",
    "loading",
    "place",
    "run_cells",
    "run_training",
    "running",
]


def __getattr__(name: str) -> Any:
    if name == "LoraTrainer":
        from mac_lora_helpers.training.sft import LoraTrainer

        return LoraTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
