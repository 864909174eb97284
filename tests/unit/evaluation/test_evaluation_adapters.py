"""Loading: what is accepted, what is refused and in which words, and that the adapter is really in effect."""

import shutil

import pytest
import torch
from evaluation_runs import edit_json, make_run, resolved, save_adapter
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer

from mac_lora_helpers import evaluation
from mac_lora_helpers.adapter import WEIGHTS as WEIGHTS_FILE
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact


@pytest.fixture
def own(tmp_path, model_folder):
    """A run of this test's own, to damage."""
    return make_run(tmp_path / "run", model_folder)


def rewrite(run, change):
    path = run.path("adapter") / WEIGHTS_FILE
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
        tensors = load_file(run.path("adapter") / WEIGHTS_FILE)
        for name, matrix in tensors.items():
            if "lora_A" in name:
                path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                plain.get_submodule(path).weight += 8 / 4 * tensors[name.replace("lora_A", "lora_B")] @ matrix
        tuned = plain(ids).logits
    with trained.base():
        torch.testing.assert_close(logits(trained), base)
    torch.testing.assert_close(logits(trained), tuned, atol=1e-4, rtol=1e-4)
    assert trained.logits_moved > 0.01


def test_no_adapter_yet(tmp_path, model_folder):
    message = refused(RunDir(tmp_path), model_folder, MissingArtifact)
    assert "03_lora_training.ipynb" in message


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS_FILE])
def test_a_missing_file(own, model_folder, name):
    (own.path("adapter") / name).unlink()
    message = refused(own, model_folder, MissingArtifact)
    assert name in message
    assert "03_lora_training.ipynb" in message


@pytest.mark.parametrize("kept", [0, 7, 300, -1])
def test_a_truncated_file(own, model_folder, kept):
    path = own.path("adapter") / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged or cut short" in refused(own, model_folder, InputError)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_config(own, model_folder, text):
    (own.path("adapter") / "adapter_config.json").write_text(text)
    assert "adapter_config.json cannot be read" in refused(own, model_folder, InputError)


def test_not_a_lora_adapter(own, model_folder):
    edit_json(own.path("adapter") / "adapter_config.json", peft_type="LOHA")
    assert "LOHA" in refused(own, model_folder, InputError)


def test_pickled_weights_are_not_opened(own, model_folder):
    folder = own.path("adapter")
    (folder / WEIGHTS_FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert "can run code" in refused(own, model_folder, MissingArtifact)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(own, model_folder, value):
    def spoil(tensors):
        next(iter(tensors.values()))[0, 0] = value
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


def test_an_adapter_of_a_deeper_model(tmp_path, model_folder, own):
    other = tiny_model(tmp_path / "deep", num_hidden_layers=3)
    save_adapter(other, tmp_path / "foreign")
    message = refused(own, model_folder, InputError, adapter_dir=str(tmp_path / "foreign"))
    assert "no layer model.layers.2" in message
    assert "and 3 more" in message


def test_another_adapter_that_fits(tmp_path, model_folder, own):
    folder = save_adapter(model_folder, tmp_path / "other", strength=2.0, seed=9)
    trained = evaluation.load(own, resolved(model_folder, adapter_dir=str(folder)))
    assert not trained.adapter.own
    assert trained.adapter.name == str(folder)
    expected = load_file(folder / WEIGHTS_FILE)
    assert all(torch.equal(trained.adapter.tensors[name], tensor) for name, tensor in expected.items())


def test_a_run_directory_is_an_adapter_dir_too(tmp_path, model_folder, own):
    trained = evaluation.load(RunDir(tmp_path / "empty"), resolved(model_folder, adapter_dir=str(own.root)))
    assert trained.adapter.folder == own.root / "adapter"


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("/no/such/folder", "there is no folder"),
        ("./neither", "there is no folder"),
        ("a/b/c", "there is no folder"),
        ("some one/has spaces", "neither a folder nor a Hub id"),
    ],
)
def test_an_adapter_dir_that_is_nothing(own, model_folder, asked, what):
    message = refused(own, model_folder, InputError, adapter_dir=asked)
    assert what in message
    assert "adapter_dir" in message


def test_a_hub_id_without_a_network(own, model_folder, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    message = refused(own, model_folder, InputError, adapter_dir="someone/their-adapter")
    assert "the Hub cannot be reached" in message


def test_a_folder_without_an_adapter(own, model_folder):
    assert "no PEFT adapter" in refused(own, model_folder, InputError, adapter_dir=str(model_folder))


def test_a_zero_adapter_is_reported_not_refused(useless):
    assert useless.logits_moved == 0
    assert "every lora_B is zero" in " ".join(useless.findings)


def test_an_adapter_that_names_another_base_is_reported(own, model_folder):
    edit_json(own.path("adapter") / "adapter_config.json", base_model_name_or_path="someone/another-model")
    trained = evaluation.load(own, resolved(model_folder))
    assert any("someone/another-model" in finding for finding in trained.findings)


def test_a_run_of_its_own_has_nothing_to_report(trained):
    assert trained.findings == []
    assert ("matrices in place", "8 of 8, equal to the file") in trained.rows()


def test_an_end_of_turn_that_is_not_the_end_token(tmp_path):
    """As with Qwen's base models: the template says <|im_end|>, the tokenizer's end token is <|endoftext|>."""
    folder = tiny_model(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit_json(folder / "generation_config.json", eos_token_id=tiny_tokenizer().pad_token_id)
    trained = evaluation.load(make_run(tmp_path / "run", folder), resolved(folder))
    ends = trained.tokenizer.convert_ids_to_tokens(list(trained.end_ids))
    assert ends == ["<|endoftext|>", "<|im_end|>"]
    assert any("<|im_end|>" in finding for finding in trained.findings)


def test_generation_settings_of_the_model_do_not_leak_in(tmp_path, model_folder):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    edit_json(folder / "generation_config.json", repetition_penalty=5.0, do_sample=True, temperature=2.0, top_k=3)
    run = make_run(tmp_path / "run", folder)
    answers = [evaluation.ask(evaluation.load(run, config), "France?", config) for config in (resolved(folder), resolved(model_folder))]
    assert answers[0] == answers[1]


def test_models_of_other_families(tmp_path):
    for family in ("llama", "gemma", "gpt2"):
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024} if family == "gpt2" else {}
        folder = tiny_model(tmp_path / family, family, **sizes)
        targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
        trained = evaluation.load(make_run(tmp_path / f"run-{family}", folder, target_modules=targets), resolved(folder))
        assert trained.logits_moved > 0
