"""Device and dtype from the environment's room, the estimate from the configuration alone, and 02's own tokens in 03."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mac_lora_helpers import data, training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.training import forecast


def test_place_says_when_notebook_01_saw_another_machine(make):
    run, config = make(device="cpu")
    device, dtype = training.place(run, config)
    assert (device.name, dtype.name) == ("cpu", "float32")
    run.write_json("environment", {"device": {"name": "mps", "reason": "x"}, "dtype": {"name": "float32", "reason": "y"}})
    device, dtype = training.place(run, config)
    assert device.name == "cpu"
    assert "environment.json says mps" in device.reason
    assert "environment.json" not in dtype.reason


def test_notebook_02s_tokens_are_trained_on_as_they_stand(tmp_path, train):
    """The embedded model and data, through the rooms' own functions, as the notebooks call them."""
    config = resolve({"out_dir": str(tmp_path / "run"), "max_steps": 12, "device": "cpu", "learning_rate": 1e-3}, env={})
    run = RunDir(config.out_dir)
    source = data.load(config)
    found = data.validate(source, config)
    splits = data.split(found, config)
    tokenizer = data.load_tokenizer(config)
    encoded = data.encode(splits, tokenizer, config)
    data.save(run, source, found, splits, encoded, config)

    manifest, tokens = data.load_tokens(run)
    config = config.inherit(manifest["config"], "data", made_by="02_data_formatting.ipynb")
    device, dtype = training.place(run, config)
    model = training.load_model(config, device, dtype)
    args = training.sft_config(config, run, device, dtype)
    trainer = training.build_trainer(model, tokenizer, tokens, training.lora_config(config, model), args, run, config)
    result = trainer.train(resume_from_checkpoint=training.last_checkpoint(run, config))
    training.save_adapter(trainer, run, config)
    metrics = training.finish(trainer, result, run, config)
    assert metrics["data_fingerprint"] == manifest["fingerprint"]
    assert metrics["audit"]["batches_equal_data"] is True
    assert metrics["audit"]["loss_fell"] is True
    assert metrics["valid_loss_tuned"] < metrics["valid_loss_base"]
    assert run.read_json("train_config")["config"]["model_id"] == "embedded"
    assert json.loads((run.path("adapter") / "adapter_config.json").read_text())["base_model_name_or_path"] == "embedded"


def test_bfloat16_base_with_float32_adapters(make, trainer_for, tokens):
    from types import SimpleNamespace

    run, config = make(dtype="bfloat16")
    trainer = trainer_for(run, config, tokens, dtype=SimpleNamespace(name="bfloat16", reason="test"))
    result = trainer.train()
    training.save_adapter(trainer, run, config)
    metrics = training.finish(trainer, result, run, config)
    assert metrics["dtype"] == run.read_json("train_config")["dtype"] == "bfloat16"
    assert metrics["audit"]["dtype_as_asked"]
    assert {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad} == {"torch.float32"}
    assert (trainer.args.bf16, trainer.args.fp16) == (False, False)


def test_the_estimate_needs_no_weights(make, tmp_path, model_folder):
    folder = tmp_path / "config-only"
    folder.mkdir()
    (folder / "config.json").write_text((model_folder / "config.json").read_text())
    _, config = make(model_id=str(folder), max_steps=50, device="cpu")
    found = training.estimate(config)
    assert found["fits"] is True
    assert found["verdict"] == "fits"
    assert (found["steps"], found["step_source"]) == (50, "max_steps")
    assert found["memory"]["total_bytes"] == sum(found["memory"]["parts"].values())
    assert set(found["memory"]["parts"]) == set(forecast.MEANINGS)
    json.dumps(found)


def test_the_estimate_of_the_real_default_is_what_its_numbers_say(tmp_path):
    """Qwen2.5-0.5B: 494 M parameters, and at 512 tokens about 2.5 MiB of activations a token (measured: 2.55)."""
    folder = real_default(tmp_path)
    parts = {}
    for checkpointing in (True, False):
        values = {"preset": "local", "model_id": str(folder), "out_dir": str(tmp_path / "none"), "device": "cpu", "fast_path": "off"}
        found = training.estimate(resolve({**values, "gradient_checkpointing": checkpointing}, env={}))
        parts[checkpointing] = found["memory"]["parts"]
        assert found["parameters"]["base"] == 494_032_768
        assert found["parameters"]["adapter"] == 2_162_688
    assert parts[False]["weights"] == 4 * 494_032_768
    assert parts[False]["activations"] / 512 / 2**20 == pytest.approx(2.55, rel=0.05)
    assert parts[True]["activations"] / 512 / 2**20 == pytest.approx(24 * 896 * 4 / 2**20, rel=0.1)
    assert found["steps"] is None
    assert not (tmp_path / "none").exists(), "an estimate writes nothing"


def real_default(tmp_path):
    from transformers import Qwen2Config

    folder = tmp_path / "qwen2.5-0.5b"
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    Qwen2Config(vocab_size=151936, tie_word_embeddings=True, **sizes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("free", "told"),
    [
        (16e9, "per_device_train_batch_size=1 with gradient_accumulation_steps=32 fits"),
        (4e9, "gradient_checkpointing=true, max_seq_length=768 fits"),
        (2e9, "a smaller model, or train in the cloud"),
    ],
)
def test_what_does_not_fit_is_told_with_settings_that_do(free, told, tmp_path, monkeypatch):
    values = {"preset": "local", "model_id": str(real_default(tmp_path)), "out_dir": str(tmp_path / "none"), "device": "cpu"}
    config = resolve({**values, "max_seq_length": 2048, "per_device_train_batch_size": 4, "gradient_checkpointing": False}, env={})
    monkeypatch.setattr(forecast.memory, "available", lambda device: int(free))
    found = training.estimate(config)
    assert found["fits"] is False
    assert found["verdict"] == "does not fit"
    assert told in found["advice"], found["advice"]
    assert "a batch of 4 × 2048 tokens needs about" in found["advice"]


def test_a_model_that_cannot_be_read(make):
    _, config = make(model_id="/no/such", device="cpu")
    with pytest.raises(InputError, match="configuration of"):
        training.estimate(config)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "checkpointing"), [("llama", False), ("llama", True), ("gpt2", False)])
def test_predicted_memory_is_near_the_measured_one(family, checkpointing, tmp_path):
    """In a process of its own: a model large enough for its tensors to outweigh the process; within a fifth."""
    spec = {"family": family, "gradient_checkpointing": checkpointing, "rows": 4, "tokens": 256, "out_dir": str(tmp_path / "run")}
    spec["shape"] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 16000}
    script = Path(__file__).with_name("measure_memory.py")
    done = subprocess.run([sys.executable, str(script), json.dumps(spec)], capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["predicted"] / found["measured"] == pytest.approx(1, abs=0.2), found
