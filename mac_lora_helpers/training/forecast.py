"""Peak memory of a training, predicted by parts from the model's configuration alone.

peak = weights + adapter + gradients + optimizer + activations + logits + layer + runtime, where

- weights: parameters × bytes of their dtype; counted on the meta device, tied weights once.
- adapter, gradients, optimizer: 4, 4 and 8 bytes per adapter parameter (PEFT keeps adapters in float32; AdamW has two
  moments, Loshchilov & Hutter 2019).
- activations: counted, see ``activations``. With checkpointing the input of each decoder layer (Chen et al. 2016).
- logits: TRL computes the loss in tiles of at most 4096 tokens × 32768 vocabulary entries (``trl/kernels/chunked_logprob.py``);
  its backward pass has eight float32 tiles and a mask alive at once on CPU and MPS, one tile on CUDA.
- layer: what the backward pass of one layer needs beyond the logits (they are not alive together): its recomputed
  activations with checkpointing, and the gradients of its widest tensors.
- runtime: libraries that load when training starts, kernels' scratch. Measured on Linux; on MPS an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.training import memory
from mac_lora_helpers.training.activations import SavedBytes, count_saved, decoder_layers, meta_model
from mac_lora_helpers.training.recipe import lora_config
from mac_lora_helpers.training.targets import linear_modules

#: trl 1.16: tokens and vocabulary entries of a tile of the fused head; float32 tiles alive in its backward pass.
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
TILES_ALIVE = 8.25
#: Gradients of a layer's widest tensors alive at once in its backward pass (SwiGLU: product, gate, activation, up).
WIDE_GRADIENTS = 4
RUNTIME_BYTES = {"cpu": 150_000_000, "mps": 300_000_000, "cuda": 100_000_000}

MEANINGS = {
    "weights": "the frozen base model",
    "adapter": "the LoRA matrices, float32",
    "gradients": "of the LoRA matrices, float32",
    "optimizer": "AdamW's two moments, float32",
    "activations": "kept from the forward pass for the backward pass",
    "logits": "the loss's tiles over the vocabulary",
    "layer": "one layer's backward pass, beyond the logits",
    "runtime": "libraries and scratch (an allowance)",
}


@dataclass(frozen=True)
class MemoryForecast:
    """Predicted peak memory of a training, above what the process used before the model was loaded.

    Attributes:
        parts: bytes by part, in the order of ``MEANINGS``; their sum is the peak.
        shape: rows and tokens of the largest batch.
        parameters: of the base and of the adapter.
    """

    parts: dict[str, int]
    shape: tuple[int, int]
    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Predicted peak in bytes."""
        return sum(self.parts.values())

    def fits(self, available: int) -> bool:
        """Whether the peak stays within ``available`` bytes."""
        return self.total_bytes <= available

    def rows(self) -> list[tuple[str, str, str]]:
        """(part, size, meaning) for a table, the sum last."""
        table = [(name, memory.text(size), MEANINGS[name]) for name, size in self.parts.items()]
        return [*table, ("together", memory.text(self.total_bytes), f"peak for a batch of {self.shape[0]} × {self.shape[1]} tokens")]


def predict_memory(config: Config, model_config: Any, lengths: Any = None, device: str = "cpu") -> MemoryForecast:
    """Predicts the peak from the configuration alone; nothing is loaded.

    Args:
        config: the resolved parameters.
        model_config: a transformers configuration (``model.config`` or ``AutoConfig``).
        lengths: the rows' lengths in tokens, if known: the longest bounds the batch, and so do the number of rows.
        device: cpu, mps or cuda.

    Raises:
        InputError: ``lora_targets`` names a module that the model does not have.
    """
    import torch

    dtype = getattr(torch, config.dtype)
    rows, length = _batch_shape(config, lengths)
    base = meta_model(model_config, dtype)
    lora = lora_config(config, base)
    saved = count_saved(model_config, lora, dtype, rows, length, device)
    count = {"base": sum(p.numel() for p in base.parameters()), "adapter": _adapter_parameters(base, lora.target_modules, lora.r)}
    vocabulary = model_config.get_text_config().vocab_size
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in base.parameters()),
        "adapter": 4 * count["adapter"],
        "gradients": 4 * count["adapter"],
        "optimizer": 8 * count["adapter"],
        **_working_set(config, saved, rows * (length - 1), vocabulary, device),
        "runtime": RUNTIME_BYTES[device],
    }
    return MemoryForecast(parts, (rows, length), {**count, "layers": len(decoder_layers(base))})


def _batch_shape(config: Config, lengths: Any) -> tuple[int, int]:
    known = list(lengths) if lengths is not None else []
    rows = min(config.per_device_train_batch_size, len(known)) if known else config.per_device_train_batch_size
    return rows, max(2, min(max(known, default=config.max_seq_length), config.max_seq_length))


def _adapter_parameters(model: Any, targets: set[str], rank: int) -> int:
    """rank × (inputs + outputs) for every target."""
    total = 0
    for name, module in linear_modules(model).items():
        if any(name == target or name.endswith("." + target) for target in targets):
            total += rank * sum(module.weight.shape)
    return total


def _working_set(config: Config, saved: SavedBytes, tokens: int, vocabulary: int, device: str) -> dict[str, int]:
    tile = min(tokens, TILE_TOKENS) * min(vocabulary, TILE_VOCABULARY) * 4
    logits = int(tile * (1 if device == "cuda" else TILES_ALIVE))
    layer = WIDE_GRADIENTS * saved.widest
    activations = saved.total
    if config.gradient_checkpointing:
        activations = saved.boundary * saved.layers
        layer += saved.layer
    return {"activations": activations, "logits": logits, "layer": max(layer - logits, 0)}


def predict_for(config: Config, model: Any, dataset: Any, device: str) -> MemoryForecast:
    """The forecast for a loaded model and the rows that it will be trained on."""
    dtype = str(model.dtype).removeprefix("torch.")
    lengths = [len(ids) for ids in dataset.select_columns(["input_ids"]).with_format("arrow")["input_ids"]]
    return predict_memory(config.model_copy(update={"dtype": dtype}), model.config, lengths, device)


def longest_that_fits(config: Config, model_config: Any, available: int, device: str, lengths: Any = None) -> int | None:
    """The largest ``max_seq_length`` below the present one (in quarters of it) whose forecast fits, or None."""
    for share in (0.75, 0.5, 0.375, 0.25, 0.125):
        length = max(8, int(config.max_seq_length * share) // 8 * 8)
        smaller = config.model_copy(update={"max_seq_length": length})
        if predict_memory(smaller, model_config, lengths, device).fits(available):
            return length
    return None


def advice(config: Config, trainer: Any) -> str:
    """What to turn down, with numbers, in the order that helps most."""
    return turn_down(config, trainer.model.config, trainer.forecast, memory.available(trainer.args.device.type), trainer.args.device.type)


def turn_down(config: Config, model_config: Any, forecast: MemoryForecast, available: int, device: str) -> str:
    """Advice for a training that does not fit; every setting named is one whose forecast fits."""
    need = f"a batch of {forecast.shape[0]} × {forecast.shape[1]} tokens needs about {memory.text(forecast.total_bytes)}"
    steps = []
    if config.per_device_train_batch_size > 1:
        accumulation = config.effective_batch_size
        steps.append(f"per_device_train_batch_size=1 with gradient_accumulation_steps={accumulation} (the same numbers)")
    if not config.gradient_checkpointing:
        steps.append("gradient_checkpointing=true (the same numbers, about a third slower)")
    length = longest_that_fits(config, model_config, available, device)
    steps.append(f"max_seq_length={length} (fits)" if length else "a smaller model, or the cloud: no shorter length fits here")
    return f"{need}, {memory.text(available)} are free; turn down in this order: {'; '.join(steps)}"
