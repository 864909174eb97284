"""The merged model on disk: a folder that transformers 4 and 5, mlx-lm, vLLM and llama.cpp's converter read alike."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.source import Source
from mac_lora_helpers.model import quiet

#: Types in which merged weights may lie.
DTYPES = ("float32", "float16", "bfloat16")
#: A cast whose rounding is larger than this share of the update (Frobenius norms) is not made by itself.
_SHARE = 0.5
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class Merged:
    """What was written.

    Args:
        dtype: of the stored weights. cast: how they came to it, in words. head: what was done about a tied head.
        modules: adapted linear layers. bytes: size of the folder.
    """

    dtype: str
    cast: str
    head: str
    modules: int
    bytes: int

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, meaning) for a table."""
        return [
            ("layers merged", str(self.modules), "linear layers that carry an update"),
            ("weights", self.cast, "merged in float32 on the CPU, then cast"),
            ("output head", self.head, "a head that shares the embedding's weights must not change with it"),
            ("size", f"{self.bytes / 1e6:.1f} MB", "export/merged"),
        ]


def write_merged(model: Any, run: RunDir, source: Source, head: str = "") -> Merged:
    """Writes ``export/merged``: weights, config, generation settings, and the base's own tokenizer files.

    With ``merged_dtype=auto`` the weights get the base's own type, unless that rounding is large beside the update.

    Args:
        model: what ``merge_and_unload()`` gave, in float32. head: what ``source.prepare`` said.

    Raises:
        CheckFailed: a merged weight is not finite.
    """
    adapter = source.updates
    if broken := [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]:
        raise CheckFailed(f"{broken[0]} is not finite after the merge", where="adapter", fix="train again; see 03's audit")
    dtype, cast = _choose(model, source, adapter)
    with run.folder("merged") as folder:
        model.generation_config.eos_token_id = list(source.ends) if len(source.ends) > 1 else source.ends[0]
        with quiet():
            own_names = "key_mapping" in source.options  # else the names of the checkpoint with its towers would come back
            model.save_pretrained(folder, state_dict=_cast(model, dtype), save_original_format=not own_names)
        copy_tokenizer(source, folder)
        path = folder / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.update(older_keys(settings), dtype=dtype, torch_dtype=dtype)
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
    return Merged(dtype, cast, head, len(adapter.modules), size)


def stored_dtype(source: Source) -> str:
    """The type that the base's own files have; float32 when they do not say."""
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(source.base, trust_remote_code=source.config.trust_remote_code).get_text_config().dtype
    name = str(stored).removeprefix("torch.")
    return name if name in DTYPES else "float32"


def _choose(model: Any, source: Source, adapter: Any) -> tuple[str, str]:
    """The stored type, and the cast in words."""
    stored, wanted = stored_dtype(source), source.config.merged_dtype
    dtype, note = stored if wanted == "auto" else wanted, ""
    if wanted == "auto" and dtype != "float32" and (share := _rounding(model, adapter, dtype)) > _SHARE:
        dtype, note = "float32", f"; rounding to {stored} would be {share:.0%} of the update"
    cast = "float32, no cast" if dtype == "float32" else f"float32 → {dtype}"
    return dtype, f"{cast} (the base is stored as {stored}{note})"


def _rounding(model: Any, adapter: Any, dtype: str) -> float:
    """What a cast takes away from the merged layers, as a share of what the update put in."""
    import torch

    lost = put_in = 0.0
    for module, update in adapter.modules.items():
        weight = model.get_submodule(module).weight if _has(model, module) else None
        if weight is not None:
            lost += float((weight - weight.to(getattr(torch, dtype)).to(weight.dtype)).double().square().sum())
            put_in += update.norm() ** 2
    return math.sqrt(lost / put_in) if put_in else 0.0


def _has(model: Any, module: str) -> bool:
    try:
        return hasattr(model.get_submodule(module), "weight")
    except AttributeError:
        return False


def _cast(model: Any, dtype: str) -> dict[str, Any]:
    """The weights in another type; those that share memory still do."""
    import torch

    done: dict[int, Any] = {}
    return {name: done.setdefault(tensor.data_ptr(), tensor.to(getattr(torch, dtype))) for name, tensor in model.state_dict().items()}


def copy_tokenizer(source: Source, folder: Path) -> None:
    """The base's own tokenizer files, which every program reads; what transformers 5 writes into its own only it can read."""
    for pattern in (*_TOKENIZER_FILES, "chat_template*", "additional_chat_templates/*"):
        for file in source.base.glob(pattern):
            target = folder / file.relative_to(source.base)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _keep_template(source.tokenizer.chat_template, folder)


def _keep_template(template: Any, folder: Path) -> None:
    """The chat template that was trained with, where the base's files hold another."""
    from transformers import AutoTokenizer

    if isinstance(template, str) and AutoTokenizer.from_pretrained(folder).chat_template != template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def older_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """What mlx-lm and transformers 4 want in ``config.json`` under the names that transformers 5 gave up.

    Without them mlx-lm refuses the config (GPT-2, GPT-NeoX) or silently falls back to a default (RoPE, Gemma 3).
    """
    keys, kind = _rope_keys(settings), settings.get("model_type")
    if kind == "gpt2" and "n_positions" in settings:
        keys["n_ctx"] = settings["n_positions"]
    if kind == "gpt_neox" and "rope_theta" in keys:
        keys["rotary_emb_base"] = keys["rope_theta"]
        keys["rotary_pct"] = keys.get("partial_rotary_factor", 1.0)
    if kind == "gemma3_text" and settings.get("_sliding_window_pattern"):
        keys["sliding_window_pattern"] = settings["_sliding_window_pattern"]
    return keys


def _rope_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and, where it applies, ``rope_scaling`` and ``partial_rotary_factor`` in the older form.

    Gemma 3 has one set for each kind of layer: the older form gives the sliding layers' base as ``rope_local_base_freq``.
    Empty when the config already has the older keys or has no RoPE settings at all.
    """
    rope = dict(settings.get("rope_parameters") or {})
    local = {}
    if "full_attention" in rope:
        if settings.get("model_type") != "gemma3_text":  # other families' loaders take the new form, and trip over the old
            return {}
        local = {"rope_local_base_freq": (rope.get("sliding_attention") or {}).get("rope_theta", 10000.0)}
        rope = dict(rope["full_attention"] or {})
    if "rope_theta" not in rope:
        return {}
    keys: dict[str, Any] = {"rope_theta": rope.pop("rope_theta"), **local}
    if "partial_rotary_factor" in rope:
        keys["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.get("rope_type", "default")
    if kind != "default":
        keys["rope_scaling"] = {**rope, "type": kind}
    return keys
