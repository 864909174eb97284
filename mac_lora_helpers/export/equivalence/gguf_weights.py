"""A GGUF file read back and held against the run: metadata, tokenizer, template, every tensor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.export.equivalence.weights import SHIFTED, Expected, Stored, weight_faults
from mac_lora_helpers.export.gguf.model import gguf_names, interleave, llama3_factors, metadata, permuted_heads, rope_settings, separate
from mac_lora_helpers.export.gguf.tokenizer import Vocabulary
from mac_lora_helpers.export.gguf.types import OWN

TEMPLATE_DROPPED = "chat template dropped"
TEMPLATE_CHANGED = "chat template changed"
END_CHANGED = "end token changed"
ROPE_BASE = "RoPE base lost"
ROPE_SCALING = "RoPE scaling lost"
TOKENIZER = "tokenizer changed"
METADATA = "metadata changed"


class GgufContent:
    """A GGUF file's fields and tensors.

    Args:
        config: the transformers config of the model that it should hold.
    """

    def __init__(self, path: Path, config: Any) -> None:
        from gguf import GGUFReader

        self._reader, self._config = GGUFReader(path), config
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def field(self, key: str) -> Any:
        """A field's value, or None."""
        found = self._reader.get_field(key)
        return None if found is None else found.contents()

    def faults(self, vocabulary: Vocabulary, expected: Expected, cast: str) -> list[str]:
        """Every fault that can be seen without running the file.

        Args:
            cast: type that the merged weights were cast to before they were written here.
        """
        return [
            *self._template(vocabulary),
            *self._tokenizer(vocabulary),
            *self._settings(),
            *weight_faults(self.stored(expected, cast), expected),
        ]

    def _template(self, vocabulary: Vocabulary) -> list[str]:
        found = self.field("tokenizer.chat_template")
        if found == vocabulary.template:
            return []
        return [TEMPLATE_DROPPED if not found else TEMPLATE_CHANGED]

    def _tokenizer(self, vocabulary: Vocabulary) -> list[str]:
        faults = []
        if self.field("tokenizer.ggml.eos_token_id") != vocabulary.special.get("eos"):
            wanted = vocabulary.special.get("eos")
            faults.append(f"{END_CHANGED}: {self.field('tokenizer.ggml.eos_token_id')} instead of {wanted}")
        tokens = self.field("tokenizer.ggml.tokens") or []
        if tokens != vocabulary.tokens:
            faults.append(SHIFTED if is_shifted(tokens, vocabulary.tokens) else f"{TOKENIZER}: tokens")
        wanted = {"merges": vocabulary.merges or None, "token_type": vocabulary.types, "pre": vocabulary.pre, "model": vocabulary.model}
        wanted |= {f"add_{name}": value for name, value in (("bos_token", vocabulary.add["bos"]), ("eos_token", vocabulary.add["eos"]))}
        wanted["bos_token_id"] = vocabulary.special.get("bos")
        return faults + [f"{TOKENIZER}: {key}" for key, value in wanted.items() if self.field(f"tokenizer.ggml.{key}") != value]

    def _settings(self) -> list[str]:
        faults, lost = [], set()
        for key, value in metadata(self._config).items():
            found = self.field(key)
            if found is not None and (found == value or (isinstance(value, float) and abs(found - value) <= 1e-6 * abs(value))):
                continue
            name = ROPE_BASE if key.endswith("rope.freq_base") else ROPE_SCALING if ".rope.scaling." in key else f"{METADATA}: {key}"
            lost.add(name)
        faults.extend(sorted(lost))
        if rope_settings(self._config)["rope_type"] == "llama3" and not self._has_factors():
            faults.append(ROPE_SCALING)
        return faults

    def _has_factors(self) -> bool:
        tensor = self._tensors.get("rope_freqs.weight")
        return tensor is not None and np.allclose(tensor.data, llama3_factors(self._config), rtol=1e-4)

    def stored(self, expected: Expected, cast: str) -> Iterator[tuple[str, Stored]]:
        """Each weight under its transformers name, rows in transformers' order."""
        for source, name in self._names(expected).items():
            tensor = self._tensors[name]
            kind = tensor.tensor_type.name
            values = _dequantized(tensor)
            plain, other = row_orders(values, source, self._config)
            rounding = _rounding(kind, cast, permuted_heads(source, self._config))
            yield source, Stored(plain, rounding, kind == "F32" and cast == "float32", other)

    def _names(self, expected: Expected) -> dict[str, str]:
        """transformers name → GGUF name, for the tensors that are there."""
        return {source: name for source, name in gguf_names(expected.tensors, self._config).items() if name in self._tensors}

    def state_dict(self, expected: Expected) -> dict[str, Any]:
        """All weights dequantized, as transformers takes them."""
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(weight.values)) for name, weight in self.stored(expected, "float32")}


def row_orders(values: np.ndarray, source: str, config: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """A GGUF weight's rows in transformers' order; and, for queries and keys, in the order that a mistake would need."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(source.split(".")[-2], 0)
    if not heads:
        return values, None
    return (separate(values, heads), values) if permuted_heads(source, config) else (values, separate(values, heads))


def is_shifted(tokens: list[str], wanted: list[str]) -> bool:
    """Whether nearly all tokens stand one place off."""
    length = min(len(tokens), len(wanted)) - 1
    if length < 1:
        return False
    later = sum(tokens[index + 1] == wanted[index] for index in range(length))
    earlier = sum(tokens[index] == wanted[index + 1] for index in range(length))
    return max(later, earlier) > 0.9 * length


def _dequantized(tensor: Any) -> np.ndarray:
    """Float32 values, row-major shape."""
    from gguf import quants

    values = quants.dequantize(tensor.data, tensor.tensor_type)
    return values.reshape(tuple(int(size) for size in reversed(tensor.shape))).astype(np.float32)


def _rounding(kind: str, cast: str, heads: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """What the cast and the type do to values; None for types that are only quantized elsewhere."""
    if kind not in OWN:
        return None
    if kind == "F32" and cast == "float32":
        return lambda values: values

    def apply(values: np.ndarray) -> np.ndarray:
        import torch
        from gguf import GGMLQuantizationType, quants

        values = torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, cast)).float().numpy()
        if kind == "F32":
            return values
        rows = interleave(values, heads) if heads else values
        type_ = GGMLQuantizationType[kind]
        rounded = quants.dequantize(quants.quantize(np.ascontiguousarray(rows), type_), type_).reshape(rows.shape)
        return separate(rounded, heads) if heads else rounded

    return apply


def lora_updates(path: Path, config: Any, names: Iterable[str]) -> dict[str, Callable[[], tuple[np.ndarray, np.ndarray | None]]]:
    """A LoRA GGUF's updates by transformers module, rows in transformers' order; see ``update_faults``.

    Args:
        names: transformers' weight names of the whole model.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    alpha = float(reader.get_field("adapter.lora.alpha").contents())
    sources = {name: source for source, name in gguf_names(names, config).items()}
    updates = {}
    for name in found:
        weight, _, side = name.rpartition(".")
        if side == "lora_a":
            module = sources.get(weight, weight).removesuffix(".weight")
            updates[module] = functools.partial(_lora_update, found[name], found.get(f"{weight}.lora_b"), alpha, f"{module}.weight", config)
    return updates


def _lora_update(a: Any, b: Any, alpha: float, source: str, config: Any) -> tuple[np.ndarray, np.ndarray | None]:
    left, right = _dequantized(a), _dequantized(b)
    values = np.float32(alpha / left.shape[0]) * (right @ left)
    return row_orders(values, source, config)
