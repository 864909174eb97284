"""Device and dtype from the environment's room, and 02's own tokens in 03."""

import json

from mac_lora_helpers import data, training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve


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
    metrics = training.run_cells({"run": run, "config": config, "tokens": tokens}, "rows")["metrics"]
    assert metrics["data_fingerprint"] == manifest["fingerprint"]
    assert metrics["audit"]["batches_equal_data"] is True
    assert metrics["audit"]["loss_fell"] is True
    assert metrics["valid_loss_tuned"] < metrics["valid_loss_base"]
    assert run.read_json("train_config")["config"]["model_id"] == "embedded"
    assert json.loads((run.path("adapter") / "adapter_config.json").read_text())["base_model_name_or_path"] == "embedded"


def test_bfloat16_base_with_float32_adapters(make, train, tokens):
    run, config = make(dtype="bfloat16")
    trainer, metrics = train(run, config, tokens)
    assert metrics["dtype"] == run.read_json("train_config")["dtype"] == "bfloat16"
    assert metrics["audit"]["dtype_as_asked"]
    assert {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad} == {"torch.float32"}
    assert (trainer.args.bf16, trainer.args.fp16) == (False, False)
