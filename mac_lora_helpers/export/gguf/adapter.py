"""The adapter alone as a LoRA GGUF, for llama.cpp's ``--lora`` and Ollama's ``ADAPTER``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.export.adapter import Adapter, LoraUpdate
from mac_lora_helpers.export.gguf.file import write_tensors
from mac_lora_helpers.export.gguf.model import Tensor, architecture, gguf_names, interleave, permuted_heads


def write_adapter_file(path: Path, adapter: Adapter, config: Any, name: str) -> None:
    """Writes the LoRA matrices in float32.

    llama.cpp scales each update by one alpha for the file over the update's own rank. Alpha patterns and rank
    stabilisation are therefore folded into B.

    Args:
        config: the base's transformers config. name: for people.

    Raises:
        InputError: the adapter holds more than LoRA matrices of linear layers.
    """
    from gguf import GGUFWriter

    adapter.require_plain("a LoRA GGUF")
    alpha = float(adapter.settings["lora_alpha"])
    writer = GGUFWriter(path, architecture(config))
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    names = gguf_names([f"{module}.weight" for module in adapter.updates], config)
    plan = [
        pair for source, target in names.items() for pair in _pair(adapter.updates[source.removesuffix(".weight")], target, alpha, config)
    ]
    write_tensors(writer, plan)


def _pair(update: LoraUpdate, target: str, alpha: float, config: Any) -> list[tuple[Tensor, str]]:
    """A ``(r, in)`` and B ``(out, r)`` in llama.cpp's row order."""
    factor = np.float32(update.scale / (alpha / update.rank))
    heads = permuted_heads(f"{update.module}.weight", config)
    b = interleave(update.b, heads) if heads else update.b
    sides = {"lora_a": update.a, "lora_b": b if factor == 1 else b * factor}
    return [(Tensor(f"{target}.{side}", "", values.shape, lambda values=values: values), "F32") for side, values in sides.items()]
