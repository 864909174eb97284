"""Fixtures of the evaluation room: a tiny model, and one with an adapter loaded over it."""

import pytest
from evaluation_runs import chat_rows, make_run, resolved, save_adapter
from tiny import tiny_model

from mac_lora_helpers import evaluation


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random Qwen2 whose logits are far enough apart for greedy answers to be stable."""
    return tiny_model(tmp_path_factory.mktemp("model"), initializer_range=0.2)


@pytest.fixture(scope="session")
def run(model_folder, tmp_path_factory):
    """A run directory with an adapter that changes the answers. Read only: tests that damage it make their own."""
    return make_run(tmp_path_factory.mktemp("run"), model_folder, strength=0.5)


@pytest.fixture
def trained(run, model_folder):
    return evaluation.load(run, resolved(model_folder))


@pytest.fixture
def useless(model_folder, tmp_path):
    """A run whose adapter is as before the first training step: lora_B is zero."""
    save_adapter(model_folder, tmp_path / "adapter", strength=0.0)
    return evaluation.load(make_run(tmp_path / "run", model_folder), resolved(model_folder, adapter_dir=str(tmp_path / "adapter")))


@pytest.fixture
def rows():
    return chat_rows(24)
