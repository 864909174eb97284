"""Peak memory of a training, predicted by parts from the model's configuration alone.

The peak is the sum of these parts:

- weights: parameters × bytes of their dtype; counted on the meta device, tied weights once.
- adapter, gradients, optimizer: 4, 4 and 8 bytes per adapter parameter (PEFT keeps adapters in float32; AdamW has two
  moments, Loshchilov & Hutter 2019).
- activations: counted, see ``activations``. With checkpointing the input of each decoder layer (Chen et al. 2016).
- logits: TRL computes the loss in tiles of at most 4096 tokens × 32768 vocabulary entries (``trl/kernels/chunked_logprob.py``);
  its backward pass has eight float32 tiles and a mask alive at once on CPU and MPS, one tile on CUDA.
- layer: one layer's backward pass: its recomputed activations with checkpointing, and the gradients of its widest
  tensors. On CUDA, where only live tensors are counted, what it needs beyond the logits.
- allocator: freed blocks that the allocator keeps. glibc returns blocks over 32 MiB at once and keeps smaller ones; with
  ``MALLOC_MMAP_THRESHOLD_=65536`` this part was gone in a measurement (Linux, CPU). On MPS, whose allocator caches too,
  the same allowance; not measured.
- runtime: kernels' scratch and the optimizer's code. Measured on Linux with the embedded model's shape; an assumption elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
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
RUNTIME_BYTES = {"cpu": 40_000_000, "mps": 300_000_000, "cuda": 100_000_000}
#: glibc's largest threshold between blocks that are returned when freed and blocks that are kept (mallopt(3)).
KEPT_BELOW = 32 * 2**20

MEANINGS = {
    "weights": "the frozen base model",
    "adapter": "the LoRA matrices, float32",
    "gradients": "of the LoRA matrices, float32",
    "optimizer": "AdamW's two moments, float32",
    "activations": "kept from the forward pass for the backward pass",
    "logits": "the loss's tiles over the vocabulary",
    "layer": "one layer's backward pass",
    "allocator": "freed blocks that the allocator keeps (an allowance)",
    "runtime": "kernels' scratch (an allowance)",
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
    rows, columns = min(tokens, TILE_TOKENS), min(vocabulary, TILE_VOCABULARY)
    logits = int(4 * rows * columns * (1 if device == "cuda" else TILES_ALIVE))
    layer = WIDE_GRADIENTS * saved.widest
    activations = saved.total
    if config.gradient_checkpointing:
        activations = saved.boundary * saved.layers
        layer += saved.layer
    if device == "cuda":
        return {"activations": activations, "logits": logits, "layer": max(layer - logits, 0), "allocator": 0}
    last_tile = 4 * rows * (vocabulary % TILE_VOCABULARY) if vocabulary > TILE_VOCABULARY else 0
    kept = [layer if saved.widest < KEPT_BELOW else 0, int(last_tile * TILES_ALIVE) if last_tile < KEPT_BELOW else 0]
    return {"activations": activations, "logits": logits, "layer": layer, "allocator": sum(kept)}


def predict_for(config: Config, model: Any, dataset: Any, device: str) -> MemoryForecast:
    """The forecast for a loaded model and the rows that it will be trained on."""
    dtype = str(model.dtype).removeprefix("torch.")
    lengths = [len(ids) for ids in dataset.select_columns(["input_ids"]).with_format("arrow")["input_ids"]]
    return predict_memory(config.model_copy(update={"dtype": dtype}), model.config, lengths, device)


def advice(config: Config, trainer: Any) -> str:
    """``turn_down`` for a trainer that ran out of memory."""
    device = trainer.args.device.type
    return turn_down(config, trainer.model.config, trainer.forecast, memory.available(device), device)


def turn_down(config: Config, model_config: Any, forecast: MemoryForecast, available: int, device: str) -> str:
    """What to turn down, with numbers: first what changes no result, then shorter sequences, until the forecast fits."""
    rows, tokens = forecast.shape
    need = f"a batch of {rows} × {tokens} tokens needs about {memory.text(forecast.total_bytes)}, {memory.text(available)} are free"
    steps: list[str] = []
    for step, changes in _turns(config):
        config = config.model_copy(update=changes)
        steps = [*(item for item in steps if not item.startswith(step.split("=")[0])), step]
        smaller = predict_memory(config, model_config, None, device)
        if smaller.fits(available):
            return f"{need}; {', '.join(steps)} fits (about {memory.text(smaller.total_bytes)})"
    return f"{need}, and no shorter length fits; take a smaller model, or train in the cloud"


def _turns(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings to turn down, one after the other, each on top of those before it."""
    if config.per_device_train_batch_size > 1:
        rows = config.effective_batch_size
        changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows}
        yield f"per_device_train_batch_size=1 with gradient_accumulation_steps={rows}", changes
    if not config.gradient_checkpointing:
        yield "gradient_checkpointing=true", {"gradient_checkpointing": True}
    for share in (0.75, 0.5, 0.375, 0.25, 0.125):
        length = max(8, int(config.max_seq_length * share) // 8 * 8)
        yield f"max_seq_length={length}", {"max_seq_length": length}
