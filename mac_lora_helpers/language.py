"""The language part of a model that also takes images or sound: such a checkpoint is trained, evaluated and exported as a text model.

Text rows never reach a vision or audio tower, so an adapter there would stay as it is. What is left out is known from
``config.json`` alone; the weights of the language part are found under the names that its own text model has for them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError

#: Names in such a checkpoint → names in the text model (regular expressions, tried in turn).
RENAMED = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
    r"^model\.text_model\.": "model.",
}
_TEXT = "text_config"
FIX = "take a text model, or a vision-text model of the families in docs/models.md"


def left_out(settings: dict[str, Any]) -> list[str]:
    """What a ``config.json`` has besides a language model: ``["vision", "audio"]``; empty for a text model."""
    if not isinstance(settings.get(_TEXT), dict):
        return []
    parts = [name.removesuffix("_config") for name, value in settings.items() if name.endswith("_config") and isinstance(value, dict)]
    return [name for name in parts if name not in ("text", "quantization", "generation", "rope")]


def told(settings: dict[str, Any]) -> str:
    """For a model that takes more than text, what is done with it."""
    parts = left_out(settings)
    return "only its language part is trained, on text" + (f"; left out: {', '.join(parts)}" if parts else "")


def problem(settings: dict[str, Any]) -> str:
    """Why the language part of a ``config.json`` cannot be had alone; empty if nothing speaks against it."""
    kind = settings[_TEXT].get("model_type") if left_out(settings) else None
    if not kind:
        return ""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    whole = settings.get("model_type", "it")
    return "" if kind in KNOWN else f"{whole} takes more than text, and transformers has no text model for its language part ({kind})"


def notes(settings: dict[str, Any]) -> list[str]:
    """What notebook 02 says of such a checkpoint; nothing of a text model.

    Raises:
        InputError: its language part cannot be had alone.
    """
    if what := problem(settings):
        raise InputError(what, where="parameter model_id", fix=FIX)
    return [f"the model takes more than text: {told(settings)}"] if left_out(settings) else []


def language_part(config: Config) -> dict[str, Any]:
    """What ``AutoModelForCausalLM.from_pretrained`` takes besides for such a checkpoint; empty for a text model.

    Raises:
        InputError: transformers has no text model for its language part, or its weights have unknown names.
    """
    from transformers import AutoConfig

    whole = AutoConfig.from_pretrained(config.model_path, trust_remote_code=config.trust_remote_code)
    text, settings = whole.get_text_config(), whole.to_dict()
    if text is whole or not left_out(settings):
        return {}
    if what := problem(settings) or _lost_layers(Path(config.model_path), text):
        raise InputError(what, where="parameter model_id", fix=FIX)
    text.tie_word_embeddings = getattr(whole, "tie_word_embeddings", text.tie_word_embeddings)
    return {"config": text, "key_mapping": RENAMED}


def _lost_layers(folder: Path, text: Any) -> str:
    """Whether a decoder layer is not in the folder under a known name: its weights would be random numbers."""
    from safetensors import safe_open

    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as stream:
            found |= {_renamed(name) for name in stream.keys()}  # noqa: SIM118
    lost = [index for index in range(text.num_hidden_layers) if not any(name.startswith(f"model.layers.{index}.") for name in found)]
    return f"the weights of layer {lost[0]} of its language part are not there under a known name" if found and lost else ""


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = re.sub(old, new, name)
    return name
