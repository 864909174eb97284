"""The plan of a push without a login and without a network: what it lists, what it refuses, what it leaves out."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import socket

import pytest
from hub.runs import finished_run
from tiny import tiny_model

from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export import HubError, plan_push, push, write_card

TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    run, config = finished_run(root, base=tiny_model(root / "base"))
    write_card(run, config)
    return root


@pytest.fixture
def made(template, tmp_path, monkeypatch):
    """A run with its card, no login, and a network that cannot be used."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a plan without a login asked the network"))
    shutil.copytree(template / "run", tmp_path / "run")
    from mac_lora_helpers.artifacts import RunDir
    from mac_lora_helpers.config import resolve

    return RunDir(tmp_path / "run"), resolve({"preset": "local", "out_dir": str(tmp_path / "run")}, env={})


def test_a_dry_run_lists_every_file_with_its_digest(made):
    run, config = made
    plan = plan_push(run, config)
    assert [file["path"] for file in plan.files] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for file in plan.files:
        place = run.path("card") if file["path"] == "README.md" else run.need("adapter") / file["path"]
        content = place.read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (plan.dry_run, plan.private, plan.who, plan.problems) == (True, True, None, [])
    assert ("adapter/README.md", "the run's own card takes its place") in plan.left_out


def test_a_dry_run_says_that_there_is_no_login_and_is_recorded(made):
    run, config = made
    pushed = push(plan_push(run, config), run)
    assert pushed == run.read_json("push")
    assert {"repo_id", "private", "dry_run", "files", "url"} <= set(pushed)
    assert pushed["dry_run"] is True
    assert any("No Hub login" in note for note in pushed["notes"])
    assert dict(plan_push(run, config).rows())["you"].startswith("no login found")


def test_a_push_without_a_login_is_refused_before_anything(made):
    run, config = made
    config.push, config.repo_id = True, "me/model"
    with pytest.raises(HubError, match="hf auth login") as error:
        plan_push(run, config)
    assert error.value.exit_code == 1
    assert not run.has("push")


def test_a_push_needs_a_name(made):
    run, config = made
    config.push = True
    with pytest.raises(InputError, match="repo_id"):
        plan_push(run, config)


@pytest.mark.parametrize("name", ["a/b/c", "has space", "-x", "x" * 120])
def test_a_name_that_the_hub_would_refuse_is_refused_here(made, name):
    run, config = made
    config.repo_id = name
    with pytest.raises(InputError, match="repo_id"):
        plan_push(run, config)


PLACES = {
    "export/README.md": f"card {TOKEN}\n",
    "adapter/notes.txt": f"{TOKEN}\n",
    "train_log.jsonl": json.dumps({"step": 1, "note": f"x\n{TOKEN}"}),
    "notebooks/05.ipynb": json.dumps({"cells": [{"outputs": [{"text": ["token:\n", f"{TOKEN}\n"]}]}]}),
    ".env": f"HF_TOKEN={TOKEN}\n",
    "eval/samples.jsonl": json.dumps({"prompt": f"my key is {TOKEN}"}),
    "checkpoints/step-10/trainer_state.json": json.dumps({"args": TOKEN}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("real", [False, True])
def test_a_planted_token_stops_the_push_and_is_not_shown(made, place, real, monkeypatch):
    run, config = made
    path = run.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PLACES[place])
    plan = plan_push(run, config)
    plan.dry_run = not real
    with pytest.raises(CheckFailed) as error:
        push(plan, run)
    assert place in str(error.value)
    assert "Hugging Face token" in str(error.value)
    assert TOKEN not in str(error.value) + repr(plan.rows())
    assert not run.has("push")
    assert error.value.exit_code == 1


def test_the_login_itself_is_looked_for_by_value(made, monkeypatch):
    run, config = made
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "an-odd-token-form-42")
    (run.root / "log.txt").write_text("used an-odd-token-form-42 to log in")
    plan = plan_push(run, config)
    assert any("log.txt, line 1" in problem for problem in plan.problems)
    assert any("HF_HUB_OFFLINE" in note for note in plan.notes)


def test_the_home_directory_in_a_sent_file_stops_the_push(made, monkeypatch):
    run, config = made
    monkeypatch.setenv("HOME", "/Users/someone")
    path = run.need("adapter") / "tokenizer_config.json"
    path.write_text(json.dumps({"name_or_path": "/Users/someone/models/x"}))
    assert any("tokenizer_config.json" in problem and "home directory" in problem for problem in plan_push(run, config).problems)


def test_the_base_models_folder_is_shortened_in_what_is_sent(made, monkeypatch):
    run, config = made
    monkeypatch.setenv("HOME", "/Users/someone")
    path = run.need("adapter") / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "/Users/someone/models/my-base"}))
    plan = plan_push(run, config)
    upload = next(upload for upload in plan.uploads if upload.path == "adapter_config.json")
    assert json.loads(upload.content)["base_model_name_or_path"] == "my-base"
    assert upload.sha256 == hashlib.sha256(upload.content).hexdigest()
    assert plan.problems == []


def test_pickles_and_hidden_files_are_left_out(made):
    run, config = made
    folder = run.need("adapter")
    (folder / "training_args.bin").write_bytes(b"anything")
    (folder / "innocent.json").write_bytes(pickle.dumps({"a": 1}))
    (folder / ".DS_Store").write_bytes(b"x")
    plan = plan_push(run, config)
    assert {path for path, _ in plan.left_out} >= {"adapter/training_args.bin", "adapter/innocent.json", "adapter/.DS_Store"}
    assert not {"training_args.bin", "innocent.json", ".DS_Store"} & {file["path"] for file in plan.files}


def test_weights_in_a_pickle_are_not_an_adapter(made):
    run, config = made
    folder = run.need("adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(MissingArtifact, match="a pickle can run code"):
        plan_push(run, config)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_run_directory_stops_the_push(made, tmp_path, kind):
    run, config = made
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "private.txt").write_text("x")
    (run.need("adapter") / "link.txt").symlink_to(outside if kind == "folder" else outside / "private.txt")
    plan = plan_push(run, config)
    assert any("adapter/link.txt" in problem and "outside" in problem for problem in plan.problems)
    assert "link.txt" not in {file["path"] for file in plan.files}


def test_an_adapter_outside_the_run_directory_is_not_sent(made, tmp_path):
    run, config = made
    shutil.copytree(run.need("adapter"), tmp_path / "elsewhere")
    config.adapter_dir = str(tmp_path / "elsewhere")
    plan = plan_push(run, config)
    assert any("outside the run directory" in problem for problem in plan.problems)
    assert [file["path"] for file in plan.files] == ["README.md"]


def test_other_kinds_lie_in_their_folders_and_must_have_been_made(made):
    run, config = made
    config.push_artifacts = "adapter, gguf"
    with pytest.raises(MissingArtifact, match="05_export"):
        plan_push(run, config)
    run.path("gguf").mkdir()
    assert any("export/gguf: nothing" in problem for problem in plan_push(run, config).problems)
    (run.path("gguf") / "model-F16.gguf").write_bytes(b"GGUF\0\0")
    plan = plan_push(run, config)
    assert "gguf/model-F16.gguf" in {file["path"] for file in plan.files}
    config.push_artifacts = "gguf"
    assert [file["path"] for file in plan_push(run, config).files] == ["README.md", "model-F16.gguf"]


def test_a_file_that_changed_after_the_plan_is_not_sent(made):
    run, config = made
    plan = plan_push(run, config)
    run.write_text("card", "something else")
    with pytest.raises(CheckFailed, match=r"README\.md"):
        push(plan, run)


def test_the_card_is_written_when_it_is_not_there(made):
    run, config = made
    run.path("card").unlink()
    assert plan_push(run, config).files[0]["path"] == "README.md"
