"""Roughly how much memory and disk a model and recipe take; good enough for a verdict, not for a forecast."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mac_lora_helpers.config import Config
from mac_lora_helpers.model import Base

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Bytes a weight in GGUF files; a block of Q4_0 holds 32 weights in 18 bytes, and so on.
GGUF_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 34 / 32, "Q4_0": 18 / 32, "Q4_1": 20 / 32, "Q5_0": 22 / 32, "Q5_1": 24 / 32}
#: Python, torch and the libraries themselves.
PROCESS_BYTES = 1 << 30


@dataclass(frozen=True)
class Shape:
    """Width, layers, vocabulary and MLP width."""

    hidden: int
    layers: int
    vocab: int
    intermediate: int


#: What families call width, layers, vocabulary and MLP width in their ``config.json``.
_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocab": ("vocab_size",),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
}


def shape_for(model: Base) -> Shape:
    """The model's shape; guessed from its size when there is no config here: 12·layers·width² parameters and a 150k vocabulary."""
    text = model.settings.get("text_config") if isinstance(model.settings.get("text_config"), dict) else model.settings
    found = {key: next((text[name] for name in names if isinstance(text.get(name), int)), 0) for key, names in _NAMES.items()}
    if found["hidden"] and found["layers"] and found["vocab"]:
        return Shape(**{**found, "intermediate": found["intermediate"] or 4 * found["hidden"]})
    layers = 24 if (model.parameters or 0) < 1e9 else 32
    hidden = round(math.sqrt((model.parameters or 0) / (12 * layers)))
    return Shape(hidden, layers, 150_000, 4 * hidden)


def adapter_parameters(model: Base, config: Config) -> int:
    """LoRA parameters: rank × (inputs + outputs) for four square projections a layer, and three in the MLP when all are adapted."""
    shape = shape_for(model)
    attention = 4 * 2 * shape.hidden
    mlp = 3 * (shape.hidden + shape.intermediate)
    wide = config.lora_targets == "all-linear" or "gate_proj" in config.lora_targets or "up_proj" in config.lora_targets
    return config.lora_r * shape.layers * (attention + (mlp if wide else 0))


def memory_needed(model: Base, config: Config, dtype: str) -> float | None:
    """Bytes that training takes at its peak, roughly; ``None`` if the model's size is unknown.

    Weights, LoRA with gradients and AdamW's two moments in float32, activations (one residual stream a layer with
    checkpointing, about 16 widths plus the MLP a layer without), logits three times in float32, and the process.
    """
    if model.parameters is None:
        return None
    shape, width = shape_for(model), BYTES[dtype]
    tokens = config.per_device_train_batch_size * config.max_seq_length
    layer = tokens * (16 * shape.hidden + 3 * shape.intermediate) * width
    activations = shape.layers * tokens * shape.hidden * width + layer if config.gradient_checkpointing else shape.layers * layer
    logits = 3 * tokens * shape.vocab * 4
    return model.parameters * width + 16 * adapter_parameters(model, config) + activations + logits + PROCESS_BYTES


def run_disk_needed(model: Base, config: Config) -> float | None:
    """Bytes for checkpoints (adapter and AdamW state), the merged model in float32 and the GGUF files."""
    if model.parameters is None:
        return None
    checkpoint = 12 * adapter_parameters(model, config)
    types = [name.strip().upper() for name in config.gguf_types.split(",") if name.strip()]
    return (config.save_total_limit + 1) * checkpoint + model.parameters * (4 + sum(GGUF_BYTES.get(name, 2) for name in types))


def download_needed(model: Base) -> float | None:
    """Bytes to download: weights lie on the Hub in two bytes each, as a rule; nothing for a model that is here."""
    if model.local:
        return 0
    return None if model.parameters is None else 2 * model.parameters
