"""``export/mlx``: the adapter as mlx-lm loads it; and, if asked for, the merged model quantized by mlx-lm itself.

PEFT stores A ``(r, in)`` and B ``(out, r)`` per module with scales from patterns; mlx-lm stores their transposes with
one rank and one scale for all, in ``num_layers`` blocks counted from the last.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.adapter import SETTINGS
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.gguf.write import ToolFailed, run_tool
from mac_lora_helpers.export.source import Source, Update, Updates

MLX_WEIGHTS = "adapters.safetensors"
_BLOCK = re.compile(r"^model\.(?:layers|h)\.(\d+)\.(.+)$")
#: Families whose blocks bear another name in mlx-lm: ``model_type`` → (prefix in transformers, prefix in mlx-lm).
_BLOCKS = {"gpt2": ("transformer.h.", "model.h."), "gpt_neox": ("gpt_neox.layers.", "model.h.")}


def available() -> bool:
    """Whether mlx-lm can be imported here."""
    return importlib.util.find_spec("mlx_lm") is not None and importlib.util.find_spec("mlx") is not None


@dataclass
class Mlx:
    """What was written for mlx-lm.

    Args:
        rows: (file, kind, bytes, note) for a table. model: the quantized folder, if one was asked for.
    """

    rows: list[tuple[str, str, int | None, str]] = field(default_factory=list)
    adapter: Path | None = None
    model: Path | None = None


def write_mlx(run: RunDir, config: Config, source: Source) -> Mlx:
    """Writes the adapter into ``export/mlx`` and, with ``mlx_export_bits`` 4 or 8, the quantized model into a folder of it.

    What cannot be written is a row of the result and stops nothing.
    """
    made = Mlx()
    shutil.rmtree(run.path("mlx"), ignore_errors=True)
    try:
        made.adapter, note = _write_adapter(run, source)
        size = sum(file.stat().st_size for file in made.adapter.iterdir())
        made.rows.append(("mlx/adapters.safetensors", "MLX adapter", size, note))
    except InputError as error:
        made.rows.append(("–", "MLX adapter: not written", None, f"{error.what}; to do: {error.fix}"))
    if not config.mlx_export_bits:
        made.rows.append(("merged/", "MLX model", None, "mlx-lm and LM Studio load the merged folder as it is; smaller: mlx_export_bits"))
        return made
    try:
        made.model = _quantize(run, config.mlx_export_bits)
        size = sum(file.stat().st_size for file in made.model.rglob("*") if file.is_file())
        made.rows.append((f"mlx/{made.model.name}/", f"MLX model, {config.mlx_export_bits} bits", size, "for mlx-lm and LM Studio"))
    except (InputError, ToolFailed) as error:
        made.rows.append(("–", f"MLX model, {config.mlx_export_bits} bits: not written", None, f"{error.what}; to do: {error.fix}"))
    return made


def _quantize(run: RunDir, bits: int) -> Path:
    """``mlx_lm.convert`` in a process of its own."""
    if not available():
        raise InputError("mlx-lm is not installed", where="mlx_export_bits", fix="pip install mlx-lm")
    target = run.path("mlx") / f"model-{bits}bit"
    target.parent.mkdir(exist_ok=True)
    arguments = ["--hf-path", str(run.need("merged")), "--mlx-path", str(target), "-q", "--q-bits", str(bits)]
    run_tool([sys.executable, "-P", "-m", "mlx_lm", "convert", *arguments, *_group(run.path("merged"))], target.parent)
    return target


def _group(merged: Path) -> list[str]:
    """Weights are quantized in groups of 64; widths that 64 does not divide take 32, or layers would stay as they are in silence."""
    settings = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    widths = [settings.get("hidden_size") or 64, settings.get("intermediate_size") or 64]
    return [] if all(width % 64 == 0 for width in widths) else ["--q-group-size", "32"]


def _write_adapter(run: RunDir, source: Source) -> tuple[Path, str]:
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(source.base, trust_remote_code=source.config.trust_remote_code)
    if settings.get_text_config() is not settings:
        raise InputError("the base sees pictures too, and mlx-lm names its layers otherwise", where="model_type", fix="use export/merged")
    shapes = linear_shapes(settings, source.config.trust_remote_code)
    tensors, written = to_mlx(source.updates, shapes, settings.num_hidden_layers, settings.model_type)
    folder = run.path("mlx")
    folder.mkdir(parents=True, exist_ok=True)
    write_mlx_folder(folder, tensors, written)
    parameters = written["lora_parameters"]
    return folder, f"rank {parameters['rank']}, scale {parameters['scale']:g}, {len(tensors) // 2} layers"


def to_mlx(
    adapter: Updates, shapes: dict[str, tuple[int, int]], layers: int, model_type: str = ""
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


def mlx_name(module: str, model_type: str) -> str:
    """A transformers module's name in mlx-lm."""
    ours, theirs = _BLOCKS.get(model_type, ("", ""))
    return theirs + module.removeprefix(ours) if ours and module.startswith(ours) else module


def _renamed(adapter: Updates, shapes: dict[str, tuple[int, int]], model_type: str) -> dict[str, Update]:
    """The updates under mlx-lm's names."""
    found = {}
    for module, update in adapter.modules.items():
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


def _keys(updates: dict[str, Update], layers: int) -> tuple[set[str], int]:
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


def linear_shapes(settings: Any, trust_remote_code: bool = False) -> dict[str, tuple[int, int]]:
    """``(out, in)`` of every linear layer of the base that has a weight of its own; no weights are loaded.

    A head that shares the embedding's weight is left out. GPT-2's Conv1D is a linear layer with its weight transposed.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings() if settings.get_text_config().tie_word_embeddings else None
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head:
            rows, columns = module.weight.shape
            shapes[name] = (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
    return shapes


def write_mlx_folder(folder: Path, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    """``adapters.safetensors`` and ``adapter_config.json``."""
    from safetensors.numpy import save_file

    save_file(tensors, folder / MLX_WEIGHTS, metadata={"format": "mlx"})
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
