"""The cloud job: what the script holds, that it makes the same data, and that it refuses any other."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny import tiny_model

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export import offer_job, submit_job, write_job
from mac_lora_helpers.export.job import pins as job_pins
from mac_lora_helpers.export.job import write as job_write
from mac_lora_helpers.suite.cli import main

TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"


def rows(count=40):
    words = "zero one two three four five six seven eight nine".split()
    for number in range(count):
        question, answer = f"What is {number}?", f"It is {words[number // 10]} {words[number % 10]}."
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run on a model and a file of the user's own, as 02 leaves it; nothing of it need be trained to write a job."""
    root = tmp_path_factory.mktemp("job")
    tiny_model(root / "home" / "my-base")
    (root / "home" / "my rows, all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    values = {"model_id": str(root / "home" / "my-base"), "data_files": str(root / "home" / "my rows, all.jsonl")}
    values |= {"preset": "local", "out_dir": str(root / "run"), "max_seq_length": "64", "eval_examples": "2", "max_new_tokens": "8"}
    assert main(["run", "--only", "02", *(word for name, value in values.items() for word in ("-p", name, value))]) == 0
    config = resolve(values, env={})
    RunDir(root / "run").write_json("train_config", {"config": config.model_dump()})
    return root, config


@pytest.fixture
def made(template, tmp_path):
    root, config = template
    shutil.copytree(root / "run", tmp_path / "run")
    config = config.model_copy(update={"out_dir": str(tmp_path / "run")})
    return RunDir(tmp_path / "run"), config


def run_script(job, *arguments, **changes):
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **changes}
    words = [sys.executable, str(job.folder / "train_job.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_the_header_holds_the_locks_pins(made):
    text = (write_job(*made).folder / "train_job.py").read_text()
    block = re.search(r"(?m)^# /// script$\n(?P<content>(^#(| .*)$\n)+)^# ///$", text)["content"]  # the regex of PEP 723
    header = tomllib.loads("".join(line[2:] if line.startswith("# ") else line[1:] for line in block.splitlines(keepends=True)))
    lock = {line.split("#")[0].strip() for line in job_pins.LOCK.read_text().splitlines()}
    pinned = [*header["dependencies"], *header["tool"]["uv"]["constraint-dependencies"]]
    assert {name for name, _, number in (line.partition("==") for line in set(pinned) - lock) if number != version(name)} == set()
    assert {"torch", "trl", "peft", "huggingface-hub"} <= {line.split("==")[0] for line in header["dependencies"]}
    assert any(line.startswith("nvidia-cuda-runtime") for line in pinned)


def test_what_made_the_local_run_is_pinned_where_it_is_not_the_locks(tmp_path):
    lock, lines = tmp_path / "constraints.txt", []
    for line in job_pins.LOCK.read_text().splitlines():
        lines.append("peft==0.0.1" if line.startswith("peft==") else line)
    lock.write_text("\n".join(lines))
    direct, rest = job_pins.pins(lock)
    assert f"peft=={version('peft')}" in direct
    assert "peft==0.0.1" not in [*direct, *rest]
    assert any(line.startswith("nvidia-") for line in rest)
    lock.write_text("\n".join("torch==2.0.0" if line.startswith("torch==") else line for line in lines))
    direct, rest = job_pins.pins(lock)
    assert f"torch=={version('torch').split('+')[0]}" in direct
    assert not any(line.startswith("nvidia-") for line in rest)  # they are for the lock's torch


def test_without_the_lock_the_installed_versions_are_pinned(tmp_path):
    direct, _ = job_pins.pins(tmp_path / "none.txt")
    assert f"trl=={version('trl')}" in direct
    assert all("+" not in line for line in direct)


@pytest.mark.slow
def test_the_header_resolves_for_the_jobs_image(made, need):
    need(importlib.util.find_spec("uv"), "uv is not installed")
    script = write_job(*made).folder / "train_job.py"
    words = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--no-python-downloads",
        "--python-version",
        "3.12",
        "--python-platform",
        "x86_64-unknown-linux-gnu",
    ]
    done = subprocess.run([*words, str(script)], capture_output=True, text=True, check=True)
    assert "torch==2.13" in done.stdout


def test_the_command_is_one_that_hf_accepts(made):
    job = write_job(*made)
    assert shlex.split((job.folder / "command.txt").read_text()) == job.command
    words = [*job.command[:4], "--dry-run", *job.command[4:]]
    hf = shutil.which("hf") or str(Path(sys.executable).with_name("hf"))
    done = subprocess.run([hf, *words[1:]], capture_output=True, text=True, env={**os.environ, "HF_TOKEN": TOKEN}, check=False)
    assert done.returncode == 0, done.stderr
    for part in ("t4-small", "2h", "HF_TOKEN=***", "train_job.py", "inputs.zip"):
        assert part in done.stdout
    assert TOKEN not in done.stdout


@pytest.mark.slow
def test_the_job_is_the_same_run(tmp_path):
    """Ten steps here with the notebooks, ten in the job's script: the same tokens, arguments and losses. Two processes share the batch."""
    options = {"max_steps": "10", "logging_steps": "1", "lora_dropout": "0", "eval_examples": "2", "max_new_tokens": "8"}
    options |= {"job_flavor": "a10g-largex2", "repo_id": "me/x", "out_dir": str(tmp_path / "run"), "device": "cpu"}
    words = [word for name, value in options.items() for word in ("-p", name, value)]
    assert main(["run", "--only", "02", "--only", "03", *words]) == 0
    run, losses = RunDir(tmp_path / "run"), {}
    job = write_job(run, resolve(options, env={}))
    assert job.record["processes"] == 2
    for count in (1, 2):
        out = tmp_path / f"out{count}"
        done = run_script(job, "--device", "cpu", "--no-push", "--processes", count, "--out", out)
        assert done.returncode == 0, done.stderr[-3000:]
        there = RunDir(out)
        assert there.read_json("manifest")["fingerprint"] == run.read_json("manifest")["fingerprint"]
        assert there.has("eval_metrics")
        assert there.has("card")
        losses[count] = [row["loss"] for row in there.read_lines("train_log") if "loss" in row]
    local = [row["loss"] for row in run.read_lines("train_log") if "loss" in row]
    assert len(local) == 10
    assert losses[1] == local
    assert losses[2] == pytest.approx(local, abs=1e-5)


def test_neither_home_nor_token_is_in_the_job(made, template, monkeypatch):
    monkeypatch.setenv("HOME", str(template[0] / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = write_job(*made).folder
    for name in ("train_job.py", "job.json", "command.txt"):
        text = (folder / name).read_text()
        assert str(template[0] / "home") not in text
        assert TOKEN not in text


def change_row(home):
    file = home / "my rows, all.jsonl"
    file.write_text(file.read_text().replace("It is zero one.", "It is zero won."))


def change_template(home):
    file = home / "my-base" / "chat_template.jinja"
    file.write_text("{{ 'Chat. ' }}" + file.read_text())


def change_tokenizer(home):
    file = home / "my-base" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-20]
    file.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_row, "content"),
        pytest.param(change_template, "template", marks=pytest.mark.slow),
        pytest.param(change_tokenizer, "tokenizer", marks=pytest.mark.slow),
    ],
)
def test_other_data_are_refused_and_the_difference_is_named(template, made, tmp_path, change, named):
    """The source changes between the local run and the job: 02's tokens are the old ones, the job carries the new files."""
    root, config = template
    shutil.copytree(root / "home", tmp_path / "home")
    change(tmp_path / "home")
    values = {"model_id": str(tmp_path / "home" / "my-base"), "data_files": str(tmp_path / "home" / "my rows, all.jsonl")}
    run, config = made
    run.write_json("train_config", {"config": {**config.model_dump(), **values}})
    done = run_script(write_job(run, config.model_copy(update=values)), "--device", "cpu", "--no-push", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "the data are not the local run's" in done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_damaged_script_or_zip_is_refused(made, tmp_path):
    job = write_job(*made)
    archive = job.folder / "inputs.zip"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    done = run_script(job, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "inputs.zip is not what this job was written with" in done.stderr
    archive.unlink()
    assert "inputs.zip is missing" in run_script(job).stderr


def test_the_same_run_gives_the_same_bytes(made):
    first = {file.name: file.read_bytes() for file in write_job(*made).folder.iterdir()}
    assert {file.name: file.read_bytes() for file in write_job(*made).folder.iterdir()} == first


def test_the_run_directory_gives_no_consent(made):
    """A forged train_config cannot make the job run a model's own code: that is asked for when the job is written."""
    run, config = made
    run.write_json("train_config", {"config": {**config.model_dump(), "trust_remote_code": True, "push": True}})
    assert "trust_remote_code" not in write_job(run, config).record["parameters"]
    assert write_job(run, config.model_copy(update={"trust_remote_code": True})).record["parameters"]["trust_remote_code"] is True
    assert {"push", "submit_job"} & set(write_job(run, config).record["parameters"]) == set()


def test_several_gpus_share_the_recipes_batch(made):
    run, config = made
    config.job_flavor = "a100x4"
    job = write_job(run, config)
    assert job.record["processes"] == 4
    assert dict(job.rows())["GPUs"] == "4, which share the recipe's batch"
    run.write_json("train_config", {"config": {**config.model_dump(), "gradient_accumulation_steps": 12}})
    config.job_flavor = "l40sx8"
    with pytest.raises(InputError, match="cannot be shared"):
        write_job(run, config)


def test_a_secret_in_the_data_does_not_travel(made, tmp_path):
    run, config = made
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": f"key {TOKEN}"}) + "\n")
    config.data_files = str(tmp_path / "rows.jsonl")
    run.write_json("train_config", {"config": config.model_dump()})
    with pytest.raises(CheckFailed, match=r"rows\.jsonl, row 1: Hugging Face token") as error:
        write_job(run, config)
    assert TOKEN not in str(error.value)
    assert not run.has("job")


def test_large_local_files_are_sent_to_the_hub_instead(made, monkeypatch):
    monkeypatch.setattr(job_write, "LARGEST_INPUTS", 1000)
    with pytest.raises(InputError, match="on the Hub"):
        write_job(*made)
    run, config = made
    assert dict(offer_job(run, config))["no job was written"].startswith("the local model")
    assert submit_job(run, config) == [("submitted", "no: no job was written")]
    config.submit_job = True
    with pytest.raises(InputError, match="on the Hub"):
        offer_job(run, config)


def test_a_run_that_was_not_trained_has_no_job(tmp_path):
    with pytest.raises(MissingArtifact, match="02_data_formatting"):
        write_job(RunDir(tmp_path), resolve({}, env={}))


@pytest.mark.parametrize(
    ("model", "flavor"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "t4-small"),
        ("HuggingFaceTB/SmolLM2-135M", "t4-small"),
        ("Qwen/Qwen2.5-1.5B", "a10g-small"),
        ("Qwen/Qwen2.5-3B", "a10g-large"),
        ("mistralai/Mistral-7B-v0.3", "a100-large"),
        ("google/something", "a10g-small"),
        ("embedded", "t4-small"),
    ],
)
def test_the_flavor_follows_the_models_size(model, flavor):
    assert job_write.choose_flavor(resolve({"preset": "local", "model_id": model}, env={}))[0] == flavor


@pytest.mark.parametrize(("flavor", "hint"), [("a10g-smal", "a10g-small"), ("a100x44", "a100x4")])
def test_a_flavor_that_cannot_be_is_refused(flavor, hint):
    with pytest.raises(InputError, match=hint):
        job_write.choose_flavor(resolve({"job_flavor": flavor}, env={}))


def test_a_flavor_by_name_is_taken():
    assert job_write.choose_flavor(resolve({"job_flavor": "l4x1"}, env={})) == ("l4x1", "chosen by job_flavor")
