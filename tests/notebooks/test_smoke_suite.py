"""01→05 on the embedded default, once; what it left is then held against the public interface and the bar of learning."""

from __future__ import annotations

import struct

import pytest

from mac_lora_helpers.artifacts import ARTIFACTS, NOTEBOOKS
from notebooks.runs import mac_lora_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KEYS = {
    "environment.json": "python platform machine chip memory_bytes packages device dtype checks verdict",
    "data/manifest.json": "source format rows splits tokens truncation template fingerprint",
    "train_metrics.json": "steps first_loss last_loss seconds tokens tokens_per_second peak_memory_bytes predicted_memory_bytes device "
    "dtype data_fingerprint audit",
    "eval/metrics.json": "base tuned examples",
    "export/equivalence.json": "artefacts",
    "export/push.json": "repo_id private dry_run files url",
    "run.json": "status notebooks",
}
INNER = {
    ("environment.json", "device"): "name reason",
    ("environment.json", "dtype"): "name reason",
    ("environment.json", "verdict"): "where reasons",
    ("environment.json", "checks", 0): "name status detail fix",
    ("data/manifest.json", "rows"): "read accepted rejected",
    ("data/manifest.json", "splits"): "train valid test",
    ("data/manifest.json", "tokens"): "total supervised",
    ("data/manifest.json", "truncation"): "rows_cut answers_cut eos_lost dropped",
    ("data/manifest.json", "template"): "name masking",
    ("train_metrics.json", "audit"): "finite lora_b_nonzero logits_changed",
    ("eval/metrics.json", "base"): "loss perplexity exact_match",
    ("eval/metrics.json", "tuned"): "loss perplexity exact_match",
    ("export/equivalence.json", "artefacts", 0): "name prompts prompt_ids_equal greedy_agreement passed",
    ("export/push.json", "files", 0): "path bytes sha256",
    ("run.json", "notebooks", 0): "name status seconds",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return mac_lora_run(tmp_path_factory.mktemp("smoke"))


def test_it_ends_well(done):
    assert done.code == 0, done.err
    assert [entry["status"] for entry in done.json("run.json")["notebooks"]] == ["passed"] * 5
    assert "▶ 05_export_and_push" in done.out
    assert "held-out questions: 0% before" in done.out
    assert "nothing was pushed" in done.out
    assert "IPKernelApp" not in done.err


def test_every_artefact_is_there(done):
    optional = {"rejected", "job_result", "job_log", "fetched", "draft"}  # rows skipped, a job's result fetched, a form filled
    missing = [path for name, (path, _) in ARTIFACTS.items() if name not in optional and not (done.run_dir / path).exists()]
    assert missing == []
    assert (done.run_dir / "adapter" / "adapter_model.safetensors").exists()
    assert (done.run_dir / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize("file", KEYS)
def test_keys_of_the_interface(done, file):
    assert set(KEYS[file].split()) <= set(done.json(file))


@pytest.mark.parametrize("path", INNER, ids=str)
def test_inner_keys_of_the_interface(done, path):
    value = done.json(path[0])
    for step in path[1:]:
        value = value[step]
    assert set(INNER[path].split()) <= set(value)


def test_line_keys_of_the_interface(done):
    log = done.lines("train_log.jsonl")
    assert set("step loss grad_norm learning_rate epoch tokens seconds memory_bytes".split()) <= set(log[0])
    assert [line["step"] for line in log] == sorted(line["step"] for line in log)
    assert set("prompt expected base tuned".split()) <= set(done.lines("eval/samples.jsonl")[0])


def test_it_learned(done):
    """The bar: held-out questions, base at most 2 %, tuned at least 90 %."""
    metrics = done.json("eval/metrics.json")
    assert metrics["examples"] >= 100
    assert metrics["base"]["exact_match"] <= 0.02
    assert metrics["tuned"]["exact_match"] >= 0.90
    assert metrics["tuned"]["loss"] < metrics["base"]["loss"] / 10
    samples = done.lines("eval/samples.jsonl")
    counted = sum(sample["tuned"].strip() == sample["expected"].strip() for sample in samples) / len(samples)
    assert counted == pytest.approx(metrics["tuned"]["exact_match"], abs=1e-9)


def test_held_out_subjects_are_in_no_training_row(done):
    trained = (done.run_dir / "data" / "train.jsonl").read_text().lower()
    for row in done.lines("data/test.jsonl"):
        subject = row["messages"][-1]["content"].split('"')[3].lower()
        assert f'\\"{subject}\\"' not in trained, subject


def test_training_used_what_was_shown(done):
    metrics, manifest = done.json("train_metrics.json"), done.json("data/manifest.json")
    assert metrics["data_fingerprint"] == manifest["fingerprint"]
    assert all(metrics["audit"].values())
    assert metrics["last_loss"] < metrics["first_loss"] / 10


def test_every_export_says_what_the_adapter_said(done):
    report = done.json("export/equivalence.json")
    assert {"adapter (PEFT)", "merged", "GGUF F16", "LoRA GGUF"} <= {item["name"] for item in report["artefacts"]}
    for item in report["artefacts"]:
        assert item["passed"] is not False, item
    assert report["control"]["passed"] is False


def test_nothing_was_sent(done):
    pushed = done.json("export/push.json")
    assert pushed["dry_run"] is True
    assert not pushed["url"]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= {file["path"].split("/")[-1] for file in pushed["files"]}


@pytest.mark.parametrize("path", ["data/report.png", "loss.png", "eval/comparison.png"])
def test_figures_are_wide_enough(done, path):
    head = (done.run_dir / path).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", head[16:20])[0] >= 1200


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_executed_notebooks_are_clean(done, name):
    """No warning, no error, no flood: what a reader sees is what the cells mean to show."""
    for cell in done.executed(name).cells:
        outputs = cell.get("outputs", [])
        assert len(outputs) <= 2, cell.source
        assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == [], cell.source


def test_no_home_and_no_absolute_path_is_stored(done):
    for path in done.run_dir.rglob("*"):
        if path.is_file() and path.suffix in {".json", ".jsonl", ".ipynb", ".md", ".txt", ".py", ".jinja", ""}:
            text = path.read_text(errors="replace")
            assert f"{done.folder}-home" not in text, path
            assert str(done.folder) not in text, path
