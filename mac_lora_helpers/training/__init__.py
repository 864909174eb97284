"""Notebook 03: LoRA fine-tuning with TRL's ``SFTTrainer``, watched, resumable and audited.

The trainer is TRL's; around it stand the choice of LoRA targets, the memory forecast, the guards, checkpoints
that are whole or not there, the log and the audit. Importing this package loads no torch.
"""

from mac_lora_helpers.training.audit import finish
from mac_lora_helpers.training.base import base_weights, check_base
from mac_lora_helpers.training.build import build_trainer
from mac_lora_helpers.training.forecast import Forecast, estimate, forecast
from mac_lora_helpers.training.recipe import load_model, lora_config, place, sft_config
from mac_lora_helpers.training.resume import last_checkpoint
from mac_lora_helpers.training.run import run_training
from mac_lora_helpers.training.saving import save_adapter
from mac_lora_helpers.training.targets import candidates, find_targets

__all__ = [
    "Forecast",
    "base_weights",
    "build_trainer",
    "candidates",
    "check_base",
    "estimate",
    "find_targets",
    "finish",
    "forecast",
    "last_checkpoint",
    "load_model",
    "lora_config",
    "place",
    "run_training",
    "save_adapter",
    "sft_config",
]
