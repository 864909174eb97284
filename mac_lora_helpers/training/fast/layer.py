"""One decoder layer of a known family, and which of its rows are worth computing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mac_lora_helpers.training.fast.known import Parts
from mac_lora_helpers.training.fast.mlp import NormedSwiGLU
from mac_lora_helpers.training.fast.projections import ChosenRows, Normed, NormedProjections, ProjectionOntoResidual, Rotary


@dataclass(frozen=True)
class Work:
    """What a layer does in this step.

    Attributes:
        parts: the layer's norms and projections.
        first: nothing below it is trained, so its input needs no gradient.
        below: neither it nor anything below it is trained: forward only, nothing is kept.
        rows: indices into rows × tokens that are computed after the attention; None: all.
        again: what the backward pass computes again: nothing, mlp or layer.
    """

    parts: Parts
    first: bool = False
    rows: torch.Tensor | None = None
    again: str = "nothing"
    below: bool = False


def run_layer(layer: Any, work: Work, hidden_states: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Stands in for ``layer.forward`` in a training step; the arguments are transformers' own.

    Returns:
        (rows, tokens, width), or (1, chosen rows, width) with ``work.rows``.
    """
    hidden = hidden_states.detach() if work.first else hidden_states
    run = partial(_run, layer, work, **inputs)
    if work.below:
        with torch.no_grad():
            return run(hidden)
    if work.again == "layer":
        draws = any(part.dropout for part in work.parts.projections.values()) or layer.self_attn.attention_dropout
        return checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=bool(draws))
    return run(hidden)


def _run(layer: Any, work: Work, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
    parts, rows = work.parts, None
    shape, residual = hidden.shape, hidden.reshape(-1, hidden.shape[-1])
    attended = _attend(layer.self_attn, parts, residual, shape[:2], **inputs)
    if work.rows is not None:
        rows = ChosenRows(work.rows, len(residual))
        attended, residual = attended.index_select(0, work.rows), residual.index_select(0, work.rows)
        shape = (1, len(work.rows), shape[-1])
    onto = parts.projections["o_proj"]
    residual = ProjectionOntoResidual.apply(residual, attended, onto, rows, *onto.adapter)
    mlp = tuple(parts.some("gate_proj", "up_proj", "down_proj"))
    adapters = [tensor for part in mlp for tensor in part.adapter]
    return NormedSwiGLU.apply(residual, parts.before_mlp, mlp, rows, work.again == "mlp", *adapters).view(shape)


def _attend(
    attention: Any, parts: Parts, x: torch.Tensor, shape: Any, attention_mask: Any, position_embeddings: Any, **more: Any
) -> torch.Tensor:
    """(N, width) → the attention's rows (N, heads × head width), by transformers' own kernel."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    inputs = parts.some("q_proj", "k_proj", "v_proj")
    adapters = [tensor for part in inputs for tensor in part.adapter]
    q, k, v = NormedProjections.apply(x, parts.before_attention, inputs, *adapters)
    q, k, v = (tensor.view(*shape, -1, attention.head_dim) for tensor in (q, k, v))
    if parts.query_key:
        q, k = Normed.apply(q, parts.query_key[0]), Normed.apply(k, parts.query_key[1])
    cos, sin = (tensor.unsqueeze(2) for tensor in position_embeddings)
    q, k = Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, None)
    more = {name: value for name, value in more.items() if name not in ("past_key_values", "use_cache")}
    out, _ = kernel(
        attention,
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attention_mask,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
        sliding_window=_window(attention),
        **more,
    )
    return out.reshape(x.shape[0], -1)


def _window(attention: Any) -> int | None:
    """Sliding window: per layer (Qwen), or for the whole model (Mistral)."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(attention.config, "sliding_window", None)
