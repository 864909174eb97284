"""The adapter in mlx-lm's form and back; logits in mlx-lm where it is installed."""

import json

import numpy as np
import pytest
from trained_run import changed, edit_json, make_trained

from mac_lora_helpers import export
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export import adapter as adapters
from mac_lora_helpers.export.equivalence import engine_mlx
from mac_lora_helpers.export.mlx.adapter import read_mlx
from mac_lora_helpers.export.mlx.config import mlx_rope_keys

needs_mlx = pytest.mark.skipif(not engine_mlx.available(), reason="mlx-lm is not installed")
PATTERNS = {
    "plain": {},
    "patterns": {"r": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
    "rank-stabilised": {"r": 8, "use_rslora": True, "rank_pattern": {"o_proj": 3}},
    "last block only": {"layers_to_transform": [1]},
    "uneven": {"target_modules": r"model\.layers\.(0\.self_attn\.q_proj|1\.mlp\.down_proj)"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_there_and_back_is_the_same_update(tmp_path, name):
    trained = make_trained(tmp_path, lora=PATTERNS[name], tie_word_embeddings=False)
    report = export.write_mlx(trained.run, trained.config)
    before = adapters.read_adapter(trained.run.path("adapter")).updates
    assert report.modules == len(before) + report.padded
    back = export.mlx_to_peft(report.path, tmp_path / "back", str(trained.base))
    after = adapters.read_adapter(back).updates
    assert after.keys() == before.keys()
    for module, update in before.items():
        np.testing.assert_allclose(after[module].delta(), update.delta(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("family", "name"), [*(("qwen2", name) for name in PATTERNS), ("llama", "plain"), ("llama", "patterns")])
@pytest.mark.filterwarnings("ignore::UserWarning")
@needs_mlx
def test_mlx_lm_gives_the_adapters_logits(tmp_path, family, name):
    rope = {"rope_type": "default", "rope_theta": 50000.0}
    trained = make_trained(tmp_path, family, lora=PATTERNS[name], tie_word_embeddings=False, rope_parameters=rope)
    export.write_mlx(trained.run, trained.config)
    entry = export.check_equivalence(trained.run, trained.config).artefacts[-1]
    assert (entry["name"], entry["passed"]) == ("MLX adapter", True), entry
    assert entry["max_logprob_difference"] < 1e-3
    assert entry["prompt_ids_equal"]


@needs_mlx
def test_a_peft_folder_made_from_mlx_runs_in_peft(tmp_path):
    trained = make_trained(tmp_path)
    export.write_mlx(trained.run, trained.config)
    export.mlx_to_peft(trained.run.path("mlx"), tmp_path / "back", str(trained.base))
    report = export.merge(trained.run, changed(trained.config, adapter_dir=str(tmp_path / "back")))
    assert report.passed
    entry = next(item for item in export.check_equivalence(trained.run, trained.config).artefacts if item["name"] == "merged in mlx-lm")
    assert entry["passed"], entry


@needs_mlx
def test_faults_of_the_mlx_adapter_are_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    trained = make_trained(tmp_path)
    export.write_mlx(trained.run, trained.config)
    folder = trained.run.path("mlx")
    settings = json.loads((folder / adapters.SETTINGS).read_text())
    edit_json(folder / adapters.SETTINGS, lora_parameters={**settings["lora_parameters"], "scale": 4.0})
    entry = export.check_equivalence(trained.run, trained.config).artefacts[-1]
    assert entry["passed"] is False
    assert entry["causes"][0].startswith("alpha doubled")
    assert entry["max_logprob_difference"] > entry["tolerance"]
    edit_json(folder / adapters.SETTINGS, lora_parameters=settings["lora_parameters"])
    weights = load_file(folder / "adapters.safetensors")
    weights["model.layers.0.self_attn.k_proj.lora_b"][:] = 0
    save_file(weights, folder / "adapters.safetensors")
    entry = export.check_equivalence(trained.run, trained.config).artefacts[-1]
    assert entry["causes"] == ["LoRA layer left unmerged: model.layers.0.self_attn.k_proj"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_plain_lora_is_refused(tmp_path):
    trained = make_trained(tmp_path, lora={"use_dora": True})
    with pytest.raises(InputError, match="DoRA"):
        export.write_mlx(trained.run, trained.config)
    assert not trained.run.has("mlx")


def test_foreign_mlx_folders_are_refused_in_words(tmp_path):
    trained = make_trained(tmp_path)
    export.write_mlx(trained.run, trained.config)
    folder = trained.run.path("mlx")
    for kind in ("dora", "full"):
        edit_json(folder / adapters.SETTINGS, fine_tune_type=kind)
        with pytest.raises(InputError, match=kind):
            read_mlx(folder)
    (folder / "adapters.safetensors").unlink()
    edit_json(folder / adapters.SETTINGS, fine_tune_type="lora")
    with pytest.raises(InputError, match=r"adapters\.safetensors"):
        read_mlx(folder)


def test_rope_settings_in_the_older_form():
    assert mlx_rope_keys({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}) == {"rope_theta": 5.0}
    linear = mlx_rope_keys({"rope_parameters": {"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0}})
    assert linear == {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0}}
    assert mlx_rope_keys({"rope_theta": 5.0}) == {}
