"""Another base model under the same name is noticed, before figures or files are made from it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from mac_lora_helpers import evaluation, export
from mac_lora_helpers import model as base
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.model import base_weights
from mac_lora_helpers.training import resume


@pytest.fixture
def own_model(tmp_path):
    return tiny_model(tmp_path / "own")


def rebuilt(folder):
    """One number of one tensor is another; names, shapes and sizes stay."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[sorted(tensors)[3]].view(-1)[5] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def test_evaluation_and_export_refuse_a_base_that_was_built_again(own_model, make, train, tokens):
    run, config = make(model_id=str(own_model))
    train(run, config, tokens)
    saved = run.read_json("train_config")["base"]
    assert saved == base_weights(config)
    assert (saved["method"], saved["files"]) == ("sha256", 1)
    evaluation.load(run, config)
    rebuilt(own_model)
    for use in (evaluation.load, export.open_source):
        with pytest.raises(CheckFailed, match="is not the one that the adapter was trained on"):
            use(run, config)


def test_a_checkpoint_of_the_old_weights_is_not_gone_on_from(own_model, make):
    run, config = make(model_id=str(own_model))
    before = resume.identity(run, config)
    rebuilt(own_model)
    assert resume.differences(before, resume.identity(run, config)) == ["the base model's files are others"]


def test_large_files_are_sampled(own_model, monkeypatch):
    monkeypatch.setattr(base, "WHOLE", 1000)
    config = resolve({"model_id": str(own_model)}, env={})
    before = base_weights(config)
    assert before["method"] == "sampled"
    file = own_model / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor + torch.randn_like(tensor) * 1e-4 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    assert base_weights(config)["digest"] != before["digest"]
    tiny_model(own_model, hidden_size=64)
    assert base_weights(config)["bytes"] > before["bytes"]


def test_the_embedded_model_and_one_that_is_not_here():
    assert base_weights(resolve({}, env={}))["method"] == "sha256"
    assert base_weights(resolve({"model_id": "nobody/no-such-model-anywhere"}, env={})) is None
