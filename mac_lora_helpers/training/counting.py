"""What a training step keeps for its backward pass, counted with shapes alone.

The model is built on PyTorch's ``meta`` device with the adapters that the recipe puts in, and its forward pass runs under
``saved_tensors_hooks``: every tensor that autograd keeps is seen, no weight is loaded and no number computed. Where all
decoder layers have the same shapes, three of them stand for all. The loss is counted apart (``plain_head``).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.model import quiet
from mac_lora_helpers.training.targets import decoder_layers, find_targets, linear_modules, top_layers

#: trl 1.16 (``trl/kernels/chunked_logprob.py``): tokens and vocabulary entries of a tile of its head, and float32 copies of a
#: tile alive at once in its forward and in its backward pass on CPU and MPS. On CUDA a kernel works in place.
TILE_TOKENS, TILE_VOCABULARY, FORWARD_TILES, BACKWARD_TILES = 4096, 32768, 3.25, 7.25
#: glibc's largest threshold between freed blocks that it returns and blocks that it keeps (mallopt(3)); tiles below it leave
#: holes behind that the backward pass cannot use (an allowance).
KEPT_BELOW, HOLES = 32 * 2**20, 3
#: Parameters that decide the shapes of a step, beside the model and the batch.
_ASKED = ("lora_targets", "lora_r", "lora_dropout", "lora_layers", "use_dora", "dtype")


@dataclass(frozen=True)
class Counted:
    """One step's memory beside the loss's own.

    Attributes:
        base, adapter: parameters. itemsize: bytes of a frozen one.
        layers: bytes that each decoder layer keeps. outside: bytes kept before and after them.
        boundary: a layer's input. widest: the largest tensor that is kept.
        width, vocabulary: of the output head.
        lora: ``peft.LoraConfig``. why_not_fast: what speaks against the fast path; empty if nothing does.
    """

    base: int
    adapter: int
    itemsize: int
    layers: tuple[int, ...]
    outside: int
    boundary: int
    widest: int
    width: int
    vocabulary: int
    lora: Any
    why_not_fast: str


_counted: dict[tuple[Any, ...], Counted] = {}


def count(config: Config, model_config: Any, rows: int, tokens: int, device: str) -> Counted:
    """The memory of a step with ``rows`` × ``tokens``; the last answers are remembered.

    Args:
        model_config: of a text model. device: decides which attention kernel runs.

    Raises:
        InputError: ``lora_targets`` or ``lora_layers`` name what the model does not have.
        Exception: whatever the model's own code raises where shapes do not suffice.
    """
    asked = tuple(getattr(config, name, None) for name in _ASKED)
    key = json.dumps(model_config.to_dict(), sort_keys=True, default=str), asked, rows, tokens, device
    if key not in _counted:
        if len(_counted) >= 256:
            _counted.clear()
        with _shapes_only(), quiet():
            _counted[key] = _count(config, model_config, rows, tokens, device)
    return _counted[key]


def _count(config: Config, model_config: Any, *batch: Any) -> Counted:
    whole = meta_model(model_config, config.dtype)
    layers, lora = decoder_layers(whole), lora_for(config, whole)
    base, active = sum(p.numel() for p in whole.parameters()), len(lora.layers_to_transform or layers)
    shapes = {tuple((name, tuple(p.shape)) for name, p in layer.named_parameters()) for layer in layers}
    if active < 3 or len(layers) == 3 or len(shapes) > 1:
        return replace(_run(whole, lora, *batch), base=base)
    short = copy.deepcopy(model_config)
    short.num_hidden_layers = 3
    if isinstance(getattr(short, "layer_types", None), list):
        short.layer_types = short.layer_types[:3]
    model = meta_model(short, config.dtype)
    found = _run(model, lora_for(config, model, layers=0), *batch)
    first, middle, last = found.layers
    stretched = (0,) * (len(layers) - active) + (first,) + (middle,) * (active - 2) + (last,)
    return replace(found, base=base, layers=stretched, adapter=found.adapter * active // 3, lora=lora)


def meta_model(model_config: Any, dtype: str) -> Any:
    """A causal language model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(model_config), dtype=getattr(torch, dtype))


def lora_for(config: Config, model: Any, layers: int | None = None) -> Any:
    """``peft.LoraConfig`` with the shapes of the recipe's; ``layers``: in place of ``lora_layers``."""
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    targets = find_targets(model, config.lora_targets)
    indices, pattern = top_layers(model, config.lora_layers if layers is None else layers, targets)
    conv1d = any(isinstance(module, Conv1D) for module in linear_modules(model).values())
    shape = {"r": config.lora_r, "lora_dropout": config.lora_dropout, "use_dora": bool(getattr(config, "use_dora", False))}
    place = {"target_modules": targets, "layers_to_transform": indices, "layers_pattern": pattern, "fan_in_fan_out": conv1d}
    return LoraConfig(**shape, **place, task_type="CAUSAL_LM")


def _run(base: Any, lora: Any, rows: int, tokens: int, device: str) -> Counted:
    """The forward pass of one batch; each tensor that is kept is noted with the layer that kept it."""
    import torch
    from peft import get_peft_model

    model = get_peft_model(base, copy.deepcopy(lora)).train()
    why = _why_not_fast(model)
    if base.config._attn_implementation == "sdpa":
        base.set_attn_implementation(_attention_for(device))
    known = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    layers = decoder_layers(base)
    sizes, alive, place = [0] * (len(layers) + 1), [], [0]
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, index=index: place.__setitem__(0, index + 1))

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            alive.append(storage)  # so that its address is not given to another one
            sizes[place[0]] += storage.nbytes()
        return tensor

    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    adapter, text, size = sum(p.numel() for p in model.parameters() if p.requires_grad), base.config.get_text_config(), base.dtype.itemsize
    boundary, widest = hidden.numel() * size, max((storage.nbytes() for storage in alive), default=0)
    return Counted(0, adapter, size, tuple(sizes[1:]), sizes[0], boundary, widest, text.hidden_size, text.vocab_size, lora, why)


def _why_not_fast(model: Any) -> str:
    from mac_lora_helpers.training.fast.known import Unknown, require_known_model

    try:
        require_known_model(model)
    except (Unknown, AttributeError) as unknown:
        return str(unknown)
    return ""


@contextlib.contextmanager
def _shapes_only() -> Iterator[None]:
    """For this block transformers looks at no number: neither whether a mask is all ones, nor how many rows an expert gets."""
    from unittest.mock import patch

    from transformers import masking_utils
    from transformers.integrations import moe

    with patch.object(masking_utils, "is_tracing", return_value=True), patch.object(moe, "_can_use_grouped_mm", return_value=False):
        yield


@functools.cache
def _attention_for(device: str) -> str:
    """Adds an attention that keeps what the device's kernel keeps to transformers' registry; its name.

    CPU and CUDA run fused kernels, which keep q, k, v, the output and a log-sum-exp per row (FlashAttention, Dao et al. 2022,
    algorithm 2). With attention dropout the CPU, and in training always MPS, compose it
    (``_scaled_dot_product_attention_math`` in PyTorch's source; for MPS read, not measured).
    """
    import torch
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    class Fused(torch.autograd.Function):
        """q, k, v of shape (rows, heads, tokens, width) → (rows, tokens, heads, width)."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            rows, heads, tokens, _ = query.shape
            out = query.new_empty(rows, tokens, heads, value.shape[-1])
            ctx.save_for_backward(query, key, value, out, query.new_empty(rows, heads, tokens, dtype=torch.float32))
            return out

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any = None, dropout: float = 0.0, **_: Any) -> tuple[Any, None]:
        if device != "mps" and (device != "cpu" or dropout == 0):
            return Fused.apply(query, key, value), None
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.nn.functional.dropout(torch.softmax(query @ key.transpose(-2, -1), dim=-1), dropout)
        return (scores @ value).transpose(1, 2).contiguous(), None

    name = f"shapes_only_{device}"
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda *_, **__: None)
    return name


def plain_head(tokens: int, found: Counted, device: str) -> tuple[float, float, float]:
    """TRL's tiled head for ``tokens`` positions: bytes of its forward and its backward pass, and freed blocks that stay behind.

    Its backward pass has the tile's logits and, in float32, their scaled copy, log p, p, the gradient, the labels' one-hot and
    its difference, and the product with the incoming gradient: seven, and a mask of one byte an entry. With weights of two
    bytes the gradient's product takes float32 copies of the tile and of the weights' part.
    """
    rows, columns = min(tokens, TILE_TOKENS), min(found.vocabulary, TILE_VOCABULARY)
    tile, hidden = 4 * rows * columns, 4 * tokens * found.width
    buffer = found.itemsize * rows * TILE_VOCABULARY  # as wide as a whole tile, also for a smaller vocabulary
    if device == "cuda":
        return buffer, buffer + hidden, 0
    products = tile + 4 * columns * found.width if found.itemsize < 4 else 0
    last = 4 * rows * (found.vocabulary % TILE_VOCABULARY if found.vocabulary > TILE_VOCABULARY else columns)
    holes = HOLES * last if last < KEPT_BELOW else 0
    return buffer + FORWARD_TILES * tile, buffer + hidden + max(BACKWARD_TILES * tile, products), holes
