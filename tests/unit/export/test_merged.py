"""The merged folder: the adapter's numbers, a stated cast, untied heads, a folder that other programs read."""

import json

import pytest
from exporting import merge
from families.models import FAMILIES, write
from trained_run import changed, conversations, edit_json, make_trained, trained_on

from mac_lora_helpers import adapter as adapters
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export.equivalence import tensors
from mac_lora_helpers.export.equivalence.scores import forward
from mac_lora_helpers.export.merged import older_keys
from mac_lora_helpers.export.source import Updates
from mac_lora_helpers.language import language_part


def off_by(reference, folder):
    """Mean and largest difference of the folder's log-probabilities from the reference's."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = reference.compare([forward(model, prompt, number) for number, prompt in enumerate(reference.prompts)])
    return found.mean, found.largest


def test_the_merged_folder_says_what_the_adapter_says(trained):
    source, reference, report = merge(trained.run, trained.config)
    assert off_by(reference, trained.run.path("merged"))[1] < 1e-4
    control = reference.compare(reference.control)
    assert control.mean > 0.1
    assert (report.modules, report.dtype) == (8, "float32")
    found = tensors.in_merged(trained.run.path("merged"), source.base, source.updates)
    assert found.faults == []
    assert len(found.values) == 8


def test_the_folder_has_what_other_programs_read(trained):
    source, _, _ = merge(trained.run, trained.config)
    folder = trained.run.path("merged")
    saved = json.loads((folder / "config.json").read_text())
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"] == 10000.0
    assert saved["dtype"] == saved["torch_dtype"] == "float32"
    assert (folder / "tokenizer.json").read_bytes() == (source.base / "tokenizer.json").read_bytes()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] != "TokenizersBackend"
    assert not isinstance(settings.get("extra_special_tokens"), list)


def test_every_end_token_is_kept(trained):
    edit_json(trained.base / "generation_config.json", eos_token_id=[0, 2])
    source, _, _ = merge(trained.run, trained.config)
    assert source.ends == [2, 0] or set(source.ends) == {0, 2, source.tokenizer.eos_token_id}
    assert json.loads((trained.run.path("merged") / "generation_config.json").read_text())["eos_token_id"] == source.ends


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_is_stated(trained, dtype):
    _, reference, report = merge(trained.run, changed(trained.config, merged_dtype=dtype))
    assert f"float32 → {dtype}" in report.cast
    assert 1e-5 < off_by(reference, trained.run.path("merged"))[0] < 0.1
    assert json.loads((trained.run.path("merged") / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(("strength", "kept"), [(0.5, "bfloat16"), (0.0005, "float32")], ids=["strong", "faint"])
def test_the_bases_type_is_kept_unless_it_would_round_the_training_away(tmp_path, strength, kept):
    import torch
    from transformers import AutoModelForCausalLM

    trained = make_trained(tmp_path, lora={"strength": strength})
    AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.bfloat16).save_pretrained(trained.base)
    _, _, report = merge(trained.run, trained.config)
    assert report.dtype == kept
    assert "the base is stored as bfloat16" in report.cast
    assert ("of the update" in report.cast) == (kept == "float32")
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
    _, reference, report = merge(trained.run, trained.config)
    assert "untied" in report.head
    assert off_by(reference, trained.run.path("merged"))[1] < 1e-3
    assert json.loads((trained.run.path("merged") / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_update_we_read_is_the_one_peft_applies(tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = {"r": 8, "use_rslora": True, "rank_pattern": {"o_proj": 3}, "alpha_pattern": {r"1\..*k_proj": 5}}
    trained = make_trained(tmp_path, lora=lora)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained.base), trained.run.path("adapter"))
    for name, update in Updates.of(adapters.Adapter.read(trained.run.path("adapter"))).modules.items():
        expected = model.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(torch.from_numpy(update.delta()), expected, atol=1e-6, rtol=1e-5)
        assert update.norm() == pytest.approx(float(expected.norm()), rel=1e-4)


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}], ids=["dora", "whole modules"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_plain_lora_merges_but_is_refused_elsewhere(tmp_path, lora):
    trained = make_trained(tmp_path, lora=lora)
    source, reference, _ = merge(trained.run, trained.config)
    assert off_by(reference, trained.run.path("merged"))[1] < 1e-3
    with pytest.raises(InputError, match="LoRA"):
        source.updates.require_plain("a LoRA GGUF")
    assert tensors.in_merged(trained.run.path("merged"), source.base, source.updates) is None


def test_a_vision_text_base_is_merged_as_its_text_model(tmp_path):
    from transformers import AutoConfig

    family = next(one for one in FAMILIES if one.name == "Gemma 3, vision-text")
    base = write(family, tmp_path / "base")
    made = trained_on(base, tmp_path, language_part(resolve({"model_id": str(base)}, env={})))
    source, reference, report = merge(made.run, made.config)
    folder = made.run.path("merged")
    assert AutoConfig.from_pretrained(folder).model_type == "gemma3_text"
    assert off_by(reference, folder)[1] < 1e-3
    assert report.modules == len(tensors.in_merged(folder, source.base, source.updates).values)


def test_weights_that_are_not_finite_are_refused(trained):
    from safetensors.torch import load_file, save_file

    path = trained.run.path("adapter") / adapters.WEIGHTS
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, path)
    with pytest.raises(CheckFailed, match="NaN"):
        merge(trained.run, trained.config)
    assert not trained.run.has("merged")


def test_an_adapter_of_another_base_is_refused(tmp_path):
    trained = make_trained(tmp_path / "a")
    other = make_trained(tmp_path / "b", hidden_size=64)
    with pytest.raises(InputError, match="do not go together"):
        merge(trained.run, changed(trained.config, adapter_dir=str(other.run.path("adapter"))))


def test_a_missing_adapter_is_named(trained):
    import shutil

    shutil.rmtree(trained.run.path("adapter"))
    with pytest.raises(MissingArtifact, match="03_lora_training"):
        merge(trained.run, trained.config)


def test_plain_text_rows_give_prompts_too(tmp_path):
    trained = make_trained(tmp_path, rows=[{"text": row["messages"][-1]["content"]} for row in conversations()])
    _, reference, _ = merge(trained.run, trained.config)
    assert all(prompt.messages is None and prompt.answer for prompt in reference.prompts)
    assert off_by(reference, trained.run.path("merged"))[1] < 1e-3


def test_older_names_of_settings():
    two = {"full_attention": {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_theta": 2e4}}
    found = older_keys({"model_type": "gemma3_text", "rope_parameters": two, "_sliding_window_pattern": 6})
    assert found == {
        "rope_theta": 5e5, "rope_local_base_freq": 2e4, "sliding_window_pattern": 6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0, "type": "linear"},
    }  # fmt: skip
    assert older_keys({"model_type": "gpt2", "n_positions": 64}) == {"n_ctx": 64}
