"""A dense Llama, Qwen2, Qwen3 or Mistral as GGUF metadata and tensors, named and ordered as llama.cpp loads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.gguf.tokenizer import OFFICIAL

#: transformers' ``model_type`` → GGUF architecture. Mistral is Llama to llama.cpp.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_ROPE_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Args:
        name: GGUF name. source: name in transformers, empty for a computed one.
        shape: row-major. load: gives float32 values of that shape, rows in llama.cpp's order.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


def architecture(config: Any) -> str:
    """The GGUF architecture of a transformers config.

    Raises:
        InputError: a family or a setting that is not written here, with the official converter's command.
    """
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise InputError(f"{config.model_type} models are not written as GGUF here (only {known})", where="model_type", fix=OFFICIAL)
    rope = rope_settings(config)
    if rope["rope_type"] not in _ROPE_KINDS:
        raise InputError(f"RoPE scaling {rope['rope_type']} is not written as GGUF here", where="rope_parameters", fix=OFFICIAL)
    if config.hidden_act != "silu":
        raise InputError(
            f"llama.cpp computes {config.model_type} with SiLU, this model uses {config.hidden_act}", where="hidden_act", fix=OFFICIAL
        )
    return ARCHITECTURES[config.model_type]


def rope_settings(config: Any) -> dict[str, Any]:
    """``rope_theta``, ``rope_type`` and what the type needs."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    return {"rope_type": rope.pop("rope_type", None) or "default", "rope_theta": rope.pop("rope_theta", 10000.0), **rope}


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def metadata(config: Any) -> dict[str, int | float | str]:
    """The architecture's keys and values; ints are uint32 in the file."""
    arch, size, rope = architecture(config), head_size(config), rope_settings(config)
    values: dict[str, int | float | str] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": size,
        "rope.freq_base": float(rope["rope_theta"]),
        **_rope_scaling(config, rope),
    }
    return {f"{arch}.{key}": value for key, value in values.items()}


def _rope_scaling(config: Any, rope: dict[str, Any]) -> dict[str, int | float | str]:
    """Linear and YaRN go into keys; Llama 3's into the tensor ``rope_freqs.weight``."""
    if rope["rope_type"] not in ("linear", "yarn"):
        return {}
    values = {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        values["rope.scaling.original_context_length"] = int(original)
        values["rope.scaling.yarn_beta_fast"] = float(rope.get("beta_fast") or 32)
        values["rope.scaling.yarn_beta_slow"] = float(rope.get("beta_slow") or 1)
    return values


def gguf_names(names: Iterable[str], config: Any) -> dict[str, str]:
    """transformers' weight names → GGUF names, in the given order; a tied head has none.

    Raises:
        InputError: a weight that has no place in the architecture.
    """
    from gguf import MODEL_ARCH_NAMES, TensorNameMap

    arch = architecture(config)
    kind = next(key for key, name in MODEL_ARCH_NAMES.items() if name == arch)
    places, found = TensorNameMap(kind, config.num_hidden_layers), {}
    for source in names:
        if source.endswith("rotary_emb.inv_freq") or (source == "lm_head.weight" and config.tie_word_embeddings):
            continue
        name = places.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"{source} has no place in a {arch} GGUF", where="merged weights", fix=OFFICIAL)
        found[source] = name
    return found


def tensors(weights: Mapping[str, Any], config: Any) -> Iterator[Tensor]:
    """Every tensor of the file, in the weights' order.

    Args:
        weights: transformers names → tensors; a value may be loaded on access.

    Raises:
        InputError: a weight that has no place in the architecture.
    """
    if rope_settings(config)["rope_type"] == "llama3":
        factors = llama3_factors(config)
        yield Tensor("rope_freqs.weight", "", factors.shape, lambda: factors)
    for source, name in gguf_names(weights, config).items():
        yield Tensor(name, source, tuple(weights[source].shape), _loader(weights, source, config))


def _loader(weights: Mapping[str, Any], source: str, config: Any) -> Callable[[], np.ndarray]:
    heads = permuted_heads(source, config)

    def load() -> np.ndarray:
        values = weights[source].detach().float().cpu().numpy()
        return interleave(values, heads) if heads else values

    return load


def permuted_heads(source: str, config: Any) -> int:
    """Number of heads if the rows of this weight are reordered, else 0.

    transformers rotates the halves of a head, llama.cpp's ``llama`` architecture rotates neighbours: its query and
    key rows are interleaved. The Qwen architectures rotate halves and keep the order.
    """
    if ARCHITECTURES[config.model_type] != "llama":
        return 0
    part = source.rpartition(".")[0]
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part.rpartition(".")[2], 0)


def interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from two halves to neighbours: 0, d/2, 1, d/2 + 1, …"""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def separate(values: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of :func:`interleave`."""
    shape = values.shape
    return values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def llama3_factors(config: Any) -> np.ndarray:
    """What llama.cpp divides each frequency by, float32 ``(head size / 2,)``: unscaled over scaled frequency."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    size = head_size(config)
    plain = rope_settings(config)["rope_theta"] ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    return (plain / scaled.double().numpy()).astype(np.float32)


class StoredWeights(Mapping[str, Any]):
    """The weights of a model folder, each read from its safetensors file when asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        self._place = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        if not self._place:
            raise InputError("no safetensors files in the model folder", where=folder.name, fix="run the merge again")

    def __getitem__(self, name: str) -> Any:
        return self._place[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)
