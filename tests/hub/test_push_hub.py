"""A real push with the real client against the stand-in: what arrives, what is refused, what happens after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_model

from hub.runs import finished_run
from hub.state import Blob
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export import HubError, plan_push, push, write_card

REPO = "alice/tiny-lora"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def made(tmp_path, base, alice):
    run, config = finished_run(tmp_path, base=base, push=True, repo_id=REPO)
    write_card(run, config)
    return run, config


@pytest.fixture
def slept(monkeypatch):
    """The seconds that were waited for, without waiting."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def go(run, config):
    return push(plan_push(run, config), run)


def test_create_push_pull_load_same_logits(made, hub, base, tmp_path):
    import torch
    from huggingface_hub import snapshot_download
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, config = made
    pushed = go(run, config)
    assert (pushed["dry_run"], pushed["url"], pushed["who"]) == (False, f"{hub.url}/{REPO}", "alice")
    assert pushed["commit"] == hub.repo(REPO).head.oid
    assert sorted(pushed["sent"]) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert hub.repo(REPO).private
    folder = snapshot_download(REPO, local_dir=tmp_path / "pulled", cache_dir=tmp_path / "cache")
    for file in pushed["files"]:
        assert (Path(folder) / file["path"]).stat().st_size == file["bytes"]
    ids = AutoTokenizer.from_pretrained(base)("Hello there", return_tensors="pt").input_ids

    def logits(adapter):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()(ids).logits

    assert torch.equal(logits(folder), logits(run.need("adapter")))
    assert not torch.allclose(logits(folder), logits(None))


def test_the_notebooks_own_cell_does_it(made, hub):
    """Notebook 05's cell as it stands, and the same cell once more."""
    from huggingface_hub import HfApi

    from mac_lora_helpers import export, ui

    notebook = json.loads((Path(__file__).parents[2] / "notebooks" / "05_export_and_push.ipynb").read_text())
    (cell,) = ["".join(cell["source"]) for cell in notebook["cells"] if any("create_commit" in line for line in cell["source"])]
    run, config = made
    for _ in range(2):
        names = {"export": export, "ui": ui, "HfApi": HfApi, "run": run, "config": config, "plan": plan_push(run, config)}
        exec(cell, names)  # noqa: S102
        assert names["pushed"]["commit"] == hub.repo(REPO).head.oid
    assert names["pushed"]["sent"] == []


def test_a_second_push_sends_nothing(made, hub):
    go(*made)
    before = len(hub.uploads())
    again = go(*made)
    assert hub.uploads()[before:] == []
    assert again["sent"] == []
    assert len(hub.repo(REPO).commits) == 2


def test_a_changed_card_is_all_that_is_sent_again(made, hub):
    run, config = made
    go(run, config)
    run.write_text("card", run.path("card").read_text() + "\nOne more line.\n")
    before = len(hub.uploads())
    assert go(run, config)["sent"] == ["README.md"]
    assert [request.split()[0] for request in hub.uploads()[before:]] == ["POST"]
    assert hub.repo(REPO).head.files["README.md"].content.endswith(b"One more line.\n")


def test_a_dry_run_asks_and_changes_nothing(made, hub):
    run, config = made
    config.push = False
    plan = plan_push(run, config)
    push(plan, run)
    assert (plan.who, plan.exists) == ("alice", False)
    assert {request.split()[0] for request in hub.requests} == {"GET"}
    assert hub.state.repos == {}


def test_the_name_alone_is_completed_in_plan_and_card(made, hub):
    run, config = made
    config.repo_id = "tiny-lora"
    write_card(run, config)
    assert "YOUR_USERNAME/tiny-lora" in run.path("card").read_text()
    assert go(run, config)["repo_id"] == REPO
    assert f'"{REPO}"' in hub.repo(REPO).head.files["README.md"].content.decode()


def test_public_only_when_asked_and_only_at_the_end(made, hub):
    run, config = made
    config.private = False
    hub.fail(r"/commit/", 400, message="no", times=1)
    with pytest.raises(HubError):
        go(run, config)
    assert hub.repo(REPO).private
    go(run, config)
    assert not hub.repo(REPO).private


def test_an_existing_public_repository_is_not_used_for_a_private_push(made, hub, alice):
    run, config = made
    hub.state.create(hub.state.users[alice], {"name": "tiny-lora", "visibility": "public"})
    with pytest.raises(CheckFailed, match="is public"):
        go(run, config)
    assert hub.uploads() == []


def test_a_repository_made_public_after_the_plan_is_noticed(made, hub, alice):
    run, config = made
    plan = plan_push(run, config)
    hub.state.create(hub.state.users[alice], {"name": "tiny-lora", "visibility": "public"})
    with pytest.raises(CheckFailed, match="is public"):
        push(plan, run)
    assert hub.uploads() == []


@pytest.mark.parametrize("repo", ["someone-else/model", "readers/model"])
def test_where_the_login_may_not_write_is_said_before_anything_is_sent(made, hub, repo):
    run, config = made
    config.repo_id = repo
    with pytest.raises(CheckFailed, match=f"{repo}: the login alice may not write"):
        go(run, config)
    assert {request.split()[0] for request in hub.requests} == {"GET"}


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"role": "read"}, False),
        ({"role": "fineGrained", "scopes": {"bob": ["repo.content.read"]}}, False),
        ({"role": "fineGrained", "scopes": {"bob": ["repo.write"]}}, True),
        ({"role": "write"}, True),
    ],
)
def test_the_tokens_own_rights_are_read(made, hub, monkeypatch, options, allowed):
    run, config = made
    monkeypatch.setenv("HF_TOKEN", hub.add_user("bob", **options))
    config.repo_id = "bob/model"
    plan = plan_push(run, config)
    assert bool(plan.problems) is not allowed
    if allowed:
        assert push(plan, run)["url"].endswith("bob/model")


FAULTS = {
    "401 at whoami": (r"whoami", 401, "does not accept this login", "hf auth login"),
    "401 while uploading": (r"/preupload/", 401, "does not accept this login", "hf auth login"),
    "403 at create": (r"repos/create", 403, "may not write to", "role write"),
    "403 at commit": (r"/commit/", 403, "may not write to", "role write"),
    "404 at preupload": (r"/preupload/", 404, "is not on the Hub", "typing errors"),
    "409 at commit": (r"/commit/", 409, "busy with another change", "wait a minute"),
    "412 at commit": (r"/commit/", 412, "changed by somebody else", "look at what changed"),
    "413 at the upload": (r"PUT /lfs/", 413, "larger than the Hub accepts", "send less"),
    "429 at commit": (r"/commit/", 429, "too many requests", "wait"),
    "429 at whoami": (r"whoami", 429, "too many requests", "wait"),
    "500 at create": (r"repos/create", 500, "trouble of its own (status 500)", "status.huggingface.co"),
    "503 at the upload": (r"PUT /lfs/", 503, "trouble of its own (status 503)", "goes on from there"),
    "no answer": (r"/commit/", 0, "cannot be reached", "check the connection"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_refusal_has_its_sentence_and_nothing_is_half_public(made, hub, name, slept):
    pattern, status, what, fix = FAULTS[name]
    run, config = made
    hub.fail(pattern, status)
    with pytest.raises(HubError) as error:
        go(run, config)
    assert what in error.value.what
    assert fix in error.value.fix
    assert error.value.exit_code == 1
    assert not run.has("push")
    for repo in hub.state.repos.values():
        assert repo.private
        assert set(repo.head.files) == {".gitattributes"}
    hub.faults.clear()
    assert go(run, config)["commit"] == hub.repo(REPO).head.oid


def test_a_full_quota_is_told_from_a_missing_right(made, hub):
    hub.state.quota = 10
    with pytest.raises(HubError, match="storage of alice on the Hub is full"):
        go(*made)


def test_a_dead_network_is_said(made, hub, monkeypatch, slept):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached"):
        go(*made)


def test_a_dry_run_goes_on_without_a_network(made, hub, monkeypatch):
    from huggingface_hub import constants

    run, config = made
    config.push = False
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    plan = plan_push(run, config)
    assert plan.problems == []
    assert any("cannot be reached" in note for note in plan.notes)
    assert dict(plan.rows())["you"].startswith("not known")
    assert push(plan, run)["dry_run"]


def test_a_hub_that_never_answers_does_not_hang_a_dry_run(made, hub, monkeypatch):
    import threading

    from mac_lora_helpers.export.hub import plan as push_plan

    run, config = made
    config.push = False
    monkeypatch.setattr(push_plan, "PATIENCE", 0.3)
    hub.fail("whoami", hold=threading.Event())
    assert any("no answer within" in note or "cannot be reached" in note for note in plan_push(run, config).notes)


def test_a_passing_fault_of_a_question_is_sat_through(made, hub, slept):
    hub.fail(r"GET /api/models/", 503, times=1)
    hub.fail(r"whoami", 429, times=1, headers={"Retry-After": "7"})
    assert go(*made)["commit"] == hub.repo(REPO).head.oid
    assert slept == [7, 1]


def test_a_long_wait_is_the_users_decision(made, hub, slept):
    hub.fail(r"whoami", 429, headers={"Retry-After": "900"})
    with pytest.raises(HubError, match="wait 900 seconds"):
        go(*made)
    assert slept == []


def test_what_is_no_refusal_passes_through():
    from mac_lora_helpers.export import refusals

    with pytest.raises(ZeroDivisionError), refusals(REPO):
        raise ZeroDivisionError


def test_what_the_hub_holds_afterwards_is_compared(made, hub):
    run, config = made
    plan = plan_push(run, config)
    repo_add = type(hub.state.create(next(iter(hub.state.users.values())), {"name": "tiny-lora", "visibility": "private"})).add

    def damaged(repo, summary, files):
        return repo_add(repo, summary, {**files, "adapter_config.json": Blob(b"{}", False)})

    hub.repo(REPO).add = damaged.__get__(hub.repo(REPO))
    with pytest.raises(CheckFailed, match=r"(?s)planned bytes.*adapter_config.json"):
        push(plan, run)
    assert not run.has("push")


PROGRAM = """
import sys
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.export import plan_push, push
run = RunDir(sys.argv[1])
try:
    push(plan_push(run, resolve({"preset": "local", "out_dir": sys.argv[1], "push": True, "repo_id": "alice/tiny-lora"}, env={})), run)
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(run, hub, alice):
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": alice, "HF_HUB_DISABLE_XET": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(run.root)], env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("pattern", [r"PUT /lfs/", r"/commit/"])
def test_killed_in_the_middle_and_repeated_the_commit_is_whole(made, hub, alice, pattern):
    import threading

    run, _ = made
    fault = hub.fail(pattern, hold=threading.Event(), status=0, times=1)
    process = start(run, hub, alice)
    assert fault.reached.wait(60)
    process.kill()
    process.communicate()
    fault.hold.set()
    assert set(hub.repo(REPO).head.files) == {".gitattributes"}
    assert not run.has("push")
    before = len(hub.uploads())
    second = start(run, hub, alice)
    assert "Traceback" not in second.communicate(timeout=60)[1]
    assert second.returncode == 0
    assert set(hub.repo(REPO).head.files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    resent = [request for request in hub.uploads()[before:] if request.startswith("PUT")]
    assert len(resent) == (1 if "PUT" in pattern else 0)


def test_a_refusal_ends_a_program_with_1(made, hub, alice):
    hub.fail(r"repos/create", 403)
    process = start(made[0], hub, alice)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert error.startswith("This login may not write to alice/tiny-lora.")
    assert alice not in error
    assert "Traceback" not in error
