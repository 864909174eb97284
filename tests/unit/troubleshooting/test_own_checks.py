"""Checks of the suite's own, failed for real on a tiny run: each is recognised, with the error that caused it."""

import json
import math

import pytest
from tiny import tiny_model

from mac_lora_helpers import data, export, training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.troubleshooting import explain


@pytest.fixture
def run_and_config(tmp_path):
    """A run directory as notebook 02 leaves it."""
    rows = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello there"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"messages": [*rows, *rows[: 2 * (i % 2)]], "n": i}) + "\n" for i in range(12)))
    values = {"model_id": str(tiny_model(tmp_path / "model")), "data_files": str(tmp_path / "d.jsonl"), "out_dir": str(tmp_path / "run")}
    config = resolve({"preset": "local", "max_steps": 2, "gradient_accumulation_steps": 1, **values}, {})
    run = RunDir(config.out_dir)
    source = data.load(config)
    found = data.validate(source, config)
    splits = data.split(found, config)
    data.save(run, source, found, splits, data.encode(splits, data.load_tokenizer(config), config), config)
    return run, config


def trainer_of(run, config):
    return training.run_cells({"run": run, "config": config}, last="trainer")["trainer"]


def failure_of(action, *arguments):
    with pytest.raises(CheckFailed) as caught:
        action(*arguments)
    return caught.value


def test_tokens_that_were_changed(run_and_config):
    run, _ = run_and_config
    manifest = run.read_json("manifest")
    run.write_json("manifest", {**manifest, "fingerprint": "sha256:" + "0" * 64})
    assert explain(failure_of(data.load_tokens, run)).key == "data-changed"


def test_a_loss_that_is_not_a_number(run_and_config):
    trainer = trainer_of(*run_and_config)
    trainer.model.get_base_model().get_input_embeddings().register_forward_hook(lambda module, given, output: output * math.nan)
    assert explain(failure_of(trainer.train)).key == "loss-nan"


def test_memory_that_runs_out_in_a_step(run_and_config):
    """The allocator's own refusal inside a training step."""
    import torch

    trainer = trainer_of(*run_and_config)
    trainer.model.get_base_model().get_input_embeddings().register_forward_hook(lambda module, given, output: torch.empty(10**14))
    error = failure_of(trainer.train)
    assert explain(error).key == "out-of-memory"
    assert "can't allocate memory" in str(error.__cause__)


def test_an_adapter_that_changes_nothing(run_and_config):
    run, config = run_and_config
    trainer = trainer_of(run, config)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    trainer.save_model()
    assert explain(failure_of(training.examine, trainer)).key == "audit"


def test_an_export_that_says_something_else():
    check = object.__new__(export.Check)
    check.entries = [{"name": "merged", "passed": False, "causes": ["the template differs"], "path": "export/merged"}]
    assert explain(failure_of(check.require_passed)).key == "export-differs"
