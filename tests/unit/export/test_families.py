"""Families that no GGUF is written for: adapter and merged model are checked, MLX is checked where mlx-lm knows the family.

What mlx-lm does not support is "not checked", with a reason; a damaged file of a family that it does support fails.
"""

import numpy as np
import pytest
from trained_run import copy_of, edit_json, make_trained

from mac_lora_helpers import export
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export import adapter as adapters
from mac_lora_helpers.export.equivalence import engine_mlx
from mac_lora_helpers.export.mlx.config import mlx_keys

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
needs_mlx = pytest.mark.skipif(not engine_mlx.available(), reason="mlx-lm is not installed")
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
HALF = {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5}
UNTIED = {"tie_word_embeddings": False}
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
TWO_ROPES = {name: {"rope_type": "default", "rope_theta": base} for name, base in (("full_attention", 5e5), ("sliding_attention", 2e4))}
#: name → (family, adapted modules, settings, the MLX adapter is written, merged runs in mlx-lm or why it is not checked)
FAMILIES = {
    "gpt2": ("gpt2", ["c_attn", "c_proj", "c_fc"], GPT2, False, "no place for model.transformer.h.0"),
    "gpt2 as on the Hub": ("gpt2", ["c_attn", "c_proj", "c_fc"], GPT2, True, "no place for model.transformer.h.0"),
    "gpt_neox": (
        "gpt_neox",
        ["query_key_value", "dense"],
        {"intermediate_size": 128, "rope_parameters": {**HALF, "partial_rotary_factor": 0.25}, **UNTIED},
        True,
        True,
    ),
    "gpt_neox tied": ("gpt_neox", ["query_key_value", "dense"], {"intermediate_size": 128}, False, "wants model.embed_out.weight"),
    "bloom": (
        "bloom",
        ["query_key_value", "dense"],
        {"n_layer": 2, "n_head": 4, "max_position_embeddings": None},
        False,
        "does not know bloom",
    ),
    "phi": ("phi", ["q_proj", "k_proj", "v_proj", "dense"], {"rope_parameters": HALF, **UNTIED}, True, True),
    "phi tied": ("phi", ["q_proj", "dense"], {}, False, "wants lm_head.weight"),
    "phi3": ("phi3", ["qkv_proj", "o_proj"], {"rope_parameters": HALF}, True, True),
    "gemma": ("gemma", QKVO, {"head_dim": 8}, True, True),
    "gemma2": ("gemma2", QKVO, GEMMA, True, True),
    "gemma3": ("gemma3_text", QKVO, {"num_hidden_layers": 6, "rope_parameters": TWO_ROPES, **GEMMA}, True, True),
    "gemma3 of two blocks": ("gemma3_text", QKVO, GEMMA, True, "does not run the untouched base either"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Gives a family's finished export; made once."""
    made = {}

    def give(name):
        if name not in made:
            family, targets, settings, *_ = FAMILIES[name]
            done = made[name] = make_trained(tmp_path_factory.mktemp(family), family, lora={"target_modules": targets}, **settings)
            if name == "gpt2 as on the Hub":
                _rename(done.base / "model.safetensors", lambda weight: weight.removeprefix("transformer."))
            export.merge(done.run, done.config)
            done.files = export.write_engine_files(done.run, done.config)
        return made[name]

    return give


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of a family's export, to be damaged."""

    def give(name):
        return copy_of(exported(name), tmp_path)

    return give


def _rename(path, name):
    from safetensors.torch import load_file, save_file

    save_file({name(key): value for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


def _rewrite(path, **replaced):
    """Replaces weights of a file; None takes one out."""
    from safetensors.numpy import load_file, save_file

    weights = {**load_file(path), **{name: value for name, value in replaced.items() if value is not None}}
    kept = {name: np.ascontiguousarray(value) for name, value in weights.items() if name not in replaced or replaced[name] is not None}
    save_file(kept, path, metadata={"format": "pt"})


def checked(made):
    return {item["name"]: item for item in export.check_equivalence(made.run, made.config).artefacts}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_export_of_every_family_ends_well(exported, name):
    made, (family, _, _, has_mlx, in_mlx) = exported(name), FAMILIES[name]
    left_out = {what: (why, fix) for what, why, fix in made.files.left_out}
    assert not made.run.has("gguf")
    assert left_out["GGUF"][0].startswith(f"{family} models are not written as GGUF here")
    assert "convert_hf_to_gguf.py" in left_out["GGUF"][1]
    report = export.check_equivalence(made.run, made.config).require_passed()
    found = {item["name"]: item for item in report.artefacts}
    assert (found["adapter (PEFT)"]["passed"], found["merged"]["passed"]) == (True, True)
    assert found["merged"]["max_logprob_difference"] < 1e-4
    assert report.control["passed"] is False
    if not engine_mlx.available():
        return
    assert made.run.has("mlx") == ("MLX adapter" in found) == ("MLX" not in left_out) == has_mlx, left_out
    entries = [found[key] for key in ("MLX adapter", "merged in mlx-lm") if key in found]
    for entry in entries if in_mlx is True else [found["merged in mlx-lm"]]:
        assert (entry["passed"], in_mlx if in_mlx is not True else "") == ((True, "") if in_mlx is True else (None, in_mlx)), entry
        assert in_mlx is True or (in_mlx in entry["note"] and entry["status"] == "not checked"), entry
    if name == "gpt2 as on the Hub":
        assert found["MLX adapter"]["passed"], found["MLX adapter"]


def test_a_wrong_update_of_a_transposed_weight_is_named(copied):
    """GPT-2 keeps its weights as (in, out); a square one looks the same both ways."""
    from safetensors.numpy import load_file

    made, module = copied("gpt2"), "transformer.h.1.attn.c_proj"
    name, path = f"{module}.weight", made.run.path("merged") / "model.safetensors"
    merged = load_file(path)[name]
    delta = adapters.read_adapter(made.run.path("adapter")).updates[module].delta()
    base = merged - delta.T
    assert merged.shape[0] == merged.shape[1]
    plants = {"LoRA layer left unmerged": base, "alpha doubled": base + 2 * delta.T, "weights differ": base + delta}
    for cause, weight in plants.items():
        _rewrite(path, **{name: weight})
        entry = checked(made)["merged"]
        assert (entry["passed"], entry["causes"][:1]) == (False, [f"{cause}: {name}"])


def test_a_renamed_head_is_compared_too(copied):
    """GPT-NeoX's ``embed_out`` is transformers' ``lm_head``."""
    from safetensors.numpy import load_file

    made = copied("gpt_neox")
    path = made.run.path("merged") / "model.safetensors"
    _rewrite(path, **{"embed_out.weight": load_file(path)["embed_out.weight"] * 1.2})
    entry = checked(made)["merged"]
    assert (entry["passed"], entry["causes"]) == (False, ["weights differ: lm_head.weight"])


@pytest.mark.parametrize("name", ["gpt_neox", "phi"])
@needs_mlx
def test_a_damaged_folder_of_a_family_that_mlx_lm_knows_fails(copied, name):
    made = copied(name)
    folder = made.run.path("merged")
    head = {"gpt_neox": "embed_out.weight", "phi": "lm_head.weight"}[name]
    good = (folder / "model.safetensors").read_bytes()
    _rewrite(folder / "model.safetensors", **{head: None})
    entry = checked(made)["merged in mlx-lm"]
    assert (entry["passed"], entry["note"]) == (False, "")
    assert entry["causes"][0].startswith("does not load"), entry
    (folder / "model.safetensors").write_bytes(good)
    key = {"gpt_neox": "rotary_pct", "phi": "partial_rotary_factor"}[name]
    edit_json(folder / "config.json", drop=(key,))
    entry = checked(made)["merged in mlx-lm"]
    assert entry["passed"] is False
    assert entry["causes"][0] == f"metadata changed for mlx-lm: no {key} in config.json"


@needs_mlx
def test_a_fault_fails_also_where_mlx_lm_cannot_run_the_family(copied):
    made = copied("gemma3 of two blocks")
    path = made.run.path("mlx") / adapters.SETTINGS
    edit_json(path, lora_parameters={"rank": 4, "scale": 4.0, "dropout": 0.0, "keys": [f"self_attn.{part}" for part in QKVO]})
    report = export.check_equivalence(made.run, made.config)
    entry = next(item for item in report.artefacts if item["name"] == "MLX adapter")
    assert entry["causes"][0].startswith("alpha doubled")
    with pytest.raises(CheckFailed, match="MLX adapter: alpha doubled"):
        report.require_passed()


@needs_mlx
def test_an_mlx_adapter_of_renamed_blocks_comes_back(exported, tmp_path):
    for name in ("gpt2 as on the Hub", "gpt_neox"):
        made = exported(name)
        before = adapters.read_adapter(made.run.path("adapter")).updates
        after = adapters.read_adapter(export.mlx_to_peft(made.run.path("mlx"), tmp_path / name, str(made.base))).updates
        assert after.keys() == before.keys()
        for module, update in before.items():
            np.testing.assert_allclose(after[module].delta(), update.delta(), rtol=1e-5, atol=1e-6)


def test_without_mlx_lm_only_known_layouts_are_written(exported, monkeypatch):
    monkeypatch.setattr(engine_mlx, "available", lambda: False)
    bloom, phi = exported("bloom"), exported("phi")
    assert [(what, "names of the layers" in why) for what, why, _ in export.write_engine_files(bloom.run, bloom.config).left_out] == [
        ("GGUF", False),
        ("MLX", True),
    ]
    assert export.write_mlx(phi.run, phi.config).modules == 8


@pytest.mark.parametrize(
    ("family", "lora", "part"),
    [("gpt2", ["c_attn", "lm_head"], "lm_head"), ("gpt2", ["c_attn", "wte"], "wte"), ("gpt_neox", ["dense", "lm_head"], "lm_head")],
    ids=["gpt2 head", "gpt2 embedding", "gpt_neox head"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_shared_head_is_untied_whatever_the_family_calls_it(tmp_path, family, lora, part):
    made = make_trained(tmp_path, family, lora={"target_modules": lora}, **(GPT2 if family == "gpt2" else {}))
    assert export.merge(made.run, made.config).head == f"untied: the adapter trains {part} alone"
    export.write_engine_files(made.run, made.config)
    assert export.check_equivalence(made.run, made.config).require_passed().artefacts[1]["passed"]


def test_settings_that_mlx_lm_reads():
    assert mlx_keys({"model_type": "gpt2", "n_positions": 64}) == {"n_ctx": 64}
    neox = {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.25}
    assert mlx_keys({"model_type": "gpt_neox", "rope_parameters": neox}) == {
        "rope_theta": 5.0,
        "partial_rotary_factor": 0.25,
        "rotary_emb_base": 5.0,
        "rotary_pct": 0.25,
    }
    linear = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    gemma = {"full_attention": linear, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    assert mlx_keys({"model_type": "gemma3_text", "_sliding_window_pattern": 6, "rope_parameters": gemma}) == {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0, "type": "linear"},
        "sliding_window_pattern": 6,
    }
