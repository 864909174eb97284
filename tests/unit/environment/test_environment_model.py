"""The model's size and kind, compared with what transformers builds; memory and disk that follow from it."""

import json

import pytest
from tiny import tiny_model

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import read_model
from mac_lora_helpers.environment.checks_storage import check_disk, check_model
from mac_lora_helpers.environment.fit import adapter_parameters, download_needed, memory_needed
from mac_lora_helpers.environment.model import count_from_config, from_folder, from_name, kind_of

# Layers and widths of published models, so that the arithmetic is checked at true size (on the meta device, without memory).
PUBLISHED = {
    "qwen2": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "llama": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "mistral": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32768,
    },
    "mixtral": {
        "hidden_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 3584,
        "vocab_size": 32000,
        "num_local_experts": 8,
    },
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257},
    "gpt_neox": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8, "intermediate_size": 8192, "vocab_size": 50304},
    "gemma2": {
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 256000,
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_arithmetic_agrees_with_transformers(family):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **PUBLISHED[family])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    true = sum(weight.numel() for weight in model.parameters())
    assert count_from_config({**config.to_dict(), "model_type": family}) == pytest.approx(true, rel=0.01)


def test_a_folder_is_counted_from_its_weights(tmp_path):
    import torch
    from safetensors import safe_open

    folder = tiny_model(tmp_path / "model")
    with safe_open(folder / "model.safetensors", "pt") as weights:
        true = sum(torch.numel(weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118
    model = read_model(resolve({"model_id": str(folder)}))
    assert (model.parameters, model.source, model.kind, model.local) == (true, "counted in its weights", "text", True)
    assert model.shape["hidden"] == 32


def test_shards_are_added_and_a_missing_one_is_noticed(tmp_path):
    folder = tiny_model(tmp_path / "model")
    whole = from_folder("m", folder)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert from_folder("m", tmp_path / "shards").parameters == whole.parameters
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    part = from_folder("m", tmp_path / "shards")
    assert (part.local, part.source) == (False, "computed from config.json")


def test_a_damaged_weight_file_falls_back_to_the_config(tmp_path):
    folder = tiny_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\xff" * 40)
    model = from_folder("m", folder)
    assert (model.source, model.local) == ("computed from config.json", False)


def test_the_embedded_model():
    model = read_model(resolve({}))
    assert model.local
    assert model.kind == "text"
    assert 1e6 < model.parameters < 4e6


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 500e6),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7e9),
        ("somebody/long-1M-context-7B", 7e9),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9),
        ("Qwen/Qwen3-30B-A3B", 30e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("google/gemma-3-270m-it", 270e6),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.5e9),
        ("meta-llama/Llama-3.2-1B", 1e9),
        ("llava-hf/llava-1.5-7b-hf", 7e9),
        ("microsoft/Phi-3-mini-4k-instruct", None),
        ("mistralai/Mistral-Nemo-Instruct-2407", None),
        ("openai-community/gpt2", None),
    ],
)
def test_size_from_the_name(name, parameters):
    assert from_name(name).parameters == parameters


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "llava-hf/llava-1.5-7b-hf",
        "HuggingFaceTB/SmolVLM-500M-Instruct",
        "OpenGVLab/InternVL2_5-1B",
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        "google/paligemma-3b-pt-224",
        "openbmb/MiniCPM-V-2_6",
        "deepseek-ai/deepseek-vl2-tiny",
    ],
)
def test_vision_models_by_name(name):
    assert from_name(name).kind == "vision"


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B-Instruct", "microsoft/Phi-3-mini-4k-instruct", "roneneldan/TinyStories-33M"])
def test_text_models_are_not_taken_for_vision(name):
    assert from_name(name).kind == "unknown"


@pytest.mark.parametrize("name", ["unsloth/Qwen2.5-0.5B-bnb-4bit", "TheBloke/Llama-2-7B-GPTQ", "Qwen/Qwen2.5-0.5B-Instruct-AWQ"])
def test_quantized_by_name(name):
    assert from_name(name).quantized


def test_kinds_by_config():
    from transformers import AutoConfig

    assert kind_of(AutoConfig.for_model("qwen2_5_vl").to_dict()) == "vision"
    assert kind_of({**AutoConfig.for_model("t5").to_dict(), "architectures": ["T5ForConditionalGeneration"]}) == "other"
    assert kind_of({"model_type": "bert", "architectures": ["BertForMaskedLM"]}) == "other"
    assert kind_of({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}) == "text"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no readable config.json"),
        ({"config.json": "{broken"}, "no readable config.json"),
        ({"adapter_config.json": "{}"}, "LoRA adapter"),
        ({"config.json": json.dumps({"architectures": ["BertForMaskedLM"]})}, "no causal language model"),
    ],
)
def test_folders_that_are_no_model(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    config = resolve({"model_id": str(tmp_path)})
    check = check_model(read_model(config), config)
    assert check.status == "fail"
    assert said in check.detail


def test_a_folder_that_is_not_there():
    config = resolve({"model_id": "./no/such/folder"})
    check = check_model(read_model(config), config)
    assert (check.status, "no such folder" in check.detail) == ("fail", True)


def test_lora_parameters_agree_with_peft(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    # As many key as query heads: the four projections are square, as the rough formula takes them to be.
    folder = tiny_model(tmp_path, num_key_value_heads=4)
    config = resolve({"model_id": str(folder)})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=config.lora_r, target_modules=targets))
    assert adapter_parameters(read_model(config), config) == model.get_nb_trainable_parameters()[0]
    wide = resolve({"model_id": str(folder), "lora_targets": "all-linear"})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=16, target_modules="all-linear"))
    assert adapter_parameters(read_model(wide), wide) == model.get_nb_trainable_parameters()[0]


def test_memory_grows_with_what_makes_it_grow():
    base = resolve({"preset": "local"})
    model = from_name(base.model_id)
    need = memory_needed(model, base, "float32")
    assert need - memory_needed(model, base, "bfloat16") > 2 * model.parameters * 0.99
    assert memory_needed(model, resolve({"preset": "local", "max_seq_length": 1024}), "float32") > need
    assert memory_needed(model, resolve({"preset": "local", "gradient_checkpointing": False}), "float32") > need
    assert memory_needed(from_name("somebody/unnamed"), base, "float32") is None
    assert download_needed(model) == 2 * model.parameters


def test_a_full_disk_fails_with_what_is_missing(recorded):
    disk = {"free": 2 << 30, "total": 500 << 30, "volume": "1", "writable": True}
    config = resolve({"preset": "local"})
    probe = recorded("m2-pro-16gb", disk=disk)
    check = check_disk(config, read_model(config, probe), probe)
    assert check.status == "fail"
    assert "free at least" in check.fix
    read_only = recorded("m2-pro-16gb", disk={**disk, "free": 500 << 30, "writable": False})
    assert check_disk(config, read_model(config, read_only), read_only).status == "fail"
