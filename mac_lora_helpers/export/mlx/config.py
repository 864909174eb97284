"""``config.json`` in the form that mlx-lm reads: the names that checkpoints had before transformers 5 renamed them."""

from __future__ import annotations

from typing import Any


def mlx_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that mlx-lm wants and a ``config.json`` of transformers 5 lacks.

    Without them mlx-lm refuses the config (GPT-2, GPT-NeoX) or silently falls back to a default (RoPE, Gemma 3).
    """
    keys, kind = mlx_rope_keys(settings), settings.get("model_type")
    if kind == "gpt2" and "n_positions" in settings:
        keys["n_ctx"] = settings["n_positions"]
    if kind == "gpt_neox" and "rope_theta" in keys:
        keys["rotary_emb_base"] = keys["rope_theta"]
        keys["rotary_pct"] = keys.get("partial_rotary_factor", 1.0)
    if kind == "gemma3_text" and settings.get("_sliding_window_pattern"):
        keys["sliding_window_pattern"] = settings["_sliding_window_pattern"]
    return keys


def mlx_rope_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and, where it applies, ``rope_scaling`` and ``partial_rotary_factor`` in the older form.

    transformers 5 writes only ``rope_parameters``; mlx-lm then falls back to a default base. Gemma 3 has one set for
    each kind of layer: the older form gives the sliding layers' base as ``rope_local_base_freq``.
    Empty when the config already has the older keys or has no RoPE settings at all.
    """
    rope = dict(settings.get("rope_parameters") or {})
    local = {}
    if "full_attention" in rope:
        local = {"rope_local_base_freq": (rope.get("sliding_attention") or {}).get("rope_theta", 10000.0)}
        rope = dict(rope["full_attention"] or {})
    if "rope_theta" not in rope:
        return {}
    keys: dict[str, Any] = {"rope_theta": rope.pop("rope_theta"), **local}
    if "partial_rotary_factor" in rope:
        keys["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.get("rope_type", "default")
    if kind != "default":
        keys["rope_scaling"] = {**rope, "type": kind}
    return keys
