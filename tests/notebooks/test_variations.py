"""The reference's variations, by parameter and by environment variable, and what a user gets wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny import tiny_model

from notebooks.runs import MESSAGES, TEXTS, mac_lora_run, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TRAIN = ["--preset", "smoke", "--only", "02", "--only", "03", "--only", "04"]


def conversations(count: int) -> list[dict]:
    """Conversations of a few lengths, all different."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and {i}?" * (1 + i % 3)},
                {"role": "assistant", "content": f"It is {2 * i}."},
            ]
        }
        for i in range(count)
    ]


def test_messages_example_of_the_reference(tmp_path):
    write_rows(tmp_path / "test_data.jsonl", MESSAGES)
    done = mac_lora_run(tmp_path, *TRAIN, DATA_FILES="test_data.jsonl", MAX_STEPS="12")
    assert done.code == 0, done.err
    assert done.json("data/manifest.json")["rows"]["accepted"] == 2
    assert done.json("train_metrics.json")["steps"] == 12
    assert done.json("eval/metrics.json")["examples"] == 1


def test_text_example_of_the_reference(tmp_path):
    write_rows(tmp_path / "test_text.jsonl", TEXTS)
    done = mac_lora_run(tmp_path, *TRAIN, DATA_FILES="test_text.jsonl", TEXT_FIELD="text", MESSAGES_FIELD="", MAX_STEPS="12")
    assert done.code == 0, done.err
    assert done.json("data/manifest.json")["format"] == "text"
    assert done.json("eval/metrics.json")["tuned"]["loss"] > 0


def test_local_recipe_on_a_model_folder(tmp_path):
    """Preset ``local`` on a small model of that architecture with random weights; every notebook."""
    tiny_model(tmp_path / "my model", "qwen2")
    write_rows(tmp_path / "my data.jsonl", conversations(40))
    parameters = {"model_id": "my model", "data_files": "my data.jsonl", "max_steps": "12", "max_new_tokens": "8", "eval_examples": "3"}
    arguments = [part for name, value in parameters.items() for part in ("-p", name, value)]
    done = mac_lora_run(tmp_path, "--preset", "local", *arguments)
    assert done.code == 0, done.err
    saved = done.json("train_config.json")["config"]
    assert (saved["preset"], saved["lora_r"], saved["gradient_checkpointing"], saved["max_seq_length"]) == ("local", 16, "auto", 512)
    assert json.loads((done.run_dir / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "my model"


def test_a_family_that_no_gguf_is_written_for_still_gets_the_rest(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 512}
    tiny_model(tmp_path / "model", "opt", **sizes, word_embed_proj_dim=32)
    write_rows(tmp_path / "d.jsonl", conversations(20))
    parameters = {"model_id": "model", "data_files": "d.jsonl", "max_steps": "4", "max_new_tokens": "6", "eval_examples": "2"}
    done = mac_lora_run(tmp_path, *(part for name, value in parameters.items() for part in ("-p", name, value)))
    assert done.code == 0, done.err
    shown = "".join(str(cell.get("outputs", "")) for cell in done.executed("05_export_and_push").cells)
    assert "GGUF F16: not written" in shown
    assert "convert_hf_to_gguf" in shown
    assert (done.run_dir / "export/merged/model.safetensors").exists()
    assert not list((done.run_dir / "export").glob("gguf/*.gguf"))
    assert [item["passed"] for item in done.json("export/equivalence.json")["artefacts"]][:2] == [True, True]


def test_a_later_notebook_alone_names_what_is_missing(tmp_path):
    done = mac_lora_run(tmp_path, "--only", "03")
    assert done.code == 1
    assert "02_data_formatting.ipynb" in done.err
    assert "Traceback" not in done.err


def test_broken_json_is_told_with_its_line_and_leaves_no_data(tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps(MESSAGES[0]) + '\n{"messages": [\n')
    done = mac_lora_run(tmp_path, "--preset", "smoke", "--only", "02", "-p", "data_files", "bad.jsonl")
    assert done.code == 1
    assert "bad.jsonl:2: not JSON" in done.err
    assert "one JSON object a line" in done.err
    assert "Traceback" not in done.err
    assert not (done.run_dir / "data").exists() or not any((done.run_dir / "data").iterdir())


def test_a_model_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = tiny_model(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    done = mac_lora_run(tmp_path, "-p", "model_id", "model")
    assert (done.code, "no tokenizer" in done.err) == (2, True)
    assert not (tmp_path / "outputs").exists()


def test_edited_tokens_are_not_trained_on(tmp_path):
    write_rows(tmp_path / "d.jsonl", conversations(12))
    first = mac_lora_run(tmp_path, "--preset", "smoke", "--only", "02", "-p", "data_files", "d.jsonl")
    assert first.code == 0, first.err
    other = tmp_path / "other"
    other.mkdir()
    write_rows(other / "d.jsonl", conversations(13))
    second = mac_lora_run(other, "--preset", "smoke", "--only", "02", "-p", "data_files", "d.jsonl")
    shutil.rmtree(first.run_dir / "data/tokens")
    shutil.copytree(second.run_dir / "data/tokens", first.run_dir / "data/tokens")
    done = mac_lora_run(tmp_path, "--only", "03")
    assert done.code == 1
    assert "fingerprint" in done.err
