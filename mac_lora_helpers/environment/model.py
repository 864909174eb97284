"""The model a run starts from: how many parameters, text or vision, where it lies. Downloads nothing, loads nothing."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.environment.probe import Probe, this_machine
from mac_lora_helpers.errors import UserError

#: Families whose MLP has two matrices (up, down); all others here have a gate as well.
_PLAIN_MLP = {"gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "gpt_bigcode", "starcoder2", "stablelm_epoch"}
#: Families that tie the output head to the embedding unless the config says otherwise.
_TIED = {"gpt2", "gpt_neo", "opt", "bloom", "falcon", "gpt_bigcode", "gemma", "gemma2", "gemma3_text", "cohere", "cohere2"}
_VISION_NAME = re.compile(
    r"(?i)(?:^|[-_/.\d])(vlm?\d*|vision|llava|pixtral|paligemma|smolvlm\d*|idefics\d*|internvl\d*|moondream\d*|fuyu|florence|molmo|omni|"
    r"multimodal|minicpm-?[vo])(?=[-_.\d]|$)"
)
_QUANTIZED_NAME = re.compile(r"(?i)(?:^|[-_.])(bnb-4bit|4bit|8bit|int4|int8|gptq|awq|gguf|mxfp4|nf4|fp8)(?=[-_.]|$)")
_SIZE_NAME = re.compile(r"(?<![A-Za-z\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z\d])")


@dataclass(frozen=True)
class Model:
    """What is known about the model without loading it.

    Attributes:
        name: as the user gave it.
        parameters: their number; ``None`` if unknown.
        source: how the number was found.
        kind: ``text``, ``vision`` (takes images too), ``other`` (no causal language model) or ``unknown``.
        local: config and weights are on this machine.
        quantized: the kind of quantization, empty if none is known.
        shape: ``hidden layers vocab intermediate heads`` where the config tells.
        problem: why it cannot be used at all; empty if nothing speaks against it.
        fix: what mends that, where it is known.
    """

    name: str
    parameters: int | None = None
    source: str = "unknown"
    kind: str = "unknown"
    local: bool = False
    quantized: str = ""
    shape: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    fix: str = ""

    @property
    def size(self) -> str:
        """The number of parameters as people say it: ``494 M``, ``1.54 B``."""
        return "size unknown" if self.parameters is None else count_text(self.parameters)


def count_text(number: float) -> str:
    """``1.9 M``, ``494 M``, ``7.62 B``."""
    if number >= 1e9:
        return f"{number / 1e9:.3g} B"
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number / 1e3:.3g} k"


def read_model(config: Config, probe: Probe | None = None) -> Model:
    """What can be known about ``config.model_id`` from its folder, the Hub cache or its name."""
    probe = probe or this_machine()
    try:
        folder = Path(config.model_path)
    except UserError as error:
        return Model(config.model_id, problem=error.what, fix=error.fix)
    if folder.is_dir():
        return from_folder(config.model_id, folder)
    if config.model_id == EMBEDDED:
        return Model(EMBEDDED, problem="the embedded model is missing from this installation")
    if config.model_id.startswith((".", "/", "~")) or config.model_id.count("/") > 1:
        return Model(config.model_id, problem="there is no such folder, and it is no Hub id (user/name)")
    cached = probe.cached_folder(config.model_id)
    return from_folder(config.model_id, Path(cached)) if cached else from_name(config.model_id)


def from_folder(name: str, folder: Path) -> Model:
    """Reads ``config.json`` and the headers of the safetensors files in a folder."""
    settings = _read_json(folder / "config.json")
    if settings is None:
        adapter = (folder / "adapter_config.json").exists()
        what = "it holds a LoRA adapter, not a model" if adapter else "it has no readable config.json"
        return Model(name, problem=f"the model folder cannot be used: {what}")
    text = settings.get("text_config") if isinstance(settings.get("text_config"), dict) else settings
    counted, weights = count_weights(folder)
    computed = None if counted else count_from_config(text)
    quantized = settings.get("quantization_config") or {}
    kind = kind_of(settings)
    return Model(
        name,
        parameters=counted or computed or from_name(name).parameters,
        source="counted in its weights" if counted else "computed from config.json" if computed else from_name(name).source,
        kind=kind,
        local=weights,
        quantized=str(quantized.get("quant_method") or "yes") if quantized else "",
        shape=shape_of(text),
        problem="its architecture is no causal language model" if kind == "other" else "",
    )


def from_name(model_id: str) -> Model:
    """Reads size, vision and quantization off a Hub id such as ``Qwen/Qwen2.5-0.5B-Instruct``; no network."""
    name = model_id.rsplit("/", 1)[-1]
    found = _SIZE_NAME.findall(name)
    # "Qwen2.5-7B-Instruct-1M": the M is a context length when there is a B as well.
    found = [item for item in found if item[2] in "bB"] or found
    quantized = _QUANTIZED_NAME.search(name)
    kind = "vision" if _VISION_NAME.search(name) else "unknown"
    if not found:
        return Model(model_id, kind=kind, quantized=quantized[1] if quantized else "")
    experts, number, unit = found[0]
    parameters = round(float(number) * (1e9 if unit in "bB" else 1e6) * int(experts or 1))
    return Model(model_id, parameters, "read off its name", kind, quantized=quantized[1] if quantized else "")


def kind_of(settings: dict[str, Any]) -> str:
    """Text, vision or other, from a ``config.json``."""
    names = " ".join(settings.get("architectures") or [])
    if any(key in settings for key in ("vision_config", "visual", "vision_tower", "mm_vision_tower", "image_token_id")):
        return "vision"
    if settings.get("is_encoder_decoder") or (names and not re.search(r"CausalLM|LMHead|ForConditionalGeneration", names)):
        return "other"
    return "text"


def count_weights(folder: Path) -> tuple[int | None, bool]:
    """Parameters in a folder's weights, and whether all the weights are there.

    Reads only the headers of the safetensors files: eight bytes with the header's length, then JSON with every
    tensor's shape (https://github.com/huggingface/safetensors, "Format").
    """
    index = _read_json(folder / "model.safetensors.index.json")
    if index is not None:
        names = sorted(set((index.get("weight_map") or {}).values()))
    else:
        names = ["model.safetensors"] if (folder / "model.safetensors").exists() else []
    if not names:
        return None, any(folder.glob("pytorch_model*.bin"))
    headers = [_safetensors_header(folder / name) for name in names]
    if any(header is None for header in headers):
        return None, False
    shapes = [tensor["shape"] for header in headers for key, tensor in header.items() if key != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes), True


def count_from_config(text: dict[str, Any]) -> int | None:
    """Parameters of a decoder computed from its config: embedding, attention, MLP (or experts) and norms."""
    shape = shape_of(text)
    if not {"hidden", "layers", "vocab", "intermediate", "heads"} <= set(shape):
        return None
    hidden, family = shape["hidden"], text.get("model_type", "")
    head = text.get("head_dim") or hidden // shape["heads"]
    attention = 2 * hidden * head * shape["heads"] + 2 * hidden * head * shape["kv_heads"]
    matrices = 2 if family in _PLAIN_MLP else 3
    experts = next((text[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(key)), 0)
    width = (text.get("moe_intermediate_size") or shape["intermediate"]) if experts else shape["intermediate"]
    mlp = matrices * hidden * width * max(experts, 1) + hidden * experts
    heads = 1 if text.get("tie_word_embeddings", family in _TIED) else 2
    positions = hidden * (text.get("n_positions") or 0) if family == "gpt2" else 0
    return heads * shape["vocab"] * hidden + shape["layers"] * (attention + mlp + 2 * hidden) + positions + hidden


def shape_of(text: dict[str, Any]) -> dict[str, int]:
    """Width, layers, vocabulary, MLP width and heads from a ``config.json``, whatever the family calls them."""
    names = {
        "hidden": ("hidden_size", "n_embd", "d_model"),
        "layers": ("num_hidden_layers", "n_layer", "num_layers"),
        "vocab": ("vocab_size",),
        "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
        "heads": ("num_attention_heads", "n_head"),
        "kv_heads": ("num_key_value_heads",),
    }
    found = {key: next((text[name] for name in options if isinstance(text.get(name), int)), None) for key, options in names.items()}
    shape = {key: value for key, value in found.items() if value}
    if "hidden" in shape and text.get("model_type") in _PLAIN_MLP:
        shape.setdefault("intermediate", 4 * shape["hidden"])
    if "heads" in shape:
        shape.setdefault("kv_heads", shape["heads"])
    return shape


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _safetensors_header(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            return json.loads(stream.read(length)) if length <= 100_000_000 else None
    except (OSError, ValueError):
        return None
