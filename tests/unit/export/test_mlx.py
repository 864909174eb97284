"""The MLX adapter in mlx-lm's form, and the merged model quantized by mlx-lm."""

import json

import numpy as np
import pytest
from exporting import Exported, merge
from trained_run import changed, make_trained

from mac_lora_helpers import export
from mac_lora_helpers.adapter import Adapter
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export import mlx
from mac_lora_helpers.export.source import Updates

needs_mlx = pytest.mark.skipif(not mlx.available(), reason="mlx-lm is not installed")
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
TWO_ROPES = {name: {"rope_type": "default", "rope_theta": base} for name, base in (("full_attention", 5e5), ("sliding_attention", 2e4))}
#: name → (family, adapted modules, settings, the MLX adapter is written, merged runs in mlx-lm or why it is not checked)
FAMILIES = {
    "gpt2": ("gpt2", ["c_attn", "c_proj", "c_fc"], GPT2, True, "does not run the untouched base either"),
    "bloom": ("bloom", ["query_key_value"], {"n_layer": 2, "n_head": 4, "max_position_embeddings": None}, False, "does not run the"),
    "phi3": ("phi3", ["qkv_proj", "o_proj"], {}, True, True),
    "gemma2": ("gemma2", QKVO, GEMMA, True, True),
    "gemma3": ("gemma3_text", QKVO, {"num_hidden_layers": 6, "rope_parameters": TWO_ROPES, **GEMMA}, True, True),
}


def converted(made, **lora):
    source, _, _ = merge(made.run, made.config)
    settings = __import__("transformers").AutoConfig.from_pretrained(source.base)
    return source.updates, *mlx.to_mlx(source.updates, mlx.linear_shapes(settings), settings.num_hidden_layers, settings.model_type)


def test_every_update_is_what_it_was(tmp_path):
    lora = {"r": 8, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}
    updates, tensors, settings = converted(make_trained(tmp_path, lora=lora))
    assert settings["fine_tune_type"] == "lora"
    assert settings["num_layers"] == 2
    scale = settings["lora_parameters"]["scale"]
    for module, update in updates.modules.items():
        a, b = tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"]
        assert a.shape[1] == b.shape[0] == settings["lora_parameters"]["rank"] == 8
        np.testing.assert_allclose(np.float32(scale) * (a @ b).T, update.delta(), atol=1e-5)


def test_an_adapter_in_the_top_layers_is_counted_from_the_end(tmp_path):
    _, tensors, settings = converted(make_trained(tmp_path, lora={"layers_to_transform": [1], "layers_pattern": "layers"}))
    assert settings["num_layers"] == 1
    assert all(name.startswith("model.layers.1.") for name in tensors)


def test_a_layer_that_peft_left_out_gets_zeros(tmp_path):
    _, tensors, _ = converted(make_trained(tmp_path, lora={"target_modules": r".*layers\.(0\.self_attn\.q_proj|1\.self_attn\.v_proj)"}))
    assert not tensors["model.layers.1.self_attn.q_proj.lora_b"].any()
    assert tensors["model.layers.1.self_attn.v_proj.lora_b"].any()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_mlx_cannot_hold_is_left_out_with_a_reason(tmp_path):
    made = make_trained(tmp_path, lora={"use_dora": True})
    source, _, _ = merge(made.run, made.config)
    written = export.write_mlx(made.run, made.config, source)
    assert written.adapter is None
    assert "DoRA" in written.rows[0][3]
    with pytest.raises(InputError, match="shared head"):
        mlx.to_mlx(Updates({}, {"lm_head": None}, []), {}, 2)


@needs_mlx
@pytest.mark.parametrize("bits", [4, 8])
def test_the_merged_model_is_quantized_and_checked(trained, bits):
    config = changed(trained.config, mlx_export_bits=bits)
    source, reference, _ = merge(trained.run, config)
    written = export.write_mlx(trained.run, config, source)
    saved = json.loads((written.model / "config.json").read_text())
    assert saved["quantization"]["bits"] == bits
    assert saved["quantization"]["group_size"] == 32  # the widths are 32 and 64
    assert saved["rope_theta"] == 10000.0
    entry = Exported(trained.run, source, reference, None, export.Gguf(trained.run, config, source), written).check(f"MLX, {bits} bits")
    assert entry[f"MLX, {bits} bits"]["engine"].startswith("mlx-lm")
    assert entry[f"MLX, {bits} bits"]["passed"] is not False, entry


@needs_mlx
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_families_pass_in_mlx_or_say_why_not(tmp_path, name):
    family, targets, settings, adapter, runs = FAMILIES[name]
    made = make_trained(tmp_path, family, lora={"target_modules": targets}, **settings)
    source, reference, _ = merge(made.run, made.config)
    written = export.write_mlx(made.run, made.config, source)
    assert (written.adapter is not None) == adapter, written.rows
    done = Exported(made.run, source, reference, None, export.Gguf(made.run, changed(made.config, gguf_types=""), source), written)
    found = done.check()
    assert (found["adapter (PEFT)"]["passed"], found["merged"]["passed"]) == (True, True), found
    for entry in (found[key] for key in ("MLX adapter", "merged in mlx-lm") if key in found):
        assert entry["passed"] is (True if runs is True else None), entry
        assert runs is True or runs in entry["note"], entry


def test_the_adapter_on_disk_is_the_one_that_was_converted(trained):
    source, _, _ = merge(trained.run, trained.config)
    written = export.write_mlx(trained.run, trained.config, source)
    from mac_lora_helpers.export.equivalence.tensors import in_mlx

    assert in_mlx(written.adapter, Updates.of(Adapter.read(source.folder)), lambda module: module).faults == []
    assert (written.adapter / "adapter_config.json").is_file()
