"""LoRA targets are found in the model, for every family of the table and for those that are not in it."""

import pytest
from tiny import SIZES, tiny_model
from training_rows import dataset, rows

from mac_lora_helpers import training
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.training.counting import meta_model
from mac_lora_helpers.training.fast.known import FAMILIES as KNOWN
from mac_lora_helpers.training.targets import linear_modules

QKVO = {"q_proj", "k_proj", "v_proj", "o_proj"}
TRAINED = {
    "llama": QKVO,
    "qwen2": QKVO,
    "qwen3": QKVO,
    "mistral": QKVO,
    "gemma": QKVO,
    "phi": {"q_proj", "k_proj", "v_proj", "dense"},
    "gpt2": {"c_attn", "c_proj"},
    "gpt_neox": {"query_key_value", "dense"},
    "bloom": {"query_key_value", "dense"},
}


def shape_only(family, **values):
    from transformers import AutoConfig

    sizes = {**SIZES, "vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return meta_model(AutoConfig.for_model(family, **sizes, **values), "float32")


@pytest.mark.parametrize("family", TRAINED)
def test_a_tiny_model_of_the_family_trains_five_steps_and_passes_the_audit(family, tmp_path, make, train):
    folder = tiny_model(tmp_path / family, family)
    run, config = make(model_id=str(folder), max_steps=5, learning_rate=1e-3, gradient_checkpointing=family in ("llama", "gpt2", "bloom"))
    assert config.fast_path == "auto"
    trainer, metrics = train(run, config, {"train": dataset(rows(10))})
    assert metrics["fast_path"]["on"] is (family in KNOWN), metrics["fast_path"]
    assert set(run.read_json("train_config")["lora"]["targets"]) == TRAINED[family]
    assert metrics["steps"] == 5
    assert metrics["audit"]["loss_fell"] is None
    assert all(passed for name, passed in metrics["audit"].items() if name not in ("loss_fell", "best_is_saved")), metrics["audit"]
    assert metrics["trainable_parameters"] == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert metrics["predicted_memory_parts"]["weights"] == sum(
        p.numel() * p.element_size() for n, p in trainer.model.named_parameters() if "lora_" not in n
    )


OTHERS = {
    **dict.fromkeys(
        ("gemma2", "gemma3_text", "smollm3", "olmo2", "stablelm", "starcoder2", "granite", "cohere", "mixtral", "qwen3_moe"), QKVO
    ),
    **{key: {"q_proj", "k_proj", "v_proj", "out_proj"} for key in ("gptj", "opt")},
    **{key: {"query_key_value", "dense"} for key in ("falcon", "persimmon")},
    "phi3": {"qkv_proj", "o_proj"},
    "codegen": {"qkv_proj", "out_proj"},
    "mpt": {"Wqkv", "out_proj"},
    "mamba2": {"in_proj"},
    "lfm2": {"q_proj", "k_proj", "v_proj", "out_proj", "in_proj"},
}


@pytest.mark.parametrize("family", OTHERS)
def test_what_mixes_the_positions_of_a_layer_is_adapted(family):
    values = {"layer_types": ["conv", "full_attention"]} if family == "lfm2" else {}
    values |= {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1} if family == "mamba2" else {}
    assert set(training.find_targets(shape_only(family, **values))) == OTHERS[family]


def test_no_tower_no_router_no_head():
    """A model that takes images too, whole: only the decoder layers of its language part can be adapted."""
    from transformers import Gemma3Config

    text = {**SIZES, "vocab_size": 400, "head_dim": 8}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = meta_model(Gemma3Config(text_config=text, vision_config=vision), "float32")
    assert set(training.find_targets(whole, "all-linear")) == QKVO | {"gate_proj", "up_proj", "down_proj"}
    assert all("language_model.layers" in name for name in linear_modules(whole))
    experts = shape_only("qwen3_next", num_experts=4, num_experts_per_tok=2, layer_types=["linear_attention", "full_attention"])
    assert not {"gate", "shared_expert_gate", "in_proj_ba", "lm_head"} & set(training.find_targets(experts, "all-linear"))


def test_all_linear_is_every_linear_layer_but_the_head():
    model = shape_only("qwen2")
    assert set(training.find_targets(model, "all-linear")) == QKVO | {"gate_proj", "up_proj", "down_proj"}
    assert not any("lm_head" in name for name in linear_modules(model))


def test_names_may_be_the_end_of_a_path():
    model = shape_only("gpt2")
    assert training.find_targets(model, "attn.c_proj, c_fc") == ["attn.c_proj", "c_fc"]


@pytest.mark.parametrize(
    ("wanted", "hint"), [("q_prj", "did you mean q_proj"), ("lm_head", "choose from"), ("proj", "choose from"), (",", "choose from")]
)
def test_a_wrong_name_lists_what_the_model_has(wanted, hint):
    with pytest.raises(InputError) as told:
        training.find_targets(shape_only("llama"), wanted)
    text = str(told.value)
    assert hint in text
    assert all(f"{name} (2×)" in text for name in [*QKVO, "gate_proj", "up_proj", "down_proj"])


def test_conv1d_weights_are_declared_transposed(make):
    _, config = make()
    assert training.layers(shape_only("gpt2"), config)["fan_in_fan_out"] is True
    assert training.layers(shape_only("qwen2"), config)["fan_in_fan_out"] is False


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gpt_neox"])
def test_adapters_in_the_top_layers_only(family, tmp_path, make, train):
    from safetensors.torch import load_file

    folder = tiny_model(tmp_path / family, family, num_hidden_layers=3)
    run, config = make(model_id=str(folder), max_steps=3, learning_rate=1e-3, lora_layers=2)
    _, metrics = train(run, config, {"train": dataset(rows(10))})
    names = load_file(run.path("adapter") / "adapter_model.safetensors")
    assert {name.split(".h." if family == "gpt2" else ".layers.")[1].split(".")[0] for name in names} == {"1", "2"}
    assert run.read_json("train_config")["lora"]["layers"] == [1, 2]
    assert metrics["audit"]["lora_b_nonzero"]
    assert metrics["trainable_parameters"] == sum(tensor.numel() for tensor in names.values())


def test_an_adapter_in_other_layers_than_asked_fails_the_audit(make, trainer_for, tokens):
    run, config = make(lora_layers=1)
    trainer = trainer_for(run, config, tokens)
    trainer.train()
    trainer.save_model()
    trainer.model.peft_config["default"].layers_to_transform = [0]
    with pytest.raises(CheckFailed, match="lora_b_nonzero"):
        training.examine(trainer)


def test_top_layers_that_the_model_does_not_have(make):
    _, config = make(lora_layers=3)
    with pytest.raises(InputError, match="has 2 decoder layers"):
        training.layers(shape_only("qwen2"), config)
    _, config = make(lora_layers=2)
    lora = training.layers(shape_only("bloom"), config)
    assert (lora["layers_to_transform"], lora["layers_pattern"]) == ([0, 1], "h")
