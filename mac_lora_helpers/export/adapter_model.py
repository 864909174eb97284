"""The base with the adapter on, and plain model folders, in float32 on the CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.adapter import SETTINGS
from mac_lora_helpers.files import portable
from mac_lora_helpers.model import load_base, quiet


def load_adapted(config: Config, folder: Path) -> tuple[Any, str]:
    """Base in float32 on the CPU with the adapter on (eval mode), and what was done about a tied head.

    Raises:
        InputError: the adapter's modules or shapes are not the base's.
    """
    from peft import PeftModel

    base = load_base(config)
    stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    head = untie_if_needed(base, stored)
    try:
        with quiet():
            model = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        where = f"adapter {portable(str(folder))}, base {portable(config.model_id)}"
        raise InputError(f"the adapter does not fit the base: {reason}", where=where, fix="name the model it was trained on") from error
    model.requires_grad_(False)
    return model.float().eval(), head


def load_plain(folder: Path | str) -> Any:
    """A model folder in float32 on the CPU, eval mode."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()


def untie_if_needed(base: Any, settings: dict[str, Any]) -> str:
    """Gives the head its own copy of a shared weight when the adapter changes only one of the two uses.

    Merging into the shared tensor would change the embedding and the head alike (the drift of
    tied Qwen2.5 models after a merge).
    """
    if not base.config.get_text_config().tie_word_embeddings:
        return "separate weights in the base"
    ends = (base.get_output_embeddings(), base.get_input_embeddings())
    names = [name for name, module in base.named_modules() if any(module is end for end in ends)]
    touched = sorted(name.rpartition(".")[2] for name in names if _is_named(name, settings))
    touched = touched or (["the embedding"] if settings.get("trainable_token_indices") else [])
    if not touched or settings.get("ensure_weight_tying"):
        return "shares the embedding's weights, untouched by the adapter" if not touched else "shares the embedding's weights, tied adapter"
    import torch

    head = base.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    base.config.get_text_config().tie_word_embeddings = False
    return f"untied: the adapter trains {' and '.join(touched)} alone"


def _is_named(module: str, settings: dict[str, Any]) -> bool:
    """Whether the adapter's settings name a module, by PEFT's rules: a regular expression, full names or their ends."""
    targets, saved = settings.get("target_modules") or [], settings.get("modules_to_save") or []
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, module)) or _ends_with(module, saved)
    return _ends_with(module, [*targets, *saved])


def _ends_with(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
