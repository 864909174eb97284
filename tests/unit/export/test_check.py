"""The check: right exports pass, the untuned base fails, every planted fault is caught, what was done is kept."""

import copy
import json
import shutil

import numpy as np
import pytest
from exporting import export_all
from planted_gguf import SCALED, rope_lost, template_dropped, updates_scaled, vocabulary_shifted
from trained_run import add_adapter, changed, make_trained

from mac_lora_helpers import export
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.equivalence import engine_llama_cpp
from mac_lora_helpers.export.equivalence.engines import EngineFailed, ask
from mac_lora_helpers.export.equivalence.prompts import Prompt
from mac_lora_helpers.export.equivalence.scores import LIMITS, Reply, compare, limits_of
from mac_lora_helpers.export.equivalence.tensors import Projections
from mac_lora_helpers.export.mlx import available

needs_tools = pytest.mark.skipif(bool(engine_llama_cpp.missing()), reason="llama.cpp cannot be asked here")
ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Llama with scaled RoPE, its F16, Q8_0, LoRA and MLX files, checked once; the base's GGUF stays for the planted faults."""
    root = tmp_path_factory.mktemp("llama")
    trained = make_trained(root, "llama", lora={"r": 8, "lora_alpha": 8, "use_rslora": True}, rope_parameters=ROPE)
    done = export_all(trained.run, changed(trained.config, gguf_types="F16, Q8_0"))
    done.first = done.check()
    done.base = root / "base.gguf"
    export.Check(done.reference, done.gguf, done.mlx)
    from mac_lora_helpers.export.gguf.write import converter, run_tool

    run_tool(converter("convert_hf_to_gguf.py", str(done.source.base), "--outtype", "f16", "--outfile", str(done.base)), root)
    return done


@pytest.fixture
def f16(made):
    """The F16 file; it is as it was again afterwards."""
    path = next(file.path for file in made.gguf.files if file.kind == "F16")
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


@needs_tools
def test_right_exports_pass_and_the_untuned_base_fails(made):
    wanted = {"adapter (PEFT)", "merged", "GGUF F16", "LoRA GGUF", "GGUF Q8_0", "MLX adapter", "merged in mlx-lm"}
    assert made.first.keys() == wanted
    for name, entry in made.first.items():
        assert entry["passed"] or (entry["passed"] is None and entry["engine"] is None), (name, entry)
    assert made.first["GGUF F16"]["tensors"]["judged"] == 8
    report = made.run.read_json("equivalence")
    assert report["control"]["passed"] is False
    assert report["control"]["greedy_agreement"] < 0.9
    assert report["coverage"]["prompts"] == len(made.reference.prompts) <= report["coverage"]["of"]
    assert report["conditions"]["adapter_digest"] == made.source.adapter.digest
    assert {"name", "prompts", "prompt_ids_equal", "greedy_agreement", "passed"} <= report["artefacts"][0].keys()


@needs_tools
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_rounded_on_request_are_still_the_bases(dtype, tmp_path):
    """``merged_dtype`` rounds norms and biases too, which a GGUF file holds in float32."""
    trained = make_trained(tmp_path, "llama", lora={"r": 8, "lora_alpha": 8}, rope_parameters=ROPE)
    done = export_all(trained.run, changed(trained.config, gguf_types="F16", merged_dtype=dtype)).check()
    assert done["GGUF F16"]["passed"], done["GGUF F16"]


@needs_tools
def test_each_result_comes_as_it_is_done_and_an_interruption_keeps_it(made):
    check = export.Check(made.reference, made.gguf, made.mlx)
    assert "held-out prompts" in check.plan
    lines = check.lines()
    assert next(lines).startswith("adapter (PEFT)")
    lines.close()
    kept = {item["name"]: item["passed"] for item in made.run.read_json("equivalence")["artefacts"]}
    assert (kept["adapter (PEFT)"], kept["merged"]) == (True, None)
    assert check.passed is None
    assert list(made.run.path("export").glob(".base-*")) == []


@needs_tools
def test_little_time_means_few_prompts_but_four_an_engine(made):
    made.reference.source.config.check_minutes, kept = 0.001, made.reference.source.config.check_minutes
    found = made.check("merged", "GGUF F16", "LoRA GGUF")
    made.reference.source.config.check_minutes = kept
    asked = {name: entry["prompts"] for name, entry in found.items()}
    assert (asked["GGUF F16"], asked["LoRA GGUF"]) == (4, 2)
    assert 4 <= asked["merged"] <= 12, "a quick machine asks some more in the 60 ms"
    assert all(entry["passed"] for entry in found.values())


@needs_tools
@pytest.mark.parametrize("fault", SCALED)
def test_wrong_updates_are_caught_and_named(made, f16, fault):
    lora = next(file.path for file in made.gguf.files if file.kind == "LoRA")
    updates_scaled(f16, made.base, lora, SCALED[fault])
    count = {"one projection unmerged": 1, "one layer unmerged": 4}.get(fault, 8)
    found = made.check("merged", "GGUF F16", "GGUF Q8_0")
    assert found["GGUF F16"]["passed"] is False
    assert found["GGUF F16"]["causes"][0].startswith(f"{count} of 8 trained tensors are wrong"), found["GGUF F16"]
    assert "made of GGUF F16, which failed" in found["GGUF Q8_0"]["causes"]
    with pytest.raises(CheckFailed, match="does not say what the adapter says"):
        made.last.require_passed()


@needs_tools
@pytest.mark.parametrize(
    ("plant", "cause"),
    [
        (rope_lost, "log-probabilities are off by"),
        (template_dropped, "the chat template was dropped"),
        (vocabulary_shifted, "tensors that were not trained are not the base's: token_embd.weight"),
    ],
)
def test_what_else_goes_wrong_in_silence_is_caught(made, f16, plant, cause):
    plant(f16)
    entry = made.check("merged", "GGUF F16")["GGUF F16"]
    assert entry["passed"] is False
    assert any(cause in text for text in entry["causes"]), entry


@needs_tools
def test_an_adapter_of_another_run_is_caught(made, tmp_path):
    add_adapter(made.source.base, tmp_path / "other", seed=9, r=8, lora_alpha=8, use_rslora=True)
    other = copy.copy(made)
    other.run = type(made.run)(tmp_path / "run")
    shutil.copytree(made.run.root, tmp_path / "run", dirs_exist_ok=True)
    foreign = export_all(other.run, changed(made.source.config, adapter_dir=str(tmp_path / "other"), gguf_types="F16"))
    for file in foreign.gguf.files:
        shutil.copy(file.path, next(mine.path for mine in made.gguf.files if mine.kind == file.kind).with_suffix(".other"))
    swapped = [type(file)(file.path.with_suffix(".other"), file.kind, file.types) for file in made.gguf.files if file.kind != "Q8_0"]
    other.run, other.gguf = made.run, copy.copy(made.gguf)
    other.gguf.files = swapped
    found = other.check("merged", "GGUF F16", "LoRA GGUF")
    assert (found["merged"]["passed"], found["GGUF F16"]["passed"], found["LoRA GGUF"]["passed"]) == (True, False, False)


@needs_tools
def test_damaged_files_fail_and_do_not_stop_the_check(made, tmp_path):
    broken = copy.copy(made)
    broken.gguf = copy.copy(made.gguf)
    broken.gguf.files = []
    for file in made.gguf.files:
        half = tmp_path / file.path.name
        half.write_bytes(file.path.read_bytes()[: file.bytes // 2])
        broken.gguf.files.append(type(file)(half, file.kind, file.types))
    found = broken.check("GGUF F16", "LoRA GGUF", "GGUF Q8_0")
    assert {entry["passed"] for entry in found.values()} == {False}, found


@pytest.mark.skipif(not available(), reason="mlx-lm is not installed")
@pytest.mark.parametrize("kept", [0.0, 0.5], ids=["lost", "halved"])
def test_a_wrong_mlx_adapter_is_caught(made, kept):
    from safetensors.numpy import load_file, save_file

    path = made.mlx.adapter / "adapters.safetensors"
    content, weights = path.read_bytes(), load_file(path)
    weights["model.layers.0.self_attn.q_proj.lora_b"] *= kept
    save_file(weights, path)
    entry = made.check("MLX adapter")["MLX adapter"]
    path.write_bytes(content)
    assert entry["passed"] is False
    assert "trained tensors are wrong" in entry["causes"][0]


@pytest.mark.skipif(not available(), reason="mlx-lm is not installed")
def test_a_merged_folder_without_the_older_rope_names_fails_in_mlx(made):
    path = made.run.path("merged") / "config.json"
    content = path.read_text()
    path.write_text(json.dumps({key: value for key, value in json.loads(content).items() if key not in ("rope_theta", "rope_scaling")}))
    found = made.check("merged", "merged in mlx-lm")
    path.write_text(content)
    assert (found["merged"]["passed"], found["merged in mlx-lm"]["passed"]) == (True, False)


def test_an_engine_that_is_not_there_is_not_checked(made, monkeypatch):
    monkeypatch.setattr(engine_llama_cpp, "missing", lambda: "llama.cpp is not installed (pip install xllamacpp)")
    entry = made.check("GGUF F16")["GGUF F16"]
    assert (entry["passed"], entry["status"]) == (None, "not checked")
    assert "not installed" in entry["note"]


def test_an_engine_that_ends_is_told(tmp_path):
    (tmp_path / "none.gguf").write_bytes(b"no model")
    job = {"path": str(tmp_path / "none.gguf"), "lora": None, "context": 64, "least": 1, "seconds": 1, "prompts": []}
    with pytest.raises(EngineFailed):
        list(ask("llama_cpp", job))
    with pytest.raises(EngineFailed, match="No module named"):
        list(ask("nothing", {}))


def test_rounding_does_not_hide_a_missing_update_and_what_cannot_be_told_is_not_judged():
    rng = np.random.default_rng(0)
    base, delta = rng.normal(size=(64, 64)).astype(np.float32), rng.normal(size=(64, 64)).astype(np.float32) * 0.01
    found = Projections()
    found.add("right", base + delta, base, delta)
    found.add("rounded", base + delta + rng.normal(size=(64, 64)).astype(np.float32) * 0.03, base, delta)
    found.add("missing", base, base, delta)
    found.add("noise", base + delta + rng.normal(size=(64, 64)).astype(np.float32), base, delta)
    assert (found.wrong, found.blind) == (["missing"], 1)
    assert found.values["right"] == pytest.approx(1, abs=1e-3)


def test_differences_are_counted_where_both_say_something():
    prompts = [Prompt([1], answer=[2, 3], logprobs=[-0.5, -1.0]), Prompt([1], answer=[2], logprobs=[-0.1])]
    replies = [Reply(0, [1], [-0.6, None], [True, False]), Reply(1, [7], [float("nan")], [False], ended=False)]
    found = compare(replies, prompts)
    assert (found.positions, found.unequal, found.unended) == (2, [1], [1])
    assert found.largest == 1e6
    assert found.agreement == pytest.approx(1 / 3)
    held = compare(replies[:1], prompts, [Reply(0, None, [-0.6, -2.0], [True, True])])
    assert (held.positions, held.mean) == (1, 0.0)


def test_every_type_has_its_limits():
    from mac_lora_helpers.export.gguf.quantize import FILE_TYPES

    for kind in ("F32", "F16", "BF16", *FILE_TYPES):
        assert limits_of(kind) in LIMITS
    assert LIMITS[limits_of("F16")].mean < LIMITS[limits_of("Q8_0")].mean < LIMITS[limits_of("Q4_K_M")].mean
