"""Bytes that the forward pass keeps for the backward pass, counted on the meta device: shapes only, no weights.

The model is built from its configuration on PyTorch's ``meta`` device with the LoRA adapters that the recipe puts in,
runs one forward pass without data, and every tensor that autograd saves is counted once
(``torch.autograd.graph.saved_tensors_hooks``). That holds for any architecture and needs no constant fitted to one.

Attention kernels save different things. CPU and CUDA run fused kernels, which save q, k, v, the output and a
log-sum-exp per row (FlashAttention, Dao et al. 2022, algorithm 2). With attention dropout the CPU, and in training
always MPS, decompose it (``_scaled_dot_product_attention_math`` in PyTorch's source; for MPS read, not measured):
then the probabilities are saved, and under dropout its mask and the dropped probabilities too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.training.recipe import quiet


@dataclass(frozen=True)
class SavedBytes:
    """What one batch keeps.

    Attributes:
        total: all layers, nothing recomputed.
        layer: the largest single decoder layer.
        boundary: the input of one decoder layer; what checkpointing keeps per layer.
        layers: decoder layers.
        widest: the largest single tensor saved.
    """

    total: int
    layer: int
    boundary: int
    layers: int
    widest: int


def meta_model(model_config: Any, dtype: Any, attention: str = "sdpa") -> Any:
    """A causal language model without weights. ``attention``: an implementation's name, eager where it is unknown."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet(), torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(model_config, dtype=dtype, attn_implementation=attention)
        except (ValueError, KeyError, ImportError):
            return AutoModelForCausalLM.from_config(model_config, dtype=dtype, attn_implementation="eager")


def count_saved(model_config: Any, lora: Any, dtype: Any, rows: int, length: int, device: str) -> SavedBytes:
    """Counts what one batch of ``rows`` × ``length`` tokens keeps for the backward pass.

    Args:
        model_config: a transformers configuration.
        lora: ``peft.LoraConfig`` with resolved targets.
        dtype: of the frozen weights.
        rows, length: shape of the batch in rows and tokens.
        device: cpu, cuda or mps; decides which attention is counted.
    """
    try:
        return _count(model_config, lora, dtype, rows, length, _register(device))
    except (KeyError, ValueError):
        return _count(model_config, lora, dtype, rows, length, "eager")


def _count(model_config: Any, lora: Any, dtype: Any, rows: int, length: int, attention: str) -> SavedBytes:
    import copy

    import torch
    from peft import get_peft_model

    base = meta_model(copy.deepcopy(model_config), dtype, attention)
    with quiet():
        model = get_peft_model(base, copy.deepcopy(lora)).train()
    counter = _Counter(model)
    counter.watch(decoder_layers(base))
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    base.enable_input_require_grads()
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
        base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    layers = counter.per_layer or [counter.total]
    width = model_config.get_text_config().hidden_size * torch.empty(0, dtype=dtype).element_size()
    return SavedBytes(counter.total, max(layers), rows * length * width, len(layers), counter.widest)


def decoder_layers(model: Any) -> Any:
    """The list of decoder layers: the longest ``ModuleList`` of the model."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=[])


class _Counter:
    """Adds up saved tensors by storage, parameters left out, and what each decoder layer adds."""

    def __init__(self, model: Any) -> None:
        self.ignored = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.alive: dict[int, Any] = {}
        self.total = self.widest = 0
        self.per_layer: list[int] = []
        self._before = 0

    def pack(self, tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.ignored and storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage
            self.total += storage.nbytes()
            self.widest = max(self.widest, storage.nbytes())
        return tensor

    def watch(self, layers: Any) -> None:
        for layer in layers:
            layer.register_forward_pre_hook(self._enter)
            layer.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self._before = self.total

    def _leave(self, *_: Any) -> None:
        self.per_layer.append(self.total - self._before)


@functools.cache
def _register(device: str) -> str:
    """Adds an attention that only has the shapes and the saved tensors of the device's kernel to transformers' registry."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name, kernel = f"shapes_only_{device}", _kernel()

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any = None, dropout: float = 0.0, **_: Any) -> tuple[Any, None]:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        decomposed = device == "mps" or (device == "cpu" and dropout > 0)
        squares = (3 if dropout > 0 else 1) if decomposed else 0
        return kernel.apply(query, key, value, squares), None

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda *_, **__: None)
    return name


def _kernel() -> Any:
    import torch

    class Kernel(torch.autograd.Function):
        """q, k, v of shape (rows, heads, tokens, width) → (rows, tokens, heads, width); saves ``squares`` score matrices."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, squares: int) -> Any:
            rows, heads, tokens, _ = query.shape
            out = query.new_empty(rows, tokens, heads, value.shape[-1])
            if squares:
                scores = [query.new_empty(rows, heads, tokens, tokens) for _ in range(squares)]
                ctx.save_for_backward(query.clone(), key.clone(), value, *scores)
            else:
                ctx.save_for_backward(query, key, value, out, query.new_empty(rows, heads, tokens, dtype=torch.float32))
            return out

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[None, None, None, None]:
            raise NotImplementedError("shapes only")

    return Kernel
