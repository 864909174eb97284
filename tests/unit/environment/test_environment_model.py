"""What a model and recipe take in memory and on disk, and what is said of the model."""

from tiny import tiny_model

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment.checks_storage import check_disk, check_model
from mac_lora_helpers.environment.fit import adapter_parameters, download_needed, memory_needed
from mac_lora_helpers.model import base_from_name, find_base


def test_a_model_that_cannot_be_used_fails_with_its_remedy():
    config = resolve({"model_id": "./no/such/folder"})
    check = check_model(find_base(config), config)
    assert (check.status, "no such folder" in check.detail, bool(check.fix)) == ("fail", True, True)


def test_lora_parameters_agree_with_peft(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    # As many key as query heads: the four projections are square, as the rough formula takes them to be.
    folder = tiny_model(tmp_path, num_key_value_heads=4)
    config = resolve({"model_id": str(folder)})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=config.lora_r, target_modules=targets))
    assert adapter_parameters(find_base(config), config) == model.get_nb_trainable_parameters()[0]
    wide = resolve({"model_id": str(folder), "lora_targets": "all-linear"})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=16, target_modules="all-linear"))
    assert adapter_parameters(find_base(wide), wide) == model.get_nb_trainable_parameters()[0]


def test_memory_grows_with_what_makes_it_grow():
    base = resolve({"preset": "local"})
    model = base_from_name(base.model_id)
    need = memory_needed(model, base, "float32")
    assert need - memory_needed(model, base, "bfloat16") > 2 * model.parameters * 0.99
    assert memory_needed(model, resolve({"preset": "local", "max_seq_length": 1024}), "float32") > need
    assert memory_needed(model, resolve({"preset": "local", "gradient_checkpointing": False}), "float32") > need
    assert memory_needed(base_from_name("somebody/unnamed"), base, "float32") is None
    assert download_needed(model) == 2 * model.parameters


def test_a_full_disk_fails_with_what_is_missing(recorded):
    disk = {"free": 2 << 30, "total": 500 << 30, "volume": "1", "writable": True}
    config = resolve({"preset": "local"})
    probe = recorded("m2-pro-16gb", disk=disk)
    check = check_disk(config, find_base(config, probe.cached_folder), probe)
    assert check.status == "fail"
    assert "free at least" in check.fix
    read_only = recorded("m2-pro-16gb", disk={**disk, "free": 500 << 30, "writable": False})
    assert check_disk(config, find_base(config, read_only.cached_folder), read_only).status == "fail"
