"""The adapter between PEFT's form and mlx-lm's.

PEFT stores A ``(r, in)`` and B ``(out, r)`` per module with scales from patterns; mlx-lm stores their transposes with
one rank and one scale for all, in ``num_layers`` blocks counted from the last.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.adapter import SETTINGS, WEIGHTS, Adapter, LoraUpdate
from mac_lora_helpers.files import portable

MLX_WEIGHTS = "adapters.safetensors"
_BLOCK = re.compile(r"^model\.(?:layers|h)\.(\d+)\.(.+)$")
#: Families whose blocks bear another name in mlx-lm: ``model_type`` → (prefix in transformers, prefix in mlx-lm).
_BLOCKS = {"gpt2": ("transformer.h.", "model.h."), "gpt_neox": ("gpt_neox.layers.", "model.h.")}
#: How such a block's modules go on after their number; tells the families apart where only the names are known.
_INSIDE = {"gpt2": re.compile(r"\d+\.(attn|mlp)\.c_"), "gpt_neox": re.compile(r"\d+\.(attention\.|mlp\.dense_)")}


def mlx_name(module: str, model_type: str) -> str:
    """A transformers module's name in mlx-lm."""
    ours, theirs = _BLOCKS.get(model_type, ("", ""))
    return theirs + module.removeprefix(ours) if ours and module.startswith(ours) else module


def _transformers_name(module: str) -> str:
    """The inverse of :func:`mlx_name`."""
    for model_type, (ours, theirs) in _BLOCKS.items():
        if module.startswith(theirs) and _INSIDE[model_type].match(module.removeprefix(theirs)):
            return ours + module.removeprefix(theirs)
    return module


def to_mlx(
    adapter: Adapter, shapes: dict[str, tuple[int, int]], layers: int, model_type: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A PEFT adapter in mlx-lm's form.

    Smaller ranks are filled with zeros, differing scales folded into B, and a module that mlx-lm would adapt though
    PEFT did not gets zeros.

    Args:
        shapes: module → ``(out, in)`` of every linear layer of the base. layers: number of blocks.
        model_type: the family; its modules are renamed as mlx-lm names them.

    Returns:
        Tensors by mlx-lm's names and ``adapter_config.json``.

    Raises:
        InputError: DoRA, more than LoRA matrices of linear layers, or a family whose names in mlx-lm are not known.
    """
    updates = _renamed(adapter.require_plain("an MLX adapter"), shapes, model_type)
    shapes = {mlx_name(module, model_type): shape for module, shape in shapes.items()}
    rank = max(update.rank for update in updates.values())
    scales = [update.scale for update in updates.values()]
    scale = max(set(scales), key=scales.count)
    keys, first = _keys(updates, layers)
    tensors: dict[str, np.ndarray] = {}
    for module in _adapted(keys, shapes, first):
        update = updates.get(module)
        rows, columns = shapes[module]
        a, b = np.zeros((columns, rank), np.float32), np.zeros((rank, rows), np.float32)
        if update is not None:
            a[:, : update.rank] = update.a.T
            b[: update.rank] = update.b.T * np.float32(update.scale / scale)
        tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"] = a, b
    dropout = float(adapter.settings.get("lora_dropout") or 0.0)
    parameters = {"rank": rank, "scale": scale, "dropout": dropout, "keys": sorted(keys)}
    return tensors, {"fine_tune_type": "lora", "num_layers": layers - first, "lora_parameters": parameters}


def _renamed(adapter: Adapter, shapes: dict[str, tuple[int, int]], model_type: str) -> dict[str, LoraUpdate]:
    """The updates under mlx-lm's names."""
    found = {}
    for module, update in adapter.updates.items():
        name, numbered = mlx_name(module, model_type), any(part.isdigit() for part in module.split("."))
        if module not in shapes:
            what = f"mlx-lm has no linear layer of its own for {module} (a shared head, or no linear layer)"
        elif not _BLOCK.match(name) and (numbered or model_type in _BLOCKS):
            what = f"mlx-lm's names of the layers of {model_type or 'this'} models are not known here ({module})"
        else:
            found[name] = update
            continue
        raise InputError(what, where="adapter", fix="use the adapter or the merged model in transformers")
    return found


def _keys(updates: dict[str, LoraUpdate], layers: int) -> tuple[set[str], int]:
    """Names inside a block (or of the whole model), and the first block that is adapted."""
    matches = {module: _BLOCK.match(module) for module in updates}
    blocks = [int(match[1]) for match in matches.values() if match]
    return {match[2] if match else module for module, match in matches.items()}, min(blocks, default=layers)


def _adapted(keys: set[str], shapes: dict[str, tuple[int, int]], first: int) -> list[str]:
    """Modules that mlx-lm adapts, given those keys and the number of blocks."""
    found = []
    for module in shapes:
        match = _BLOCK.match(module)
        if (match and int(match[1]) >= first and match[2] in keys) or (not match and module in keys):
            found.append(module)
    return found


def read_mlx(folder: Path) -> Adapter:
    """An mlx-lm adapter folder as updates under transformers' names; modules filled with zeros are left out.

    Raises:
        InputError: not an mlx-lm LoRA adapter (DoRA and full fine-tunes are not converted).
    """
    from safetensors.numpy import load_file

    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / MLX_WEIGHTS)
    except FileNotFoundError as error:
        name = Path(error.filename or MLX_WEIGHTS).name
        raise InputError(f"no {name} in the MLX adapter", where=portable(str(folder)), fix="name a folder that mlx_lm.lora wrote") from None
    kind = settings.get("fine_tune_type", "lora")
    if kind != "lora":
        raise InputError(f"an MLX {kind} adapter cannot be converted to PEFT", where=SETTINGS, fix="train with --fine-tune-type lora")
    scale = float(settings["lora_parameters"]["scale"])
    updates = {}
    for name, a in tensors.items():
        module, _, side = name.rpartition(".")
        if side == "lora_a" and np.any(tensors[f"{module}.lora_b"]):
            b = tensors[f"{module}.lora_b"]
            module = _transformers_name(module)
            updates[module] = LoraUpdate(module, np.ascontiguousarray(a.T, np.float32), np.ascontiguousarray(b.T, np.float32), scale)
    other = [name for name in tensors if not name.endswith((".lora_a", ".lora_b"))]
    return Adapter(settings, updates, other)


def write_mlx_folder(folder: Path, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    """``adapters.safetensors`` and ``adapter_config.json``."""
    from safetensors.numpy import save_file

    save_file(tensors, folder / MLX_WEIGHTS, metadata={"format": "mlx"})
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def mlx_to_peft(mlx_folder: Path, peft_folder: Path, base: str) -> Path:
    """Writes a PEFT adapter folder out of an mlx-lm one.

    Args:
        base: model id of the base, for ``adapter_config.json``.

    Raises:
        InputError: DoRA, a full fine-tune, or files missing.
    """
    from safetensors.numpy import save_file

    adapter = read_mlx(mlx_folder).require_plain("a PEFT adapter")
    if not adapter.updates:
        raise InputError("the MLX adapter changes nothing: every lora_b is zero", where=portable(str(mlx_folder)), fix="train it first")
    rank = max(update.rank for update in adapter.updates.values())
    scale = next(iter(adapter.updates.values())).scale
    tensors = {}
    for module, update in adapter.updates.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = update.a
        tensors[f"base_model.model.{module}.lora_B.weight"] = update.b
    parameters = adapter.settings.get("lora_parameters", {})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": float(parameters.get("dropout", 0.0)),
        "target_modules": sorted(adapter.updates),
        "bias": "none",
        "inference_mode": True,
    }
    peft_folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, peft_folder / WEIGHTS, metadata={"format": "pt"})
    (peft_folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return peft_folder
