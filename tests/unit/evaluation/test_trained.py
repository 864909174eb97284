"""Is the adapter really in effect? What is refused and in which words, and what is only told."""

import shutil

import pytest
import torch
from evaluation_runs import ask, edit_json, make_run, resolved, save_adapter
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer

from mac_lora_helpers import evaluation
from mac_lora_helpers.adapter import WEIGHTS
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact


@pytest.fixture
def own(tmp_path, model_folder):
    """A run of this test's own, to damage."""
    return make_run(tmp_path / "run", model_folder)


def rewrite(run, change):
    path = run.path("adapter") / WEIGHTS
    tensors = load_file(path)
    changed = change({name: tensor.clone() for name, tensor in tensors.items()})
    path.unlink()
    save_file(changed, path, {"format": "pt"})


def refused(run, model_folder, kind, **values):
    with pytest.raises(kind) as caught:
        evaluation.load(run, resolved(model_folder, **values))
    assert caught.value.fix
    assert caught.value.where
    return str(caught.value)


def logits(trained):
    ids = torch.tensor([trained.tokenizer("What is the capital?")["input_ids"]])
    with torch.inference_mode():
        return trained.model(input_ids=ids).logits


def test_off_is_the_base_and_on_is_base_plus_update(trained, model_folder, run):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    ids = torch.tensor([trained.tokenizer("What is the capital?")["input_ids"]])
    with torch.inference_mode():
        base = plain(ids).logits
        tensors = load_file(run.path("adapter") / WEIGHTS)
        for name, matrix in tensors.items():
            if "lora_A" in name:
                path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                plain.get_submodule(path).weight += 8 / 4 * tensors[name.replace("lora_A", "lora_B")] @ matrix
        tuned = plain(ids).logits
    with trained.voice("base"):
        torch.testing.assert_close(logits(trained), base)
    torch.testing.assert_close(logits(trained), tuned, atol=1e-4, rtol=1e-4)
    assert trained.logits_moved > 0.01


def test_values_that_are_not_finite(own, model_folder):
    def spoil(tensors):
        next(iter(tensors.values()))[0, 0] = float("nan")
        return tensors

    rewrite(own, spoil)
    assert "1 of 8 tensors" in refused(own, model_folder, CheckFailed)


def test_keys_that_peft_would_drop_in_silence(own, model_folder):
    """Names as another program writes them: PEFT loads such a file without an error and applies nothing."""
    rewrite(own, lambda tensors: {name.replace("base_model.model.", "base_model."): tensor for name, tensor in tensors.items()})
    message = refused(own, model_folder, InputError)
    assert "does not fit" in message


def test_a_layer_without_weights_in_the_file(own, model_folder):
    rewrite(own, lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.v_proj" not in name})
    message = refused(own, model_folder, CheckFailed)
    assert "was not applied" in message
    assert "2 layers of the model got no weights" in message


def test_weights_that_the_config_leaves_out(own, model_folder):
    """The file adapts q and v, the config says q only: half of the training would be lost without a word."""
    edit_json(own.path("adapter") / "adapter_config.json", target_modules=["q_proj"])
    assert "4 tensors of the file have no place" in refused(own, model_folder, CheckFailed)


def test_trained_biases_would_spoil_the_base(tmp_path, model_folder):
    run = make_run(tmp_path / "run", model_folder, bias="all")
    assert "does not give the base model back" in refused(run, model_folder, CheckFailed)


def test_an_adapter_of_a_wider_model(tmp_path, model_folder, own):
    other = tiny_model(tmp_path / "wide", hidden_size=64)
    save_adapter(other, tmp_path / "foreign")
    message = refused(own, model_folder, InputError, adapter_dir=str(tmp_path / "foreign"))
    assert "32 wide (in), the adapter's is 64" in message
    assert "does not fit" in message


def test_a_zero_adapter_is_reported_not_refused(useless):
    assert useless.logits_moved == 0
    assert "every lora_B is zero" in " ".join(useless.findings)


def test_an_adapter_that_names_another_base_is_reported(own, model_folder):
    edit_json(own.path("adapter") / "adapter_config.json", base_model_name_or_path="someone/another-model")
    trained = evaluation.load(own, resolved(model_folder))
    assert any("someone/another-model" in finding for finding in trained.findings)


def test_an_unfinished_training_is_named(tmp_path, own, model_folder):
    with RunDir(tmp_path / "first").begin(3, keep=True) as stage, pytest.raises(MissingArtifact, match="is not finished"):
        evaluation.load(stage, resolved(model_folder))
    stage = own.begin(3, keep=True)
    assert "A newer training in this run directory is not finished" in " ".join(evaluation.load(own, resolved(model_folder)).findings)
    stage.discard()


def test_a_run_of_its_own_has_nothing_to_report(trained):
    assert trained.findings == []
    assert ("matrices in place", "8 of 8, equal to the file") in trained.rows()


def test_an_end_of_turn_that_is_not_the_end_token(tmp_path):
    """As with Qwen's base models: the template says <|im_end|>, the tokenizer's end token is <|endoftext|>."""
    folder = tiny_model(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit_json(folder / "generation_config.json", eos_token_id=tiny_tokenizer().pad_token_id)
    trained = evaluation.load(make_run(tmp_path / "run", folder), resolved(folder))
    ends = trained.tokenizer.convert_ids_to_tokens(trained.end_ids)
    assert ends == ["<|endoftext|>", "<|im_end|>"]
    assert any("<|im_end|>" in finding for finding in trained.findings)


def test_generation_settings_of_the_model_do_not_leak_in(tmp_path, model_folder):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    edit_json(folder / "generation_config.json", repetition_penalty=5.0, do_sample=True, temperature=2.0, top_k=3)
    run = make_run(tmp_path / "run", folder)
    loaded = [evaluation.load(run, config) for config in (resolved(folder), resolved(model_folder))]
    assert ask(loaded[0], "France?") == ask(loaded[1], "France?")


def test_models_of_other_families(tmp_path):
    for family in ("llama", "gemma", "gpt2"):
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024} if family == "gpt2" else {}
        folder = tiny_model(tmp_path / family, family, **sizes)
        targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
        trained = evaluation.load(make_run(tmp_path / f"run-{family}", folder, target_modules=targets), resolved(folder))
        assert trained.logits_moved > 0
