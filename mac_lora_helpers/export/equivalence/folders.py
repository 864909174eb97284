"""Faults that can be seen in folders: the merged model, the PEFT adapter, the MLX adapter."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.export.adapter import SETTINGS
from mac_lora_helpers.export.equivalence.gguf_weights import (
    END_CHANGED,
    METADATA,
    ROPE_BASE,
    ROPE_SCALING,
    TEMPLATE_CHANGED,
    TEMPLATE_DROPPED,
    TOKENIZER,
    is_shifted,
)
from mac_lora_helpers.export.equivalence.weights import DOUBLED, RANK_SCALE, SCALED, SHIFTED, Expected, Stored, update_faults, weight_faults
from mac_lora_helpers.export.gguf.model import StoredWeights, rope_settings
from mac_lora_helpers.export.gguf.tokenizer import Vocabulary, read_vocabulary
from mac_lora_helpers.export.mlx.adapter import read_mlx
from mac_lora_helpers.export.mlx.config import mlx_keys


def merged_faults(folder: Path, config: Any, tokenizer: Any, vocabulary: Vocabulary | None, expected: Expected) -> list[str]:
    """Faults of the merged folder.

    Args:
        config: transformers config of base and adapter (head untied if need be). tokenizer: the run's.
        vocabulary: read from it, as many rows as the embedding.
    """
    from transformers import AutoConfig, AutoTokenizer

    found, own = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    faults = [*_rope(found, config), *mlx_faults(folder)]
    if own.eos_token_id != tokenizer.eos_token_id or _generation_end(folder, tokenizer.eos_token_id):
        faults.append(f"{END_CHANGED}: {own.eos_token_id} in the tokenizer, {_ends(folder)} in the generation settings")
    if own.chat_template != tokenizer.chat_template:
        faults.append(TEMPLATE_CHANGED if own.chat_template else TEMPLATE_DROPPED)
    faults += tokenizer_faults(own, vocabulary) if vocabulary else []
    return [*faults, *weight_faults(_stored(folder, stored_cast(folder), expected, found.tie_word_embeddings), expected)]


def stored_cast(folder: Path) -> str:
    """Type that the merged weights were cast to; float32 where the config cannot be read."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "float32"
    return str(settings.get("dtype") or settings.get("torch_dtype") or "float32")


def tokenizer_faults(tokenizer: Any, vocabulary: Vocabulary) -> list[str]:
    """Whether a tokenizer holds other tokens or merges."""
    found = read_vocabulary(tokenizer, len(vocabulary.tokens))
    if found.tokens != vocabulary.tokens:
        return [SHIFTED if is_shifted(found.tokens, vocabulary.tokens) else f"{TOKENIZER}: tokens"]
    same = found.merges == vocabulary.merges and found.pre == vocabulary.pre and found.scores == vocabulary.scores
    return [] if same else [f"{TOKENIZER}: merges or pre-tokenizer"]


def mlx_faults(folder: Path) -> list[str]:
    """Settings that mlx-lm would not find in ``config.json``."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {"rope_theta": ROPE_BASE, "rope_scaling": ROPE_SCALING}
    return [
        f"{names.get(key, METADATA)} for mlx-lm: no {key} in config.json"
        for key, value in mlx_keys(settings).items()
        if settings.get(key) != value
    ]


def adapter_faults(folder: Path, config: Config) -> list[str]:
    """Whether the adapter's own settings are those of the training run."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if config.adapter_dir:
        return []
    alpha, rank = settings["lora_alpha"], settings["r"]
    faults = []
    if alpha != config.lora_alpha:
        faults.append(f"{DOUBLED if alpha == 2 * config.lora_alpha else SCALED}: lora_alpha is {alpha}, trained with {config.lora_alpha}")
    if rank != config.lora_r:
        faults.append(f"{SCALED}: r is {rank}, trained with {config.lora_r}")
    trained = getattr(config, "use_rslora", None)
    if trained is not None and bool(settings.get("use_rslora")) != trained:
        faults.append(f"{RANK_SCALE}: use_rslora is {settings.get('use_rslora')}, trained with {trained}")
    return faults


def mlx_adapter_faults(folder: Path, expected: Expected) -> list[str]:
    """Faults of the MLX adapter's updates."""
    updates = read_mlx(folder).updates
    found = {module: functools.partial(lambda update: (update.delta(), None), update) for module, update in updates.items()}
    return update_faults(found, expected)


def _rope(found: Any, wanted: Any) -> list[str]:
    mine, theirs = rope_settings(found), rope_settings(wanted)
    faults = [ROPE_BASE] if mine.pop("rope_theta") != theirs.pop("rope_theta") else []
    return faults + ([ROPE_SCALING] if any(mine.get(key) != value for key, value in theirs.items()) else [])


def _ends(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    return [] if value is None else value if isinstance(value, list) else [value]


def _generation_end(folder: Path, end: int | None) -> bool:
    """Whether the generation settings name other end tokens than the tokenizer's."""
    ends = _ends(folder)
    return bool(ends) and end is not None and end not in ends


def _stored(folder: Path, cast: str, expected: Expected, tied: bool) -> Iterator[tuple[str, Stored]]:
    import torch

    weights = StoredWeights(folder)
    for name in expected.tensors:
        file_name = expected.saved.get(name, name)
        if file_name in weights and not (tied and name == "lm_head.weight"):
            rounding = None if cast == "float32" else lambda values: torch.from_numpy(values).to(getattr(torch, cast)).float().numpy()
            yield name, Stored(weights[file_name].float().numpy(), rounding or (lambda values: values), cast == "float32")
