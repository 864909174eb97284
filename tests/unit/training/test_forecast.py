"""The memory forecast: what was measured once, what a real step keeps, checkpointing by what fits, and a model that cannot be counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model

from mac_lora_helpers import training
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.training import counting, memory
from mac_lora_helpers.training.forecast import MEANINGS, read_model_config

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
import memory_forecast as benchmark

PLENTY = 10**12
#: Qwen2.5-0.5B's shape: 494 M parameters.
HALF_B = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """Enough layers for three of them to stand for all."""
    return tiny_model(tmp_path_factory.mktemp("deep") / "qwen2", num_hidden_layers=5)


@pytest.fixture
def asked(deep_folder):
    def build(**parameters):
        return resolve({"preset": "local", "model_id": str(deep_folder), "max_seq_length": 64, "device": "cpu", **parameters}, env={})

    return build


@pytest.fixture
def half_b(tmp_path):
    """``half_b(**parameters)``: a config over the 0.5B shape, which has no weights here."""
    from transformers import Qwen2Config

    Qwen2Config(vocab_size=151936, tie_word_embeddings=True, **HALF_B).save_pretrained(tmp_path / "half")
    values = {"preset": "local", "model_id": str(tmp_path / "half"), "out_dir": str(tmp_path / "none"), "device": "cpu"}
    return lambda **parameters: resolve({**values, **parameters}, env={})


@pytest.mark.parametrize("point", range(len(benchmark.POINTS)), ids=lambda index: "-".join(map(str, benchmark.POINTS[index])))
def test_the_recorded_measurements(point):
    """Each peak in ``benchmarks/RESULTS.md`` was measured in a process of its own; the forecast is within 15 % of it."""
    asked, measured = benchmark.POINTS[point], benchmark.recorded()[point]
    found = training.forecast(benchmark.parameters(asked, "unused"), benchmark.model_config(*asked[:2]), None, "cpu", PLENTY)
    assert found.total_bytes == pytest.approx(measured, rel=0.15)


def test_three_layers_stand_for_all(asked):
    config = asked(lora_layers=4)
    shape = read_model_config(config)
    stretched, whole = counting.count(config, shape, 1, 64, "cpu"), counting.meta_model(shape, "float32")
    with counting._shapes_only():
        run = counting._run(whole, counting.lora_for(config, whole), 1, 64, "cpu")
    assert (stretched.layers, stretched.adapter, stretched.outside) == (run.layers, run.adapter, run.outside)


def test_the_half_billion_shape(half_b):
    """Parameters known by heart; 2.3 MiB of activations a token, or each layer's input with checkpointing."""
    plain = training.forecast(half_b(fast_path="off", gradient_checkpointing=False), available=PLENTY)
    saving = training.forecast(half_b(fast_path="off", gradient_checkpointing=True), available=PLENTY)
    assert plain.parameters == {"base": 494_032_768, "adapter": 2_162_688, "layers": 24}
    assert plain.parts["weights"] == 4 * 494_032_768
    assert plain.parts["activations"] / 512 / 2**20 == pytest.approx(2.34, rel=0.05)
    assert saving.parts["activations"] / 512 / 2**20 == pytest.approx(24 * 896 * 4 / 2**20, rel=0.1)


def test_each_setting_that_saves_memory_does(half_b):
    sizes = [
        training.forecast(half_b(**values), available=PLENTY).total_bytes
        for values in ({"fast_path": "off", "gradient_checkpointing": False}, {}, {"fast_path": "lean"}, {"dtype": "bfloat16"})
    ]
    assert sizes == sorted(sizes, reverse=True)
    short = training.forecast(half_b(max_seq_length=256), available=PLENTY)
    half = training.forecast(half_b(lora_layers=12), available=PLENTY)
    assert max(short.total_bytes, half.total_bytes) < sizes[1]


@pytest.mark.parametrize(
    ("free", "told"),
    [
        (12e9, "per_device_train_batch_size=1 with gradient_accumulation_steps=32 would need about"),
        (4e9, "gradient_checkpointing=true, max_seq_length=768 would need about"),
        (2e9, "a smaller model, or train in the cloud"),
    ],
)
def test_what_does_not_fit_is_told_with_settings_that_do(half_b, free, told, monkeypatch):
    config = half_b(max_seq_length=2048, per_device_train_batch_size=4, gradient_checkpointing=False)
    monkeypatch.setattr(memory, "available", lambda device: int(free))
    found = training.estimate(config)
    assert (found["fits"], found["verdict"]) == (False, "does not fit")
    assert told in found["advice"]
    assert "a batch of 4 × 2048 tokens needs about" in found["advice"]


def test_the_estimate_needs_no_weights_and_writes_nothing(half_b, tmp_path):
    found = training.estimate(half_b(max_steps=50))
    assert (found["steps"], found["step_source"]) == (50, "max_steps")
    assert found["memory"]["total_bytes"] == sum(found["memory"]["parts"].values())
    assert set(found["memory"]["parts"]) == set(MEANINGS)
    assert training.estimate(half_b())["steps"] is None
    assert not (tmp_path / "none").exists()
    json.dumps(found)


def test_form_trainer_and_estimate_say_the_same_bytes(make, trainer_for, tokens, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: PLENTY)
    run, config = make(device="cpu", max_seq_length=24)
    lengths = [len(ids) for ids in tokens["train"]["input_ids"]]
    form, told = training.forecast(config, lengths=lengths), trainer_for(run, config, tokens).forecast
    assert form.total_bytes == told.total_bytes
    longest = config.model_copy(update={"max_seq_length": max(lengths)})
    assert training.estimate(longest)["memory"]["total_bytes"] == form.total_bytes


def test_a_model_that_cannot_be_counted_trains_on_the_saving_side(make, train, tokens, monkeypatch, capsys):
    def refuses(*_):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(counting, "_count", refuses)
    monkeypatch.setattr(counting, "_counted", {})
    run, config = make(device="cpu", fast_path="off")
    assert training.estimate(config)["verdict"] == "not counted"
    trainer, metrics = train(run, config, tokens)
    assert trainer.args.gradient_checkpointing is True
    assert metrics["predicted_memory_bytes"] is None
    assert "Tensor.item()" in metrics["not_predicted"]
    assert metrics["audit"]["lora_b_nonzero"]
    assert "gradient checkpointing on: the memory could not be counted" in capsys.readouterr().out
    assert trainer.forecast.rows() == [("together", "not counted", trainer.forecast.reason)]


def test_advice_never_raises(asked):
    for values in ({"model_id": "/no/such"}, {"lora_targets": "no_such_proj"}, {"lora_layers": 99}):
        found = training.forecast(asked(**values))
        assert (found.total_bytes, found.fits) == (None, None)
        assert "; to do: " in found.reason
        assert found.verdict == "not counted"
    with pytest.raises(InputError, match="no such folder"):
        training.estimate(asked(model_id="/no/such"))


@pytest.mark.parametrize(("free", "on"), [(10**10, False), (10**6, True)])
def test_checkpointing_by_what_fits(make, train, tokens, monkeypatch, capsys, free, on):
    run, config = make(max_steps=1)
    assert config.gradient_checkpointing == "auto"
    monkeypatch.setattr(memory, "available", lambda device: free)
    trainer, _ = train(run, config, tokens)
    assert trainer.args.gradient_checkpointing is trainer.args.activation_checkpointing is on
    assert run.read_json("train_config")["gradient_checkpointing"] is on
    told = capsys.readouterr().out
    assert ("gradient checkpointing on: without it" if on else "gradient checkpointing off: all of it fits") in told


def test_metals_recommendation_bounds_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "recommended", lambda device: 5_000 if device == "mps" else None)
    assert memory.available("mps") == 5_000
    assert memory.available("cpu") > 5_000


@pytest.mark.slow
def test_a_real_training_takes_what_was_predicted(tmp_path):
    """In a process of its own: a model large enough for its tensors to outweigh the process."""
    spec = {"family": "llama", "gradient_checkpointing": False, "rows": 4, "tokens": 256, "out_dir": str(tmp_path / "run")}
    spec["shape"] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 16000}
    script = Path(__file__).with_name("measure_memory.py")
    done = subprocess.run([sys.executable, str(script), json.dumps(spec)], capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["predicted"] / found["measured"] == pytest.approx(1, abs=0.15), found
