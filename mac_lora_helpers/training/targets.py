"""Which modules get a LoRA adapter: found in the model, not assumed from its name."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import Any

from mac_lora_helpers.errors import InputError

#: Parts of a module's name that stand for what mixes the positions of a layer: attention, and in hybrid models what stands in
#: its place (Mamba, linear attention, short convolutions).
_MIXERS = ("attn", "attention", "mamba", "mixer", "conv", "ssm", "recurrent")
#: Never adapted: routers, whose choice of experts an adapter would upset, and the gates of linear attention, one number a head.
_NEVER = {"router", "gate", "shared_expert_gate", "in_proj_a", "in_proj_b", "in_proj_ba"}
#: Mamba's fused kernels read this weight and pass an adapter by; PEFT refuses it there.
_READ_BY_KERNELS = re.compile(r"(mamba|mixer|ssm)\.out_proj$")
_TOWERS = re.compile(r"(?i)(^|\.)(vision|visual|image|audio|multi_modal|mm_|speech|embed_vision|embed_audio)")


def layer_list(model: Any) -> tuple[str, Any]:
    """The decoder layers and the name of their list: the longest ``ModuleList`` that is in no other, nor in a tower."""
    import torch

    lists = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    outer = {
        name: module
        for name, module in lists.items()
        if not _TOWERS.search(name) and not any(name.startswith(f"{other}.") for other in lists)
    }
    return max(outer.items(), key=lambda item: len(item[1]), default=("", ()))


def decoder_layers(model: Any) -> Any:
    """The list of decoder layers; empty where there is none."""
    return layer_list(model)[1]


def linear_modules(model: Any) -> dict[str, Any]:
    """Every linear layer an adapter can sit on, by its full name: those of the decoder layers, but routers.

    The output head is not among them: TRL computes the loss from its weight directly, so an adapter there would never be
    trained. Nor are the towers of a model that also takes images or sound: text rows never reach them.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    path = layer_list(model)[0]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and name.startswith(f"{path}.") and _adaptable(name)
    }


def _adaptable(name: str) -> bool:
    return name.rsplit(".", 1)[-1] not in _NEVER and not _READ_BY_KERNELS.search(name)


def candidates(model: Any) -> dict[str, int]:
    """The last part of every adaptable module's name, with how many modules carry it."""
    return dict(Counter(name.rsplit(".", 1)[-1] for name in linear_modules(model)))


def find_targets(model: Any, wanted: str = "auto") -> list[str]:
    """Target modules for this model.

    Args:
        model: a causal language model of transformers.
        wanted: ``auto`` (the projections of attention, and of what stands in its place), ``all-linear``, or names separated by
            commas; a name is the last part of a module's name (``q_proj``) or a dotted end of it (``mlp.c_proj``).

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
    path, layers = layer_list(model)
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


def _carries(name: str, target: str) -> bool:
    """Whether a target is the module's name or a dotted end of it."""
    return name == target or name.endswith(f".{target}")


def _auto(model: Any) -> list[str]:
    """The projections of whatever mixes positions in a layer."""
    found = {}
    for name in linear_modules(model):
        *path, leaf = name.split(".")
        if any(mixer in part.lower() for part in path for mixer in _MIXERS):
            found[leaf] = True
    if not found:
        raise InputError(
            f"no attention projection was recognized in this {getattr(model.config, 'model_type', '') or 'model'}",
            where="parameter lora_targets",
            fix=f"name the modules yourself, or take all-linear; the model has {_listing(candidates(model))}",
        )
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
