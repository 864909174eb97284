"""The equivalence check: the base fails, every planted fault is named, near ties are listed, missing engines say so."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from family_tokenizers import family_tokenizer
from trained_run import changed, conversations, edit_json, make_trained

from mac_lora_helpers import export
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export import adapter as adapters
from mac_lora_helpers.export.equivalence import check as equivalence
from mac_lora_helpers.export.equivalence import engine_llama_cpp, engine_mlx
from mac_lora_helpers.export.equivalence.artefacts import candidates
from mac_lora_helpers.export.equivalence.compare import compare
from mac_lora_helpers.export.equivalence.engine_transformers import Verdict
from mac_lora_helpers.export.equivalence.engines import Answer
from mac_lora_helpers.export.equivalence.reference import Reference
from mac_lora_helpers.export.gguf.adapter import write_adapter_file
from mac_lora_helpers.export.gguf.file import write_model_file
from mac_lora_helpers.export.gguf.model import StoredWeights, separate, tensors
from mac_lora_helpers.export.gguf.tokenizer import read_vocabulary
from mac_lora_helpers.export.gguf.write import load_merged_tokenizer, load_settings

needs_llama_cpp = pytest.mark.skipif(not engine_llama_cpp.available(), reason="xllamacpp is not installed")
ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """An exported Llama with scaled RoPE and a rank-stabilised adapter, and its reference."""
    lora = {"r": 16, "lora_alpha": 8, "use_rslora": True}
    made = make_trained(tmp_path_factory.mktemp("llama"), "llama", tokenizer=family_tokenizer("gpt2"), lora=lora, rope_parameters=ROPE)
    return _exported(made)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """An exported Qwen2 and its reference."""
    return _exported(make_trained(tmp_path_factory.mktemp("qwen")))


def _exported(made):
    made.config.gguf_types = "F16"
    export.merge(made.run, made.config)
    export.write_gguf(made.run, made.config)
    export.write_mlx(made.run, made.config)
    made.reference = Reference(made.run, adapters.trained_config(made.run, made.config))
    return made


def check(made, name):
    """One artefact's entry."""
    return next(equivalence.check_one(item, made.reference) for item in candidates(made.reference) if item.name == name)


class Planted(dict):
    """Merged weights with some of them replaced."""

    def __init__(self, made, **replaced):
        import torch

        super().__init__(StoredWeights(made.run.path("merged")).items())
        self.update({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in replaced.items()})


@pytest.fixture
def plant(request):
    """Rewrites the F16 file with something changed; the good file comes back afterwards."""
    undo = []

    def rewrite(made, weights=None, settings=None, **vocabulary):
        path = next(made.run.path("gguf").glob("*-F16.gguf"))
        undo.append((path, path.read_bytes()))
        merged = made.run.path("merged")
        config = load_settings(merged)
        words = dataclasses.replace(read_vocabulary(load_merged_tokenizer(merged), config.vocab_size), **vocabulary)
        config = settings(config) if settings else config
        write_model_file(path, "F16", config, list(tensors(weights or StoredWeights(merged), config)), words, "planted")

    yield rewrite
    for path, content in reversed(undo):
        path.write_bytes(content)


def base_and_delta(made, module):
    base = made.reference.expected().base(f"{module}.weight")
    return base, made.reference.adapter().updates[module].delta()


@needs_llama_cpp
def test_the_base_that_was_never_tuned_fails_in_its_engine(qwen, plant):
    expected = qwen.reference.expected()
    plant(qwen, weights=Planted(qwen, **{name: expected.base(name) for name in expected.tensors if name != "lm_head.weight"}))
    entry = check(qwen, "GGUF F16")
    assert entry["passed"] is False
    assert entry["greedy_agreement"] < 0.5
    assert entry["causes"] == ["adapter not applied: this is the untuned base"]
    assert entry["prompt_ids_equal"]


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize(
    ("factor", "modules", "cause"),
    [
        (0.0, ["model.layers.1.self_attn.v_proj"], "LoRA layer left unmerged: model.layers.1.self_attn.v_proj"),
        (2.0, None, "alpha doubled"),
        (0.7, ["model.layers.0.self_attn.o_proj"], "weights differ: model.layers.0.self_attn.o_proj"),
    ],
    ids=["one layer", "alpha doubled", "another scale"],
)
@needs_llama_cpp
def test_wrong_updates_are_named(request, plant, family, factor, modules, cause):
    made = request.getfixturevalue(family)
    wrong = {}
    for module in modules or made.reference.adapter().updates:
        base, delta = base_and_delta(made, module)
        wrong[f"{module}.weight"] = base + np.float32(factor) * delta
    plant(made, weights=Planted(made, **wrong))
    entry = check(made, "GGUF F16")
    assert entry["passed"] is False
    assert any(cause in text for text in entry["causes"]), entry["causes"]


@needs_llama_cpp
def test_an_ignored_rank_stabilised_scale_is_named(llama, plant):
    wrong = {}
    for module, update in llama.reference.adapter().updates.items():
        base, delta = base_and_delta(llama, module)
        wrong[f"{module}.weight"] = base + delta / np.sqrt(update.rank)
    plant(llama, weights=Planted(llama, **wrong))
    entry = check(llama, "GGUF F16")
    assert entry["passed"] is False
    assert entry["causes"][0].startswith("rank-stabilised scale ignored")


@pytest.mark.parametrize("family", ["llama", "qwen"])
@needs_llama_cpp
def test_rows_in_the_wrong_order_are_named(request, plant, family):
    from mac_lora_helpers.export.gguf.model import interleave

    made = request.getfixturevalue(family)
    reorder = separate if family == "llama" else interleave
    names = [f"model.layers.{layer}.self_attn.{part}.weight" for layer in (0, 1) for part in ("q_proj", "k_proj")]
    weights = StoredWeights(made.run.path("merged"))
    heads = {"q_proj": 4, "k_proj": 2}
    plant(made, weights=Planted(made, **{name: reorder(weights[name].numpy(), heads[name.split(".")[-2]]) for name in names}))
    entry = check(made, "GGUF F16")
    assert entry["passed"] is False
    assert entry["causes"][0].startswith("query/key rows permuted wrongly"), entry["causes"]


@pytest.mark.parametrize(
    ("rope", "cause"),
    [({**ROPE, "rope_theta": 10000.0}, "RoPE base lost"), ({"rope_type": "default", "rope_theta": 50000.0}, "RoPE scaling lost")],
    ids=["base", "scaling"],
)
@needs_llama_cpp
def test_lost_rope_settings_are_named(llama, plant, rope, cause):
    def change(config):
        config.rope_parameters = rope
        return config

    plant(llama, settings=change)
    entry = check(llama, "GGUF F16")
    assert entry["passed"] is False
    assert entry["causes"] == [cause]
    assert entry["max_logprob_difference"] > entry["tolerance"], "the engine must see it too"


@needs_llama_cpp
def test_llama3_scaling_lost_is_named(tmp_path, plant):
    from test_gguf import LLAMA3_ROPE

    made = _exported(make_trained(tmp_path, "llama", rope_parameters=LLAMA3_ROPE))

    def change(config):
        config.rope_parameters = {"rope_type": "default", "rope_theta": LLAMA3_ROPE["rope_theta"]}
        return config

    plant(made, settings=change)
    assert check(made, "GGUF F16")["causes"] == ["RoPE scaling lost"]


@needs_llama_cpp
def test_template_and_end_token_are_named(qwen, plant):
    plant(qwen, template=None)
    entry = check(qwen, "GGUF F16")
    assert entry["causes"][0] == "chat template dropped"
    assert entry["passed"] is False
    plant(qwen, template="{{ messages[0].content }}")
    entry = check(qwen, "GGUF F16")
    assert entry["causes"][0] == "chat template changed"
    assert entry["prompt_ids_equal"] is False
    special = read_vocabulary(qwen.reference.tokenizer, 380).special
    plant(qwen, special={**special, "eos": special["pad"]})
    entry = check(qwen, "GGUF F16")
    assert entry["passed"] is False
    assert entry["causes"][0].startswith("end token changed")


@needs_llama_cpp
def test_a_shifted_vocabulary_is_named(qwen, plant):
    words = read_vocabulary(qwen.reference.tokenizer, 380)
    plant(qwen, tokens=[*words.tokens[1:], words.tokens[0]], types=[*words.types[1:], words.types[0]])
    entry = check(qwen, "GGUF F16")
    assert entry["passed"] is False
    assert "vocabulary shifted by one" in entry["causes"]
    name = "model.embed_tokens.weight"
    rows = StoredWeights(qwen.run.path("merged"))[name].numpy()
    plant(qwen, weights=Planted(qwen, **{name: np.roll(rows, 1, axis=0)}))
    entry = check(qwen, "GGUF F16")
    assert entry["causes"] == [f"vocabulary shifted by one: {name}"]
    assert entry["greedy_agreement"] < 0.5


@needs_llama_cpp
def test_faults_of_the_lora_file_are_named(llama):
    path = next(llama.run.path("gguf").glob("*-adapter-*.gguf"))
    good, settings = path.read_bytes(), llama.reference.settings
    assert check(llama, "LoRA GGUF")["passed"]
    adapter = llama.reference.adapter()
    plain = {name: dataclasses.replace(update, scale=8 / update.rank) for name, update in adapter.updates.items()}
    doubled = {name: dataclasses.replace(update, scale=2 * update.scale) for name, update in adapter.updates.items()}
    short = {name: update for name, update in adapter.updates.items() if name != "model.layers.1.self_attn.k_proj"}
    for updates, cause in ((plain, "rank-stabilised scale ignored"), (doubled, "alpha doubled"), (short, "left unmerged: model.layers.1")):
        write_adapter_file(path, dataclasses.replace(adapter, updates=updates), settings, "planted")
        entry = check(llama, "LoRA GGUF")
        assert entry["passed"] is False
        assert any(cause in text for text in entry["causes"]), entry["causes"]
        assert entry["max_logprob_difference"] > entry["tolerance"]
    path.write_bytes(good)


def test_faults_of_the_merged_folder_are_named(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, keep = llama.run.path("merged"), tmp_path / "keep"
    shutil.copytree(folder, keep)
    base, delta = base_and_delta(llama, "model.layers.0.self_attn.q_proj")

    def unmerged():
        import torch

        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.self_attn.q_proj.weight"] = torch.from_numpy(base.copy())
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    plants = {
        "LoRA layer left unmerged": unmerged,
        "RoPE base lost": lambda: edit_json(folder / "config.json", rope_parameters={**ROPE, "rope_theta": 10000.0}, rope_theta=10000.0),
        "chat template dropped": lambda: (folder / "chat_template.jinja").unlink(),
        "end token changed": lambda: edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>"),
        "RoPE base lost for mlx-lm": lambda: edit_json(folder / "config.json", drop=("rope_theta",)),
        "cannot be read": lambda: (folder / "config.json").write_text("{"),
    }
    for cause, damage in plants.items():
        damage()
        entry = check(llama, "merged")
        assert entry["passed"] is False, cause
        assert any(cause in text for text in entry["causes"]), entry["causes"]
        shutil.rmtree(folder)
        shutil.copytree(keep, folder)
    assert np.abs(delta).max() > 0
    assert check(llama, "merged")["passed"]


def test_an_adapter_with_other_settings_than_trained_is_named(tmp_path):
    made = make_trained(tmp_path)
    edit_json(made.run.path("adapter") / adapters.SETTINGS, lora_alpha=16)
    report = export.check_equivalence(made.run, made.config)
    assert report.artefacts[0]["causes"] == ["alpha doubled: lora_alpha is 16, trained with 8"]
    with pytest.raises(CheckFailed, match="alpha doubled"):
        report.require_passed()


@needs_llama_cpp
def test_a_damaged_file_is_a_failed_check_not_a_crash(qwen):
    path = next(qwen.run.path("gguf").glob("*-F16.gguf"))
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    entry = next(item for item in export.check_equivalence(qwen.run, qwen.config).artefacts if item["path"].endswith("F16.gguf"))
    assert entry["passed"] is False
    assert "cannot be read" in entry["causes"][0]
    path.write_bytes(good)


def test_the_report_has_the_promised_keys(qwen):
    report = export.check_equivalence(qwen.run, qwen.config)
    stored = json.loads((qwen.run.root / "export/equivalence.json").read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    for item in stored["artefacts"]:
        assert {"name", "prompts", "prompt_ids_equal", "greedy_agreement", "passed", "bytes", "load_seconds", "causes"} <= item.keys()
        assert item["passed"] in (True, None), item
    assert stored["control"]["passed"] is False
    assert str(qwen.run.root) not in json.dumps(stored)
    assert report.rows()[-1]["result"] == "fails, as it must"
    assert report.require_passed() is report


def test_without_engines_nothing_is_called_passed(qwen, monkeypatch):
    monkeypatch.setattr(engine_llama_cpp, "available", lambda: False)
    monkeypatch.setattr(engine_mlx, "available", lambda: False)
    report = export.check_equivalence(qwen.run, qwen.config)
    foreign = [item for item in report.artefacts if item["kind"] in ("gguf", "lora-gguf", "mlx")]
    assert {(item["passed"], item["status"]) for item in foreign} == {(None, "not checked")}
    assert all("not installed" in item["note"] for item in foreign)
    assert report.passed is None
    report.require_passed()


@needs_llama_cpp
def test_a_fault_fails_also_without_the_engine(qwen, plant, monkeypatch):
    monkeypatch.setattr(engine_llama_cpp, "available", lambda: False)
    plant(qwen, template=None)
    entry = check(qwen, "GGUF F16")
    assert (entry["passed"], entry["causes"]) == (False, ["chat template dropped"])


@needs_llama_cpp
def test_an_adapter_that_changes_nothing_is_not_called_passed(tmp_path):
    made = make_trained(tmp_path, lora={"strength": 0.0})
    export.merge(made.run, made.config)
    export.write_gguf(made.run, changed(made.config, gguf_types="F16"))
    report = export.check_equivalence(made.run, made.config)
    entry = next(item for item in report.artefacts if item["name"] == "GGUF F16")
    assert (entry["passed"], entry["status"]) == (None, "not checked")
    assert "cannot tell them apart" in entry["note"]
    assert report.control["passed"] is True
    assert "shows nothing" in report.rows()[-1]["result"]


@needs_llama_cpp
def test_plain_text_is_checked_without_a_template(tmp_path):
    rows = [{"text": f"{row['messages'][-2]['content']} {row['messages'][-1]['content']}"} for row in conversations()]
    made = make_trained(tmp_path, "llama", rows=rows, tokenizer=family_tokenizer("llama3"))
    export.merge(made.run, made.config)
    export.write_gguf(made.run, changed(made.config, gguf_types="F16"))
    entries = [item for item in export.check_equivalence(made.run, made.config).artefacts if item["kind"] in ("merged", "gguf")]
    assert [item["passed"] for item in entries] == [True, True]
    assert all(item["prompt_ids_equal"] and item["loss"] is not None for item in entries)


@needs_llama_cpp
def test_the_loss_in_the_engine_is_the_loss_in_transformers(qwen):
    entries = {item["name"]: item for item in export.check_equivalence(qwen.run, qwen.config).artefacts}
    assert abs(entries["LoRA GGUF"]["loss_cost"]) < 1e-4
    assert abs(entries["GGUF F16"]["loss_cost"]) < 1e-2
    assert entries["GGUF F16"]["loss"] > 1


def test_asking_the_exported_file(qwen):
    reply = export.ask_exported(qwen.run, qwen.config, "Hello there")
    assert reply["file"] == "base-tuned-F16.gguf"
    assert reply["prompt"] == "Hello there"
    assert reply["prompt_tokens"] > 3


def test_only_near_ties_are_excused():
    answer = Answer((5, 6), (-0.1, -0.7), 2, -0.2)
    same = Verdict([5, 6, 2], [-0.1, -0.7, -0.2], [-0.1, -0.7, -0.2])
    assert compare([answer], [same], [2], 0.01).within(0.01)
    tie = Verdict([5, 9, 2], [-0.1, -0.695, -0.2], [-0.1, -0.7, -0.2])
    found = compare([answer], [tie], [2], 0.01)
    assert (found.within(0.01), found.agreement, len(found.near_ties)) == (True, 0.0, 1)
    assert not compare([answer], [tie], [2], 0.001).within(0.001)
    early = Verdict([5, 6, 7], [-0.1, -0.7, -0.1], [-0.1, -0.7, -2.5])
    assert not compare([answer], [early], [2], 0.01).within(0.01)
    late = compare(
        [Answer((5, 2, 8), (-0.1, -0.7, -1.0))], [Verdict([5, 2, 8, 8], [-0.1, -0.7, -1.0, -1.0], [-0.1, -0.7, -1.0, -1.0])], [2], 0.01
    )
    assert [item["kind"] for item in late.differences] == ["end"]
    drifted = compare([Answer((5,), (-0.5,))], [Verdict([5, 5], [-0.1, -0.1], [-0.1, -0.1])], [2], 0.01)
    assert (drifted.agreement, drifted.within(0.01)) == (1.0, False)


def test_an_engine_may_end_at_its_own_token_if_it_is_the_best_one():
    answer, best = Answer((5,), (-0.1,), 9, -0.2), Verdict([5, 9], [-0.1, -0.2], [-0.1, -0.2])
    assert not compare([answer], [best], [2], 0.01).within(0.01)
    found = compare([answer], [best], [2], 0.01, own_ends={9})
    assert (found.within(0.01), found.early, found.agreement) == (True, 1, 1.0)
    assert not compare([answer], [Verdict([5, 7], [-0.1, -0.1], [-0.1, -0.2])], [2], 0.01, own_ends={9}).within(0.01)


def test_without_loopback_llama_cpp_is_not_checked_and_says_why(monkeypatch):
    def unreachable(*_, **__):
        raise OSError(101, "Network is unreachable")

    assert engine_llama_cpp.missing() == ""
    monkeypatch.setattr(engine_llama_cpp.socket, "create_connection", unreachable)
    assert "loopback is down" in engine_llama_cpp.missing()
