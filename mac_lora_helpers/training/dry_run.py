"""A training step run on the meta device, plain or on the fast path, recorded as a tape.

The model is built from its configuration with the adapters that the recipe puts in; weights, adapters and their gradients
are left out of the tape. Two models of two and of three decoder layers are enough where all layers are alike: what a layer
adds is the difference. Other models are run whole.

The loss is computed outside of it (``head``): here a marker stands for it. Attention kernels are told apart by device: CPU
and CUDA run fused kernels, which save q, k, v, the output and a log-sum-exp per row (FlashAttention, Dao et al. 2022,
algorithm 2). With attention dropout the CPU, and in training always MPS, compose it
(``_scaled_dot_product_attention_math`` in PyTorch's source; for MPS read, not measured).
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mac_lora_helpers.training.recipe import quiet

if TYPE_CHECKING:
    from mac_lora_helpers.training.tape import Recorder, Tape


@dataclass(frozen=True)
class Way:
    """How a step is computed.

    Attributes:
        device: cpu, mps or cuda: decides the attention kernel.
        path: plain or fast.
        again: what the backward pass computes again: nothing, mlp (fast path alone) or layers.
    """

    device: str
    path: str = "plain"
    again: str = "nothing"


def meta_model(model_config: Any, dtype: Any, attention: str = "sdpa", device: str = "meta") -> Any:
    """A causal language model without weights, or with random ones on another device.

    ``attention``: an implementation's name, eager where it is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with quiet(), torch.device(device):
        try:
            return AutoModelForCausalLM.from_config(model_config, dtype=dtype, attn_implementation=attention)
        except (ValueError, KeyError, ImportError):
            return AutoModelForCausalLM.from_config(model_config, dtype=dtype, attn_implementation="eager")


def decoder_layers(model: Any) -> Any:
    """The list of decoder layers: the longest ``ModuleList`` of the model."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=[])


def alike(model: Any) -> bool:
    """Whether all decoder layers have parameters of the same shapes, so that a few stand for all."""
    layers = decoder_layers(model)
    shapes = {tuple((name, tuple(p.shape)) for name, p in layer.named_parameters()) for layer in layers}
    return len(layers) > 3 and len(shapes) == 1


def shortened(model_config: Any, layers: int) -> Any:
    """The configuration with fewer decoder layers."""
    short = copy.deepcopy(model_config)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    if isinstance(getattr(text, "layer_types", None), list):
        text.layer_types = text.layer_types[:layers]
    return short


def with_adapters(model_config: Any, lora: Any, dtype: Any, attention: str = "sdpa", device: str = "meta") -> Any:
    """The PEFT model without weights (or with random ones on another device), as ``SFTTrainer`` would train it, gradients in place.

    Args:
        model_config: a transformers configuration.
        lora: ``peft.LoraConfig`` with resolved targets.
        dtype: of the frozen weights.
    """
    from peft import get_peft_model

    base = meta_model(copy.deepcopy(model_config), dtype, attention, device)
    with quiet():
        model = get_peft_model(base, copy.deepcopy(lora)).train()
    _give_gradients(model)
    return model


def require_fast(model: Any) -> None:
    """Raises ``fast.known.Unknown`` with what speaks against the fast path for this model."""
    from mac_lora_helpers.training.fast.known import Unknown, require_known_model

    try:
        require_known_model(model)
    except AttributeError as error:
        raise Unknown(f"the model is not built as expected: {error}") from None


def record(model: Any, way: Way, rows: int, tokens: int) -> Tape:
    """One step's tape for a batch of ``rows`` × ``tokens``; ``model`` from ``with_adapters``, attention by ``attention_for``."""
    import torch

    base = model.get_base_model()
    if way.path == "plain":
        checkpoint(base, way.again == "layers")
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    return _recorded(base, model, ids, torch.ones_like(ids), way)


def checkpoint(base: Any, on: bool) -> None:
    """Gradient checkpointing on or off, as ``SFTTrainer`` sets it; newer versions of transformers call it activation checkpointing."""
    kind = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    with quiet():
        if on:
            getattr(base, f"{kind}_checkpointing_enable")({"use_reentrant": False})
            base.enable_input_require_grads()
        elif getattr(base, f"is_{kind}_checkpointing"):
            getattr(base, f"{kind}_checkpointing_disable")()
            base.disable_input_require_grads()


def _give_gradients(model: Any) -> None:
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _recorded(base: Any, model: Any, ids: Any, mask: Any, way: Way) -> Tape:
    from mac_lora_helpers.training.tape import Recorder

    there = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None), ids, mask]
    recorder = Recorder(there)
    layers = fast_layers(base, way.again) if way.path == "fast" else contextlib.nullcontext()
    with layers, quiet(), recorder.recording():
        hidden = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        loss = _marker().apply(hidden[:, :-1].reshape(-1, hidden.shape[-1]) if way.path == "plain" else hidden, recorder)
        del hidden
        loss.sum().backward()
        del loss
    return recorder.tape()


@contextlib.contextmanager
def fast_layers(base: Any, again: str) -> Iterator[None]:
    """The fast path's decoder layers, as ``fast.install`` puts them in for a step."""
    from mac_lora_helpers.training.fast.known import take_apart
    from mac_lora_helpers.training.fast.layer import Work, run_layer

    layers = decoder_layers(base)
    for index, layer in enumerate(layers):
        work = Work(take_apart(layer), index == 0, None, {"layers": "layer"}.get(again, again))
        layer.forward = functools.partial(run_layer, layer, work)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@functools.cache
def _marker() -> Any:
    from torch.autograd import Function

    class Loss(Function):
        """Stands for the loss: (N, width) → (N,), and a gradient of the hidden states' shape."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, recorder: Recorder) -> Any:
            ctx.save_for_backward(hidden)
            ctx.recorder = recorder
            recorder.mark("loss")
            return hidden.new_empty(hidden.shape[:-1], dtype=_float32())

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
            (hidden,) = ctx.saved_tensors
            ctx.recorder.mark("backward")
            return hidden.new_empty(hidden.shape), None

    return Loss


def _float32() -> Any:
    import torch

    return torch.float32


@functools.cache
def attention_for(device: str) -> str:
    """Adds an attention with the shapes of the device's kernel to transformers' registry; its name."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name, kernel = f"shapes_only_{device}", _kernel()

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any = None, dropout: float = 0.0, **_: Any) -> tuple[Any, None]:
        groups = query.shape[1] // key.shape[1]
        composed = device == "mps" or (device == "cpu" and dropout > 0)
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if composed:
            return _composed(query, key, value, dropout), None
        return kernel.apply(query, key, value), None

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda *_, **__: None)
    return name


def _composed(query: Any, key: Any, value: Any, dropout: float) -> Any:
    import torch

    scores = torch.softmax(query @ key.transpose(-2, -1), dim=-1)
    if dropout > 0:
        scores = torch.nn.functional.dropout(scores, dropout)
    return (scores @ value).transpose(1, 2).contiguous()


@functools.cache
def _kernel() -> Any:
    import torch

    class Kernel(torch.autograd.Function):
        """q, k, v of shape (rows, heads, tokens, width) → (rows, tokens, heads, width)."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            rows, heads, tokens, _ = query.shape
            out = query.new_empty(rows, tokens, heads, value.shape[-1])
            ctx.save_for_backward(query, key, value, out, query.new_empty(rows, heads, tokens, dtype=torch.float32))
            return out

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[Any, Any, Any]:
            query, key, value, *_ = ctx.saved_tensors
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    return Kernel
