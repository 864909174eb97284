"""Peak memory of a training, predicted by parts from the model's configuration alone.

The peak is the sum of these parts:

- weights: parameters × bytes of their dtype; counted on the meta device, tied weights once.
- adapter, gradients, optimizer: 4, 4 and 8 bytes per adapter parameter (PEFT keeps adapters in float32; AdamW has two
  moments, Loshchilov & Hutter 2019).
- activations: alive when the loss is computed; counted, see ``dry_run``. With checkpointing the input of each decoder
  layer (Chen et al. 2016).
- logits: the loss's own tensors, see ``head_memory``.
- layer: what the backward pass of a layer needs beyond the two above; counted as well.
- allocator: freed blocks that the allocator keeps. glibc returns blocks over 32 MiB at once and keeps smaller ones, and an
  aligned block does not go into a hole of its own size. On MPS, whose allocator caches too, the same allowance; not measured.
- runtime: kernels' scratch and code. Measured on Linux: 38 MB of a model of nothing, some 20 MB more for matrix products of
  real size; an assumption elsewhere.

Which way the step is computed (plain or fast, what the backward pass computes again) is settled as the trainer settles it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.training import memory
from mac_lora_helpers.training.dry_run import Way
from mac_lora_helpers.training.fast.plan import Plan, choose_plan, kept
from mac_lora_helpers.training.head_memory import HeadMemory, fast_head, plain_head
from mac_lora_helpers.training.step_memory import Model, StepMemory, model_of

RUNTIME_BYTES = {"cpu": 60_000_000, "mps": 300_000_000, "cuda": 100_000_000}
#: glibc's largest threshold between blocks that are returned when freed and blocks that are kept (mallopt(3)).
KEPT_BELOW = 32 * 2**20
#: Share of the free memory that a training may plan for; the rest is for the system and what else runs.
SHARE = 0.9

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
        parameters: of the base and of the adapter, and the number of decoder layers.
        gradient_checkpointing: whether it is on, as settled.
        checkpointing_reason: why.
        dtype: of the frozen weights.
        path: plain or fast, as predicted.
        path_reason: why.
        plan: what the fast path computes again; None on the plain path.
    """

    parts: dict[str, int]
    shape: tuple[int, int]
    parameters: dict[str, int] = field(default_factory=dict)
    gradient_checkpointing: bool = False
    checkpointing_reason: str = "as asked"
    dtype: str = "float32"
    path: str = "plain"
    path_reason: str = ""
    plan: Plan | None = None

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


def predict_memory(
    config: Config, model_config: Any, lengths: Any = None, device: str = "cpu", available: int | None = None
) -> MemoryForecast:
    """Predicts the peak from the configuration alone; nothing is loaded.

    Args:
        config: the resolved parameters. With ``gradient_checkpointing`` auto it is off when all fits into ``available``.
        model_config: a transformers configuration (``model.config`` or ``AutoConfig``).
        lengths: the rows' lengths in tokens, if known: the longest bounds the batch, and so do the number of rows.
        device: cpu, mps or cuda.
        available: bytes that the whole training may take; None: enough for anything.

    Raises:
        InputError: ``lora_targets`` names a module that the model does not have.
    """
    ask = _Question(config, model_config, lengths, device, available)
    if config.gradient_checkpointing != "auto":
        return ask.forecast(bool(config.gradient_checkpointing), "as asked")
    off = ask.forecast(False, "all of it fits")
    if available is None or off.fits(available):
        return off
    why = f"without it {memory.text(off.total_bytes)} of {memory.text(available)}"
    return ask.forecast(True, why)


class _Question:
    """One recipe, asked with and without checkpointing."""

    def __init__(self, config: Config, model_config: Any, lengths: Any, device: str, available: int | None) -> None:
        self.config, self.device, self.available = config, device, available
        self.model: Model = model_of(model_config)
        self.lora = self.model.lora(config)
        self.rows, self.tokens = _batch_shape(config, lengths)
        self.itemsize = self.model.weight_bytes(config.dtype) // self.model.parameters
        self.targets = frozenset(self.lora.target_modules)
        adapter = self.model.adapter_parameters(self.targets, self.lora.r, config.lora_layers)
        self.fixed = {
            "weights": self.model.weight_bytes(config.dtype),
            "adapter": 4 * adapter,
            "gradients": 4 * adapter,
            "optimizer": 8 * adapter,
        }
        self.parameters = {"base": self.model.parameters, "adapter": adapter, "layers": self.model.layers}

    def forecast(self, checkpointing: bool, why: str) -> MemoryForecast:
        reason = "switched off" if self.config.fast_path == "off" else self.model.why_not_fast(self.targets, self.config.dtype)
        plan = None if reason else self._plan(checkpointing)
        step, head = self._fast(plan) if plan else self._plain(checkpointing)
        parts = {**self.fixed, **_working_set(step, head, self.device), "runtime": RUNTIME_BYTES[self.device]}
        path = ("fast", "known architecture") if plan else ("plain", reason)
        return MemoryForecast(parts, (self.rows, self.tokens), self.parameters, checkpointing, why, self.config.dtype, *path, plan)

    def _plan(self, checkpointing: bool) -> Plan:
        """As ``fast.install`` plans."""
        sizes = kept(self.model.config, self.rows, self.tokens, self.itemsize, self.lora, self.device)
        wanted = "mlp" if self.config.fast_path == "lean" else "auto" if checkpointing else "nothing"
        return choose_plan(sizes, self._budget(sizes) if wanted == "auto" else None, wanted)

    def _budget(self, sizes: Any) -> int | None:
        from mac_lora_helpers.training.fast.head import tile, tile_bytes

        if self.available is None:
            return None
        tokens = self.rows * self.tokens
        logits = tile_bytes(tokens, self.model.width, self.model.vocabulary, self.itemsize, tile(self.device))
        return self.available - sum(self.fixed.values()) - logits - 2 * sizes.wide

    def _active(self) -> int:
        return self.config.lora_layers or self.model.layers

    def _step(self, path: str, again: str, active: int) -> StepMemory:
        way = Way(self.device, path, again)
        return self.model.step(self.lora, self.config.dtype, way, self.rows, self.tokens, active)

    def _plain(self, checkpointing: bool) -> tuple[StepMemory, HeadMemory]:
        # checkpointing keeps every layer's input, adapted or not
        step = self._step("plain", "layers", self.model.layers) if checkpointing else self._step("plain", "nothing", self._active())
        return step, plain_head(self.rows * (self.tokens - 1), self.model.width, self.model.vocabulary, self.itemsize, self.device)

    def _fast(self, plan: Plan) -> tuple[StepMemory, HeadMemory]:
        active = self._active()
        if plan.kind != "mlp":
            step = self._step("fast", plan.kind, active)
        else:
            lean, whole = self._step("fast", "mlp", active), self._step("fast", "nothing", active)
            step = lean.plus(whole.plus(lean, -1), (active - min(plan.mlp_layers, active)) / active)
        tokens = self.rows * (self.tokens - 1)
        return step, fast_head(tokens, self.model.width, self.model.vocabulary, self.itemsize, self.device, plan.kind)


def _batch_shape(config: Config, lengths: Any) -> tuple[int, int]:
    known = list(lengths) if lengths is not None else []
    rows = min(config.per_device_train_batch_size, len(known)) if known else config.per_device_train_batch_size
    return rows, max(2, min(max(known, default=config.max_seq_length), config.max_seq_length))


def _working_set(step: StepMemory, head: HeadMemory, device: str) -> dict[str, int]:
    """Activations, logits, the rest of the peak, and what the allocator keeps besides."""
    peak = max(step.forward, step.kept + head.forward, step.turned + head.backward, step.backward)
    logits = min(max(head.forward, head.backward), peak - step.kept)
    own = {"activations": step.kept, "logits": logits, "layer": peak - step.kept - logits}
    if device == "cuda":
        return {**_whole(own), "allocator": 0}
    layer = max(step.backward - step.turned, 0) if step.widest < KEPT_BELOW else 0
    return _whole({**own, "allocator": layer + head.holes})


def _whole(parts: dict[str, float]) -> dict[str, int]:
    return {name: max(round(size), 0) for name, size in parts.items()}


def predict_for(config: Config, model: Any, dataset: Any, device: str, available: int | None = None) -> MemoryForecast:
    """The forecast for a loaded model and the rows that it will be trained on; ``available`` beside the loaded weights."""
    dtype = str(model.dtype).removeprefix("torch.")
    lengths = [len(ids) for ids in dataset.select_columns(["input_ids"]).with_format("arrow")["input_ids"]]
    config = config.model_copy(update={"dtype": dtype})
    if available is None:
        available = int(memory.available(device) * SHARE) + sum(p.numel() * p.element_size() for p in model.parameters())
    return predict_memory(config, model.config, lengths, device, available)


def advice(config: Config, trainer: Any) -> str:
    """What to turn down, for a trainer that ran out of memory."""
    from mac_lora_helpers.training.savings import turn_down

    device = trainer.args.device.type
    checkpointing = bool(trainer.args.gradient_checkpointing)
    settled = config.model_copy(update={"gradient_checkpointing": checkpointing, "dtype": trainer.forecast.dtype})
    return turn_down(settled, trainer.model.config, trainer.forecast, memory.available(device), device)
