"""The cheapest proof: what a file holds less the base, projected on what was trained, is 1 for every trained tensor.

0 is a layer that was left out, 2 a scale that was doubled, anything else another adapter. Rounding does not point along
the update, so it averages out; how far it may still move the projection is known from its size, and where that is too far
to tell right from wrong the tensor is not judged. Quantizing may point along it: of weights that lay on a grid before the
training it can make 1.6 of the update. There only what lies nearer to the base than to the tuned weight is wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.export.source import Updates
from mac_lora_helpers.language import RENAMED

#: A projection this far from 1 is wrong, and rounding of so many standard deviations is allowed on top.
_ALLOWED, _DEVIATIONS = 0.02, 6.0
#: Where rounding alone could move the projection further than this, nothing is said.
_BLIND = 0.5
#: What a quantizer may make of the update.
_QUANTIZED = (0.25, 2.5)


@dataclass
class Projections:
    """What was found in one file.

    Args:
        values: tensor → projection, of those that can be judged. blind: number of those that cannot.
        wrong: names of tensors with another update. changed: names of tensors that should be the base's and are not.
    """

    values: dict[str, float] = field(default_factory=dict)
    blind: int = 0
    wrong: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """In words; empty if all is as it should be."""
        told = []
        if self.wrong:
            shown = ", ".join(f"{name} ({self.values[name]:.2f} of its update)" for name in self.wrong[:3])
            told.append(f"{len(self.wrong)} of {len(self.values)} trained tensors are wrong: {shown}")
        if self.changed:
            told.append(f"{len(self.changed)} tensors that were not trained are not the base's: {', '.join(self.changed[:3])}")
        return told

    def to_dict(self) -> dict[str, Any]:
        found = list(self.values.values())
        return {"judged": len(found), "blind": self.blind, "least": _rounded(found, min), "most": _rounded(found, max)}

    def add(self, name: str, held: np.ndarray, base: np.ndarray, delta: np.ndarray, quantized: bool = False) -> None:
        """One trained tensor: as a file holds it, the base's, and the update."""
        difference = (held - base).astype(np.float64).ravel()
        update = delta.astype(np.float64).ravel()
        size = float(update @ update)
        if size == 0:
            return
        value = float(difference @ update) / size
        rest = difference - value * update
        deviation = math.sqrt(float(rest @ rest) / size / len(update))
        if not math.isfinite(value):
            value, deviation = 0.0, 0.0
        if _DEVIATIONS * deviation > _BLIND:
            self.blind += 1
            return
        self.values[name] = value
        low, high = _QUANTIZED if quantized else (1 - _ALLOWED, 1 + _ALLOWED)
        if not low - _DEVIATIONS * deviation * (not quantized) <= value <= high + _DEVIATIONS * deviation:
            self.wrong.append(name)


def _rounded(values: list[float], pick: Callable[[Iterable[float]], float]) -> float | None:
    return round(pick(values), 4) if values else None


def in_merged(folder: Path, base: Path, adapter: Updates) -> Projections | None:
    """The merged folder against the base's; None where the adapter is more than low-rank updates, or the names differ."""
    if not adapter.plain:
        return None
    held, original, found = Stored(folder), Stored(base), Projections()
    for module, update in adapter.modules.items():
        name = f"{module}.weight"
        if name not in held or name not in original:
            return None
        weight, delta = held[name], update.delta()
        delta = delta.T if adapter.settings.get("fan_in_fan_out") else delta
        if weight.shape != delta.shape:
            found.values[name] = 0.0
            found.wrong.append(name)
            continue
        found.add(name, weight, original[name], delta)
    return found


class Stored:
    """The weights of a model folder, each read from its safetensors file when asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        self._place = {_own_name(name): (file, name) for file in self._files for name in file.keys()}  # noqa: SIM118 (no dict)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored = self._place[name]
        return file.get_tensor(stored).float().numpy()


def _own_name(name: str) -> str:
    """A weight's name in the text model, where a checkpoint that also takes images has it under another."""
    for old, new in RENAMED.items():
        name = re.sub(old, new, name)
    return name


class GgufTensors:
    """A GGUF file's tensors and fields, each read when asked for."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.reader = GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}

    def values(self, name: str) -> np.ndarray:
        """Float32, rows first."""
        from gguf import quants

        tensor = self.tensors[name]
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        return values.reshape(tuple(int(size) for size in reversed(tensor.shape))).astype(np.float32)

    def raw(self, name: str) -> bytes:
        return np.asarray(self.tensors[name].data).tobytes()

    def field(self, key: str) -> Any:
        found = self.reader.get_field(key)
        return None if found is None else found.contents()

    def fields(self) -> dict[str, Any]:
        """Everything that says how the tensors are used: not the names and types of this one file."""
        skipped = ("general.", "GGUF.", "quantize.")
        return {key: self.field(key) for key in self.reader.fields if not key.startswith(skipped)}


def metadata_faults(path: Path, template: str | None, made_of: Path | None) -> list[str]:
    """What a GGUF file says of itself against the run's chat template and against the file that it was quantized from."""
    file, faults = GgufTensors(path), []
    if isinstance(template, str) and (found := file.field("tokenizer.chat_template")) != template:
        faults.append("the chat template was changed" if found else "the chat template was dropped")
    if made_of:
        mine, theirs = file.fields(), GgufTensors(made_of).fields()
        faults += [f"{key} is not what the F16 says" for key in theirs if mine.get(key) != theirs[key]][:3]
    return faults


def in_gguf(path: Path, base: Path, lora: Path, quantized: bool) -> Projections:
    """A model file against the base's and the adapter's, all three written by llama.cpp's converters in its own order.

    Args:
        quantized: then tensors without an update are not compared; they are the F16's, rounded.
    """
    held, original, found = GgufTensors(path), GgufTensors(base), Projections()
    updates = dict(lora_updates(lora))
    for name, delta in updates.items():
        if name not in held.tensors or held.tensors[name].shape.tolist() != original.tensors[name].shape.tolist():
            found.values[name] = 0.0
            found.wrong.append(name)
        else:
            found.add(name, held.values(name), original.values(name), delta(), quantized)
    if not quantized:
        rest = [name for name in original.tensors if name not in updates]
        found.changed = [name for name in rest if name not in held.tensors or not _same(held, original, name)]
    return found


def _same(held: GgufTensors, original: GgufTensors, name: str) -> bool:
    """Whether a tensor is the base's, or the base's rounded to the 16 bits that ``merged_dtype`` asked for."""
    if held.raw(name) == original.raw(name):
        return True
    mine, base = held.values(name), original.values(name)
    return mine.shape == base.shape and bool((np.abs(mine - base) <= np.abs(base) * 2.0**-8 + 2.0**-24).all())


def lora_updates(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """A LoRA GGUF's updates by the name of the tensor that they change."""
    file = GgufTensors(path)
    alpha = float(file.field("adapter.lora.alpha"))
    for name in file.tensors:
        weight, _, side = name.rpartition(".")
        if side == "lora_a":
            yield weight, lambda weight=weight: _delta(file, weight, alpha)


def _delta(file: GgufTensors, weight: str, alpha: float) -> np.ndarray:
    a, b = file.values(f"{weight}.lora_a"), file.values(f"{weight}.lora_b")
    return np.float32(alpha / a.shape[0]) * (b @ a)


def in_lora(path: Path, adapter: Updates) -> Projections:
    """A LoRA GGUF against the adapter: the converter reorders rows and renames, which leaves every update's size as it is."""
    mine = sorted((float(np.linalg.norm(delta())), name) for name, delta in lora_updates(path))
    theirs = sorted(update.norm() for update in adapter.modules.values())
    found = Projections()
    if len(mine) != len(theirs):
        found.changed = [f"{len(mine)} updates instead of {len(theirs)}"]
        return found
    for (size, name), wanted in zip(mine, theirs, strict=True):
        found.values[name] = size / wanted if wanted else 1.0
        if abs(found.values[name] - 1) > _ALLOWED:
            found.wrong.append(name)
    return found


def in_mlx(folder: Path, adapter: Updates, name_of: Callable[[str], str]) -> Projections:
    """An mlx-lm adapter against PEFT's."""

    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapters.safetensors")
    scale = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["lora_parameters"]["scale"]
    found = Projections()
    for module, update in adapter.modules.items():
        name, delta = name_of(module), update.delta()
        a, b = tensors.get(f"{name}.lora_a"), tensors.get(f"{name}.lora_b")
        held = np.zeros_like(delta) if a is None or b is None else np.float32(scale) * (a @ b).T
        found.add(name, held, np.zeros_like(delta), delta)
    return found
