"""The families of small models that people train today, each made tiny by transformers' own configuration classes.

Widths and layers are small; the ratios of heads, the kinds of layers and the special parts are each family's own. The chat
template is the one that TRL ships for the family; its special tokens are added to a small tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny import tiny_tokenizer

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SLIDING = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
QWEN35 = {"num_hidden_layers": 4, "head_dim": 32, "layer_types": ["linear_attention"] * 3 + ["full_attention"], **LINEAR}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE = {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64, **EXPERTS, **MAMBA}
GEMMA4 = {
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 32,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,  # the last layers read the keys and values of those below
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 400,
}
SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
#: Special tokens as chat templates write them.
SPECIAL = re.compile(r"<\|[A-Za-z0-9_]+\|?>|<[a-z]+\|>|<(?:start|end)_of_turn>|<bos>|<eos>")


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: for people. model_type: transformers' own.
        values: what differs from ``SIZES`` in the configuration.
        template: TRL's chat template (``trl/chat_templates/NAME.jinja``); empty: ChatML, as TRL has none for it.
        vision: of the vision tower: such a checkpoint is saved whole.
    """

    name: str
    model_type: str
    values: dict[str, Any] = field(default_factory=dict)
    template: str = ""
    vision: dict[str, Any] | None = None


FAMILIES = (
    Family("Llama 3.2", "llama", {"num_attention_heads": 8, "head_dim": 16}, "llama3_2"),
    Family("Qwen2.5", "qwen2", {"num_attention_heads": 14, "hidden_size": 112}, "qwen2_5"),
    Family("Qwen3", "qwen3", {"head_dim": 32}, "qwen3"),
    Family("Qwen3.5, text", "qwen3_5_text", QWEN35, "qwen3_5_nothink"),
    Family("Qwen3.5, vision-text", "qwen3_5", QWEN35, "qwen3_5_nothink", QWEN_VISION),
    Family("Qwen3-MoE", "qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}, "qwen3"),
    Family("Gemma 2", "gemma2", {"head_dim": 16, **SLIDING}, "gemma"),
    Family("Gemma 3, text", "gemma3_text", {"num_key_value_heads": 1, "head_dim": 32, **SLIDING}, "gemma3"),
    Family("Gemma 3, vision-text", "gemma3", {"head_dim": 32, **SLIDING}, "gemma3", SIGLIP),
    Family("Gemma 4 (E2B)", "gemma4", GEMMA4, "gemma4_v5", SIGLIP),
    Family("SmolLM3", "smollm3", {"num_hidden_layers": 4, "num_key_value_heads": 1}),
    Family("LFM2, LFM2.5", "lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128, "conv_L_cache": 3}, "lfm2"),
    Family("Phi-3, Phi-4-mini", "phi3", {"num_key_value_heads": 4}, "phi3"),
    Family("Granite 4, dense", "granite"),
    Family("Granite 4, hybrid", "granitemoehybrid", GRANITE),
    Family("OLMo 3", "olmo3", {"num_key_value_heads": 4, **SLIDING}),
    Family("GLM-4", "glm4", {"head_dim": 16, "partial_rotary_factor": 0.5}),
    Family("EXAONE 4", "exaone4", {"num_hidden_layers": 4, "sliding_window": 32, "sliding_window_pattern": 4}),
    Family("Hunyuan, dense", "hunyuan_v1_dense", {"head_dim": 16}),
    Family("Falcon-H1", "falcon_h1", {"mamba_d_ssm": 128, "head_dim": 16, **MAMBA}),
    Family("Mamba-2", "mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "expand": 2}),
    Family("Ministral 3", "ministral3", {"head_dim": 16}),
    Family("gpt-oss", "gpt_oss", {"head_dim": 16, **EXPERTS, **SLIDING}, "gptoss"),
)


def tokenizer_of(family: Family) -> Any:
    """A small tokenizer with the family's template, its special tokens and its end of a turn."""
    import trl

    tokenizer = tiny_tokenizer()
    if not family.template:
        return tokenizer
    template = (Path(trl.__file__).parent / "chat_templates" / f"{family.template}.jinja").read_text(encoding="utf-8")
    tokens = list(dict.fromkeys(SPECIAL.findall(template)))
    tokenizer.add_special_tokens({"additional_special_tokens": tokens, "bos_token": "<|endoftext|>"})
    tokenizer.chat_template = template
    answer = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "zq"}]
    end = SPECIAL.search(tokenizer.apply_chat_template(answer, tokenize=False).rpartition("zq")[2])
    tokenizer.eos_token = end[0]
    return tokenizer


def configuration(family: Family, tokenizer: Any) -> Any:
    """The tiny configuration."""
    from transformers import AutoConfig

    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 1024, "tie_word_embeddings": True, **family.values}
    text |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if family.vision is None:
        return AutoConfig.for_model(family.model_type, **text)
    return AutoConfig.for_model(family.model_type, text_config=text, vision_config=family.vision)


def write(family: Family, folder: Path) -> Path:
    """The random model with its tokenizer, as a user's model folder would be."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    tokenizer = tokenizer_of(family)
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if family.vision is None else AutoModelForImageTextToText
    kind.from_config(configuration(family, tokenizer), dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
