"""Which modules get a LoRA adapter: found in the model, not assumed from its name."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import Any

from mac_lora_helpers.errors import InputError

#: Attention projections by family (``model_type``). Other families: see ``_attention_linears``.
_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
_QKV_OUT = ("q_proj", "k_proj", "v_proj", "out_proj")
_FUSED_DENSE = ("query_key_value", "dense")
FAMILIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2"), _QKVO),
    **dict.fromkeys(("stablelm", "starcoder2", "granite", "cohere", "qwen2_moe", "qwen3_moe"), _QKVO),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn", "c_proj")),
    **dict.fromkeys(("gptj", "gpt_neo", "opt"), _QKV_OUT),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon"), _FUSED_DENSE),
    "phi": ("q_proj", "k_proj", "v_proj", "dense"),
    "phi3": ("qkv_proj", "o_proj"),
    "codegen": ("qkv_proj", "out_proj"),
    "mpt": ("Wqkv", "out_proj"),
}


def linear_modules(model: Any) -> dict[str, Any]:
    """Every linear layer an adapter can sit on, by its full name; the output head is left out.

    TRL computes the loss from the head's weight directly, so an adapter there would never be trained.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {name: module for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head}


def candidates(model: Any) -> dict[str, int]:
    """The last part of every adaptable module's name, with how many modules carry it."""
    return dict(Counter(name.rsplit(".", 1)[-1] for name in linear_modules(model)))


def find_targets(model: Any, wanted: str = "auto") -> list[str]:
    """Target modules for this model.

    Args:
        model: a causal language model of transformers.
        wanted: ``auto`` (attention projections), ``all-linear``, or names separated by commas; a name is the
            last part of a module's name (``q_proj``) or a dotted end of it (``mlp.c_proj``).

    Returns:
        Names for ``LoraConfig.target_modules``, each of which exists in the model.

    Raises:
        InputError: a name that no module carries; the message lists the model's own candidates.
    """
    wanted = wanted.strip()
    if wanted == "auto":
        return _auto(model)
    if wanted == "all-linear":
        return list(candidates(model))
    return _named(model, [name.strip() for name in wanted.split(",") if name.strip()])


def top_layers(model: Any, count: int, targets: list[str]) -> tuple[list[int] | None, str | None]:
    """The decoder layers that get an adapter, as ``LoraConfig``'s ``layers_to_transform`` and ``layers_pattern``.

    Args:
        count: how many, from the top (mlx-lm's ``num_layers``); 0: every layer.
        targets: from ``find_targets``.

    Returns:
        Indices from the lowest on and the name of the list that holds the layers; (None, None) for every layer.

    Raises:
        InputError: the model has fewer layers, or no target stands inside them.
    """
    if not count:
        return None, None
    path, layers = _layer_list(model)
    if count > len(layers):
        raise InputError(
            f"lora_layers={count}, but this model ({model.config.model_type}) has {len(layers)} decoder layers",
            where="parameter lora_layers",
            fix=f"a number up to {len(layers)}, or 0 for all of them",
        )
    inside = [name.removeprefix(f"{path}.") for name in linear_modules(model) if name.startswith(f"{path}.")]
    if not any(_carries(name, target) for name in inside for target in targets):
        raise InputError(
            f"none of {', '.join(targets)} stands in a decoder layer ({path})",
            where="parameters lora_layers, lora_targets",
            fix="set lora_layers=0, or name modules of the decoder layers",
        )
    return list(range(len(layers) - count, len(layers))), path.rsplit(".", 1)[-1]


def _layer_list(model: Any) -> tuple[str, Any]:
    """The longest ``ModuleList`` of the model and its name: the decoder layers."""
    import torch

    lists = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    if not lists:
        raise InputError("no list of decoder layers was found in this model", where="parameter lora_layers", fix="set lora_layers=0")
    return max(lists.items(), key=lambda item: len(item[1]))


def _carries(name: str, target: str) -> bool:
    """Whether a target is the module's name or a dotted end of it."""
    return name == target or name.endswith(f".{target}")


def _auto(model: Any) -> list[str]:
    present = candidates(model)
    family = getattr(model.config, "model_type", "")
    names = [name for name in FAMILIES.get(family, ()) if name in present] or _attention_linears(model)
    if not names:
        raise InputError(
            f"no attention projection was recognized in this {family or 'model'}",
            where="parameter lora_targets",
            fix=f"name the modules yourself, or take all-linear; the model has {_listing(present)}",
        )
    return names


def _attention_linears(model: Any) -> list[str]:
    """For a family that is not in the table: the linear layers below a module called like attention."""
    found = {}
    for name in linear_modules(model):
        *path, leaf = name.split(".")
        if any("attn" in part.lower() or "attention" in part.lower() for part in path):
            found[leaf] = True
    return list(found)


def _named(model: Any, names: list[str]) -> list[str]:
    full, present = linear_modules(model), candidates(model)
    missing = [name for name in names if not any(_carries(item, name) for item in full)]
    if not names or missing:
        near = [match for name in missing for match in difflib.get_close_matches(name, present, 1)]
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InputError(
            f"this model ({model.config.model_type}) has no module called {', '.join(missing) or '(empty)'}",
            where="parameter lora_targets",
            fix=f"{hint}choose from {_listing(present)}, or take auto or all-linear",
        )
    return names


def _listing(present: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count}×)" for name, count in present.items()) or "no linear layers"
