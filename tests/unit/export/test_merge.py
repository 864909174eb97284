"""The merge: equal logits, a stated cast, tied heads, and refusals in words."""

import json

import pytest
from trained_run import add_adapter, changed, conversations, edit_json, make_trained

from mac_lora_helpers import export
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export import adapter as adapters


def test_merged_folder_gives_the_adapters_logits(trained):
    report = export.merge(trained.run, trained.config)
    assert report.passed
    assert report.max_logit_difference < 1e-3 < 0.1 < report.effect
    assert report.modules == 8
    assert "float32, no cast" in report.cast
    saved = json.loads((trained.run.path("merged") / "config.json").read_text())
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"] == 10000.0
    assert (trained.run.path("merged") / "tokenizer.json").is_file()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_is_stated_and_has_its_own_tolerance(trained, dtype):
    report = export.merge(trained.run, changed(trained.config, merged_dtype=dtype))
    assert f"float32 → {dtype}" in report.cast
    assert 1e-4 < report.max_logit_difference <= report.tolerance
    assert json.loads((trained.run.path("merged") / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(("strength", "kept"), [(0.5, "bfloat16"), (0.001, "float32")], ids=["strong", "faint"])
def test_the_bases_type_is_kept_unless_it_would_round_the_training_away(tmp_path, strength, kept):
    import torch
    from transformers import AutoModelForCausalLM

    trained = make_trained(tmp_path, lora={"strength": strength})
    AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.bfloat16).save_pretrained(trained.base)
    report = export.merge(trained.run, trained.config)
    assert (report.dtype, report.passed) == (kept, True)
    assert "the base is stored as bfloat16" in report.cast
    assert ("would move the logits" in report.cast) == (kept == "float32")
    stored = AutoModelForCausalLM.from_pretrained(trained.run.path("merged"), dtype="auto")
    assert str(stored.dtype) == f"torch.{kept}"
    assert stored.config.tie_word_embeddings


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["head", "head trained whole", "embedding"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tied_head_is_untied_when_only_one_use_was_trained(tmp_path, lora):
    trained = make_trained(tmp_path, lora=lora)
    report = export.merge(trained.run, trained.config)
    assert "untied" in report.head
    assert report.passed
    assert json.loads((trained.run.path("merged") / "config.json").read_text())["tie_word_embeddings"] is False


def test_every_kind_of_scale_is_merged(tmp_path):
    lora = {"r": 8, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}
    trained = make_trained(tmp_path, lora=lora)
    assert export.merge(trained.run, trained.config).passed
    updates = adapters.read_adapter(trained.run.path("adapter")).updates
    scales = {name.removeprefix("model.layers."): round(update.scale, 4) for name, update in updates.items()}
    assert scales["0.self_attn.q_proj"] == round(8 / 2**0.5, 4)
    assert scales["1.self_attn.v_proj"] == round(3 / 8**0.5, 4)
    assert scales["0.self_attn.v_proj"] == round(8 / 8**0.5, 4)


def test_the_update_we_read_is_the_one_peft_applies(tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = {"r": 8, "use_rslora": True, "rank_pattern": {"o_proj": 3}, "alpha_pattern": {r"1\..*k_proj": 5}}
    trained = make_trained(tmp_path, lora=lora)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained.base), trained.run.path("adapter"))
    for name, update in adapters.read_adapter(trained.run.path("adapter")).updates.items():
        expected = model.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(torch.from_numpy(update.delta()), expected, atol=1e-6, rtol=1e-5)


def test_a_merge_that_differs_is_not_written(trained, monkeypatch):
    from mac_lora_helpers.export import merge_adapter

    write = merge_adapter.write_model

    def damage(model, tokenizer, folder, dtype):
        model.model.layers[0].self_attn.q_proj.weight.data.mul_(0.9)
        write(model, tokenizer, folder, dtype)

    monkeypatch.setattr(merge_adapter, "write_model", damage)
    with pytest.raises(CheckFailed, match="differ by"):
        export.merge(trained.run, trained.config)
    assert not trained.run.has("merged")


def test_weights_that_are_not_finite_are_refused(trained):
    from safetensors.torch import load_file, save_file

    path = trained.run.path("adapter") / adapters.WEIGHTS
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, path)
    with pytest.raises(CheckFailed, match="not finite"):
        export.merge(trained.run, trained.config)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    trained = make_trained(tmp_path / "a")
    other = make_trained(tmp_path / "b", hidden_size=64)
    with pytest.raises(InputError, match="does not fit the base"):
        export.merge(trained.run, changed(trained.config, adapter_dir=str(other.run.path("adapter"))))


def test_missing_and_foreign_adapters_are_named(trained, tmp_path):
    import shutil

    config = changed(trained.config, adapter_dir=str(tmp_path))
    with pytest.raises(InputError, match="adapter_config"):
        export.merge(trained.run, config)
    edit_json(trained.run.path("adapter") / adapters.SETTINGS, peft_type="IA3")
    with pytest.raises(InputError, match="IA3"):
        adapters.read_adapter(trained.run.path("adapter"))
    shutil.rmtree(trained.run.path("adapter"))
    with pytest.raises(MissingArtifact, match="03_lora_training"):
        export.merge(trained.run, trained.config)


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}], ids=["dora", "whole modules"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_plain_lora_merges_but_is_refused_elsewhere(tmp_path, lora):
    trained = make_trained(tmp_path, lora=lora)
    assert export.merge(trained.run, trained.config).passed
    with pytest.raises(InputError, match="LoRA"):
        adapters.read_adapter(trained.run.path("adapter")).require_plain("a LoRA GGUF")


def test_plain_text_rows_are_a_probe_too(tmp_path):
    trained = make_trained(tmp_path, rows=[{"text": row["messages"][-1]["content"]} for row in conversations()])
    add_adapter(trained.base, trained.run.path("adapter"), seed=5)
    assert export.merge(trained.run, trained.config).passed
