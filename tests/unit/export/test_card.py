"""The model card says what the artefacts say, in the Hub's form, and its code runs."""

from __future__ import annotations

import re
import runpy

import pytest
from hub.runs import FINGERPRINT, finished_run, write_adapter
from huggingface_hub import ModelCard
from tiny import tiny_model

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError, MissingArtifact
from mac_lora_helpers.export import write_card


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def made(tmp_path, base):
    return finished_run(tmp_path, base=base)


def test_the_metadata_is_the_hubs(made):
    card = write_card(*made)
    data = ModelCard.load(card.path).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("Qwen/Qwen2.5-0.5B-Instruct", "peft", "text-generation")
    assert data.datasets == ["HuggingFaceH4/ultrachat_200k"]
    assert data.license is None
    assert "lora" in data.tags


def test_figures_come_from_the_artefacts(made):
    text = write_card(*made).text
    for part in (
        FINGERPRINT,
        "2.5 → 0.125",
        "92.5 %",
        "239 accepted",
        "4,567 supervised",
        "torch 2.13.0",
        "| exact match | 0.0 % | 92.5 % | +92.5 % |",
    ):
        assert part in text, part
    assert "| `gguf/Q4_0` | 8 | yes | 75.0 % | not checked |" in text
    assert "`k_proj, o_proj, q_proj, v_proj`" in text


def test_intervals_are_shown_where_they_were_recorded(made):
    run, config = made
    metrics = run.read_json("eval_metrics")
    metrics["difference"] = {"exact_match": {"low": 0.8, "high": 0.99}, "loss": {"low": -1.6, "high": -1.4}}
    run.write_json("eval_metrics", metrics)
    text = write_card(run, config).text
    assert "+92.5 % (+80.0 % to +99.0 %)" in text
    assert "-1.5 (-1.6 to -1.4)" in text


def test_what_is_missing_is_said(tmp_path, base):
    run = RunDir(tmp_path)
    write_adapter(run.path("adapter"), base, "Qwen/Qwen2.5-0.5B-Instruct")
    card = write_card(run, resolve({"preset": "local"}, env={}))
    assert card.missing == [
        "train_config.json",
        "data/manifest.json",
        "train_metrics.json",
        "eval/metrics.json",
        "export/equivalence.json",
        "environment.json",
    ]
    for part in ("Not measured: `eval/metrics.json`", "Not checked: `export/equivalence.json`", "Not recorded: `data/manifest.json`"):
        assert part in card.text


def test_without_an_adapter_the_notebook_is_named(tmp_path):
    with pytest.raises(MissingArtifact, match="03_lora_training"):
        write_card(RunDir(tmp_path), resolve({}, env={}))


def test_a_base_in_a_folder_is_not_called_a_hub_model(tmp_path, base, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tiny_model(tmp_path / "models" / "my-base")
    run, config = finished_run(tmp_path, base=base, base_id=str(folder), data_files=str(tmp_path / "secret place" / "rows.jsonl"))
    card = write_card(run, config)
    assert ModelCard.load(card.path).data.base_model is None
    assert ModelCard.load(card.path).data.datasets is None
    assert "`my-base`" in card.text
    assert "`rows.jsonl`" in card.text
    assert str(tmp_path) not in card.text
    assert "secret place" not in card.text


def test_a_licence_added_by_hand_survives(made):
    first = write_card(*made)
    card = ModelCard.load(first.path)
    card.data.license = "apache-2.0"
    card.save(first.path)
    assert ModelCard.load(write_card(*made).path).data.license == "apache-2.0"


def test_values_cannot_break_a_table(made):
    run, config = made
    manifest = run.read_json("manifest")
    manifest["template"] = {"name": "x`|\n| injected | row |", "masking": "assistant"}
    run.write_json("manifest", manifest)
    assert "\n| injected" not in write_card(run, config).text


@pytest.mark.parametrize(("kinds", "library"), [("merged", "transformers"), ("gguf, adapter", "gguf"), ("MLX", "mlx")])
def test_the_library_is_that_of_the_first_kind(made, kinds, library):
    run, config = made
    config.push_artifacts = kinds
    assert ModelCard.load(write_card(run, config).path).data.library_name == library


def test_an_unknown_kind_is_refused(made):
    run, config = made
    config.push_artifacts = "adapter, onnx"
    with pytest.raises(InputError, match="onnx"):
        write_card(run, config)


@pytest.mark.parametrize("data_format", ["messages", "text"])
def test_the_code_on_the_card_gives_the_adapters_answer(made, base, data_format, capsys):
    """Runs the card's own Python against the run's folders and compares with PEFT called directly."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, config = made
    run.write_json("manifest", {**run.read_json("manifest"), "format": data_format})
    config.repo_id, config.max_new_tokens = "someone/some-lora", 12
    code = re.search(r"```python\n(.*?)```", write_card(run, config).text, re.S)[1]
    assert '"someone/some-lora"' in code
    assert '"Qwen/Qwen2.5-0.5B-Instruct"' in code
    code = code.replace('"someone/some-lora"', repr(str(run.need("adapter")))).replace('"Qwen/Qwen2.5-0.5B-Instruct"', repr(str(base)))
    (run.root / "card.py").write_text(code)
    runpy.run_path(str(run.root / "card.py"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run.need("adapter")).eval()
    if data_format == "messages":
        chat = [{"role": "user", "content": config.prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    else:
        ids = tokenizer(config.prompt, return_tensors="pt")["input_ids"]
    expected = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    assert capsys.readouterr().out.strip() == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True).strip()
