"""Faults that exports have in the wild, planted into an F16 GGUF file in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mac_lora_helpers.export.equivalence import tensors
from mac_lora_helpers.export.equivalence.tensors import GgufTensors


def updates_scaled(f16: Path, base: Path, lora: Path, wanted: Callable[[str], float | None]) -> None:
    """Puts ``base + factor · update`` into the file for the tensors that ``wanted`` gives a factor."""
    from gguf import GGUFReader

    original, updates = GgufTensors(base), dict(tensors.lora_updates(lora))
    for tensor in GGUFReader(f16, "r+").tensors:
        factor = wanted(tensor.name)
        if tensor.name in updates and factor is not None:
            tensor.data[:] = (original.values(tensor.name) + np.float32(factor) * updates[tensor.name]()).astype(np.float16)


#: What happens to the update of a tensor, by its name in the file.
SCALED = {
    "one projection unmerged": lambda name: 0.0 if name == "blk.1.attn_v.weight" else None,
    "one layer unmerged": lambda name: 0.0 if name.startswith("blk.0.") else None,
    "alpha doubled": lambda name: 2.0,
    "rank-stabilised scale ignored": lambda name: 0.35,
    "untuned": lambda name: 0.0,
}


def rope_lost(path: Path) -> None:
    from gguf import GGUFReader

    GGUFReader(path, "r+").fields["llama.rope.freq_base"].parts[-1][0] = 10000.0


def template_dropped(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))


def vocabulary_shifted(path: Path) -> None:
    from gguf import GGUFReader

    table = next(tensor for tensor in GGUFReader(path, "r+").tensors if tensor.name == "token_embd.weight")
    table.data[:] = np.roll(table.data, 1, axis=0)
