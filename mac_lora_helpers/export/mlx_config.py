"""RoPE settings in the form that mlx-lm's Llama and Qwen2 read."""

from __future__ import annotations

from typing import Any


def mlx_rope_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and, if scaled, ``rope_scaling`` out of a ``config.json`` of transformers 5.

    transformers 5 writes only ``rope_parameters``; mlx-lm's Llama and Qwen2 then fall back to a default base.
    Empty when the config already has the older keys or has no RoPE settings at all.
    """
    rope = dict(settings.get("rope_parameters") or {})
    if "rope_theta" not in rope:
        return {}
    keys: dict[str, Any] = {"rope_theta": rope.pop("rope_theta")}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        keys["rope_scaling"] = {**rope, "type": kind}
    return keys
