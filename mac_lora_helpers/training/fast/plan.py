"""What the fast path keeps for the backward pass, in bytes, and what it computes again when that does not fit.

Counted from the configuration, per token and decoder layer, in numbers of the weights' dtype (width = hidden size):

- width: the residual before the attention, from which the normalized input is made again
- query, key and value after the rotation, the attention's output, one log-sum-exp a head
- with query and key norms: query and key once more
- width: the residual before the MLP
- 2 × intermediate size: gate and up, unless the MLP is computed again
- each adapter: r numbers, and a byte an input where dropout is on

On MPS training attention is PyTorch's own composition, which keeps the probabilities too (read in its source, not
measured): heads × tokens more a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What is computed again.

    Attributes:
        mlp_layers: decoder layers whose gate and up are computed again; from the lowest adapted one on.
        whole_layers: every layer is computed again (gradient checkpointing).
        kept_bytes: what is kept for one batch.
    """

    mlp_layers: int
    whole_layers: bool
    kept_bytes: int

    @property
    def kind(self) -> str:
        """nothing, mlp or layers."""
        return "layers" if self.whole_layers else "mlp" if self.mlp_layers else "nothing"

    def again(self, index: int) -> str:
        """For ``layer.Work``: nothing, mlp or layer; ``index`` counts from the lowest adapted layer."""
        if self.whole_layers:
            return "layer"
        return "mlp" if index < self.mlp_layers else "nothing"


@dataclass(frozen=True)
class Kept:
    """Bytes kept for one batch by one decoder layer: all, of which gate and up; and its input alone. And how many layers keep."""

    layer: int
    wide: int
    boundary: int
    layers: int


def kept(model_config: Any, rows: int, length: int, itemsize: int, lora: Any = None, device: str = "cpu") -> Kept:
    """Counts for ``rows`` × ``length`` tokens; ``lora``: ``peft.LoraConfig`` with target names, for the adapters' share."""
    config = model_config.get_text_config()
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    query, key = heads * head, config.num_key_value_heads * head
    attention = query + 2 * key + query + math.ceil(4 * heads / itemsize)
    attention += query + key if config.model_type == "qwen3" else 0
    attention += heads * length if device == "mps" else 0
    scales = math.ceil(2 * 4 / itemsize)
    numbers = 2 * width + attention + scales
    inputs = {"q_proj": width, "k_proj": width, "v_proj": width, "o_proj": query}
    inputs |= {"gate_proj": width, "up_proj": width, "down_proj": inner}
    adapted = [size for name, size in inputs.items() if lora is not None and name in lora.target_modules]
    numbers += len(adapted) * lora.r if adapted else 0
    masks = sum(adapted) if adapted and lora.lora_dropout else 0
    tokens = rows * length
    wide = 2 * inner * itemsize * tokens
    return Kept(numbers * itemsize * tokens + masks * tokens + wide, wide, width * itemsize * tokens, _keeping(config, lora))


def _keeping(config: Any, lora: Any) -> int:
    """Layers that keep anything: from the lowest adapted one up."""
    chosen = getattr(lora, "layers_to_transform", None)
    if chosen is None:
        return config.num_hidden_layers
    return config.num_hidden_layers - min([chosen] if isinstance(chosen, int) else chosen)


def choose_plan(sizes: Kept, budget: int | None, wanted: str = "auto") -> Plan:
    """The plan that computes least again and keeps at most ``budget`` bytes.

    Args:
        budget: bytes free for what is kept; None: as many as it takes.
        wanted: auto; or nothing, mlp or layers for that one whatever it takes.
    """
    everything, lean = sizes.layer * sizes.layers, (sizes.layer - sizes.wide) * sizes.layers
    checkpointed = sizes.boundary * sizes.layers + sizes.layer
    if wanted != "auto":
        numbers = {"nothing": (0, False, everything), "mlp": (sizes.layers, False, lean), "layers": (0, True, checkpointed)}
        return Plan(*numbers[wanted])
    if budget is None or everything <= budget:
        return Plan(0, False, everything)
    short = math.ceil((everything - budget) / sizes.wide)
    if short <= sizes.layers:
        return Plan(short, False, everything - short * sizes.wide)
    return Plan(0, True, checkpointed)
