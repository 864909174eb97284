"""The PEFT adapter as plain matrices: ``W + scale · B · A`` per module, with every scale resolved."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import portable

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True)
class LoraUpdate:
    """One module's update.

    Args:
        module: name in the base model, such as ``model.layers.0.self_attn.q_proj``.
        a: float32 ``(r, in)``. b: float32 ``(out, r)``.
        scale: factor of ``b @ a``: alpha / r, or alpha / √r when rank-stabilised (arXiv:2312.03732).
    """

    module: str
    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self) -> np.ndarray:
        """The update of the weight, float32 ``(out, in)``."""
        return np.float32(self.scale) * (self.b @ self.a)


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter folder, read.

    Args:
        settings: ``adapter_config.json``.
        updates: one per adapted linear module.
        other: names of stored tensors that are not LoRA matrices of a linear module
            (DoRA magnitudes, embedding LoRA, fully trained modules, biases).
    """

    settings: dict[str, Any]
    updates: dict[str, LoraUpdate]
    other: list[str] = field(default_factory=list)

    def require_plain(self, target: str) -> Adapter:
        """This adapter, if ``target`` can hold all of it.

        Raises:
            InputError: it is DoRA or holds more than LoRA matrices of linear modules.
        """
        if self.settings.get("use_dora"):
            what = f"a DoRA adapter cannot be written as {target}: its magnitudes are no low-rank update"
        elif self.other:
            what = f"{target} holds LoRA matrices of linear layers only; this adapter also has {', '.join(self.other[:3])}"
        else:
            return self
        raise InputError(what, where="adapter", fix="export the merged model instead; it holds everything that was trained")


def adapter_folder(run: RunDir, config: Config) -> Path:
    """The folder of the adapter that ``adapter_dir`` names, else of the run's own; found sound. See ``adapter.Adapter.find``."""
    from mac_lora_helpers.adapter import Adapter as Found

    return Found.find(run, config).folder


def trained_config(run: RunDir, config: Config) -> Config:
    """The config with what the data and training notebooks decided, read from ``train_config.json``."""
    return config.inherit(run.config("train_config"), "data", "training", made_by="03_lora_training.ipynb")


def read_adapter(folder: Path) -> Adapter:
    """Reads a PEFT LoRA folder (safetensors).

    Raises:
        InputError: not a LoRA adapter, no safetensors file, or halves of a pair missing.
    """
    from safetensors.torch import load_file

    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if settings.get("peft_type") != "LORA":
        raise InputError(f"the adapter is {settings.get('peft_type')}, not LORA", where=SETTINGS, fix="export works on LoRA adapters")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{WEIGHTS} is missing", where=portable(str(folder)), fix="save the adapter with safe_serialization=True")
    sides: dict[str, dict[str, np.ndarray]] = {}
    other = []
    for name, tensor in load_file(folder / WEIGHTS).items():
        match = _KEY.match(name)
        if name.endswith(".base_layer.weight") or (name.endswith(".base_layer.bias") and settings.get("bias", "none") == "none"):
            continue  # PEFT's copy of a frozen head or embedding, unchanged
        if match is None or tensor.ndim != 2:
            other.append(name)
        else:
            sides.setdefault(match["module"], {})[match["side"]] = tensor.float().numpy()
    updates = {module: _update(module, pair, settings) for module, pair in sides.items()}
    return Adapter(settings, updates, other)


def _update(module: str, pair: dict[str, np.ndarray], settings: dict[str, Any]) -> LoraUpdate:
    if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        raise InputError(f"lora_A and lora_B of {module} do not make a pair", where=WEIGHTS, fix="train or save the adapter again")
    return LoraUpdate(module, pair["A"], pair["B"], scale_of(module, pair["A"].shape[0], settings))


def scale_of(module: str, rank: int, settings: dict[str, Any]) -> float:
    """alpha / r or, rank-stabilised, alpha / √r; ``alpha_pattern`` as PEFT matches it (full name or its end)."""
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
