"""A job through the real client against the stand-in: submitted, run here, fetched; and every refusal."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub.state import Blob
from mac_lora_helpers import export
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export import HubError, fetch_job, submit_job, write_job
from mac_lora_helpers.suite.cli import main

REPO = "alice/from-the-cloud"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The embedded model, trained for a few steps by notebooks 02 and 03, and the job written from it."""
    root = tmp_path_factory.mktemp("jobs") / "run"
    values = {"max_steps": 12, "device": "cpu", "eval_examples": 3, "max_new_tokens": 8, "repo_id": REPO, "out_dir": str(root)}
    words = [word for name, value in values.items() for word in ("-p", name, str(value))]
    assert main(["run", "--only", "02", "--only", "03", *words]) == 0
    config = resolve({**values, "submit_job": True, "job_flavor": "cpu-basic"}, env={})
    write_job(RunDir(root), config)
    return RunDir(root), config


@pytest.fixture
def made(trained, tmp_path, hub):
    """A copy of that run."""
    run, config = trained
    shutil.copytree(run.root, tmp_path / "run")
    return RunDir(tmp_path / "run"), config.model_copy(update={"out_dir": str(tmp_path / "run")})


def job_of(run):
    return json.loads((run.path("job") / "job.json").read_text())


def started(hub):
    return [request for request in hub.requests if request.startswith("POST /api/jobs/")]


@pytest.mark.slow
def test_submit_run_fetch(made, hub, alice, tmp_path, capsys):
    """The whole way: the real client sends the script over Xet, the script runs the notebooks in a process of its own and pushes to the
    stand-in, and what comes back is bit for bit what this machine trained."""
    run, config = made
    hub.jobs.run_scripts = True
    rows = dict(submit_job(run, config))
    assert capsys.readouterr().out == ""
    kept = job_of(run)
    assert (kept["submitted"], kept["job"]["namespace"], rows["job"]) == (True, "alice", f"alice/{kept['job']['id']}")
    bucket = hub.jobs.buckets["alice/jobs-artifacts"]
    assert bucket.private
    sent = {path.split("/")[-1]: content for path, content in bucket.files.items()}
    assert sent["train_job.py"] == (run.path("job") / "train_job.py").read_bytes()
    job = hub.jobs.jobs[kept["job"]["id"]]
    job.thread.join(400)
    told = "\n".join(text for _, text in job.lines)
    assert job.stage == "COMPLETED", told[-3000:]
    assert "same data as the local run" in told
    assert alice not in told
    assert hub.repo(REPO).private

    fetched = dict(fetch_job(run))
    there = RunDir(run.root.with_name("run-cloud"))
    name = "adapter_model.safetensors"
    assert (there.need("adapter") / name).read_bytes() == (run.need("adapter") / name).read_bytes()
    assert fetched["first losses"].endswith("0.0e+00 apart")
    assert there.read_json("fetched")["commit"] == hub.repo(REPO).head.oid
    assert (there.root / "notebooks" / "03_lora_training.ipynb").is_file()
    assert there.config("train_config")["out_dir"].endswith("run-cloud")
    for file in (file for root in (run.root, there.root) for file in root.rglob("*") if file.is_file()):
        assert alice.encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_a_job_that_may_not_push_stops_before_it_trains(made, hub):
    run, _ = made
    environment = {name: os.environ[name] for name in ("PATH", "HOME")} | {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.add_user("mallory")}
    words = [sys.executable, str(run.path("job") / "train_job.py"), "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=run.path("job"), timeout=240, check=False)
    assert done.returncode == 1
    assert "alice/from-the-cloud: the login mallory may not write there" in done.stderr
    assert not (run.path("job") / "outputs" / "job" / "data").exists()


def test_off_by_default_nothing_is_sent(made, hub, alice):
    run, config = made
    config.submit_job = False
    assert dict(submit_job(run, config))["submitted"] == "no: submit_job is off"
    assert hub.requests == []
    assert resolve({}, env={}).submit_job is False


def test_what_is_submitted_is_what_the_command_says(made, hub, alice):
    run, config = made
    submit_job(run, config)
    spec = next(iter(hub.jobs.jobs.values())).spec
    assert (spec["flavor"], spec["timeoutSeconds"], spec["secrets"]) == ("cpu-basic", 7200, {"HF_TOKEN": alice})
    assert spec["command"][:2] == ["uv", "run"]
    assert spec["command"][2].endswith("/train_job.py")
    assert "environment" not in spec or alice not in json.dumps(spec["environment"])


def test_the_same_job_is_not_started_twice_and_another_may_be(made, hub, alice):
    run, config = made
    submit_job(run, config)
    write_job(run, config)  # notebook 05 run again
    with pytest.raises(CheckFailed, match="submitted before"):
        submit_job(run, config)
    assert len(started(hub)) == 1
    write_job(run, config.model_copy(update={"eval_examples": 4}))
    submit_job(run, config)
    assert len(started(hub)) == 2


def test_a_changed_script_is_not_sent(made, hub, alice):
    run, config = made
    script = run.path("job") / "train_job.py"
    script.write_text(script.read_text() + "\n")
    with pytest.raises(CheckFailed, match="not the script that was written"):
        submit_job(run, config)
    assert hub.requests == []


def test_a_public_bucket_gets_no_script(made, hub, alice):
    from huggingface_hub import HfApi

    run, config = made
    HfApi().create_bucket("alice/jobs-artifacts", private=False)
    with pytest.raises(CheckFailed, match="is public"):
        submit_job(run, config)
    assert started(hub) == []
    assert hub.jobs.buckets["alice/jobs-artifacts"].files == {}


FAULTS = {
    "401": "does not accept this login",
    "402": "cannot pay",
    "403": "may not write to alice",
    "429": "too many requests",
    "500": "trouble of its own (status 500)",
    "422": "does not accept the content",
    "0": "cannot be reached",
}


@pytest.mark.parametrize("status", FAULTS)
def test_every_refusal_has_its_sentence(made, hub, alice, status):
    run, config = made
    hub.fail(r"POST /api/jobs/alice$", int(status), message="stand-in says no")
    with pytest.raises(HubError) as error:
        submit_job(run, config)
    assert FAULTS[status] in error.value.what
    assert error.value.fix
    assert alice not in str(error.value)
    assert job_of(run)["submitted"] is False
    assert len(started(hub)) == 1  # a start is never tried twice
    hub.faults.clear()
    submit_job(run, config)


def test_a_script_that_cannot_be_uploaded_starts_nothing(made, hub, alice):
    run, config = made
    hub.fail(r"buckets/.*/batch", 413, message="stand-in says no")
    with pytest.raises(HubError):
        submit_job(run, config)
    assert started(hub) == []


def test_without_a_network_or_a_login_it_is_said(made, hub, alice, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    run, config = made
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached"):
        submit_job(run, config)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="No Hub login"):
        submit_job(run, config)


# From a terminal


def terminal(hub, token, *words):
    """A program of its own, with the stand-in as its Hub."""
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, env={**os.environ, **settings}, timeout=120, check=False)


def test_the_commands_exit_codes_and_words(made, hub, alice):
    run, _ = made

    def job(*words):
        done = terminal(hub, alice, sys.executable, "-m", "mac_lora_helpers", "job", *words, "--run-dir", run.root)
        assert alice not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    missing = job("fetch")
    assert (missing.returncode, "no result at alice/from-the-cloud" in missing.stderr) == (1, True)
    sent = job("submit")
    (known,) = hub.jobs.jobs.values()
    assert (sent.returncode, f"hf jobs logs --namespace alice {known.id}" in sent.stdout) == (0, True)
    again = job("submit")
    assert (again.returncode, "submitted before" in again.stderr) == (1, True)


def test_the_hf_command_submits_what_command_txt_says(made, hub, alice):
    run, _ = made
    words = shlex.split((run.path("job") / "command.txt").read_text())
    words = [str(Path(sys.executable).with_name("hf")), *words[1:]]
    words = [str(run.path("job") / Path(word).name) if word.endswith((".py", ".zip")) else word for word in words]
    done = terminal(hub, alice, *words[:4], "--detach", *words[4:])
    assert done.returncode == 0, done.stderr
    (known,) = hub.jobs.jobs.values()
    assert (known.spec["flavor"], known.spec["timeoutSeconds"], known.spec["secrets"]) == ("cpu-basic", 7200, {"HF_TOKEN": alice})
    seen = terminal(hub, alice, words[0], "jobs", "inspect", "--format", "json", f"alice/{known.id}")
    assert known.id in seen.stdout, seen.stderr
    assert alice not in done.stdout + done.stderr + seen.stdout
    assert terminal(hub, alice, words[0], "jobs", "cancel", f"alice/{known.id}").returncode == 0
    assert known.stage == "CANCELED"


# What comes back


@pytest.fixture
def finished(made, hub, alice):
    """The job's result on the stand-in, as the job pushes it, without the minutes of training again."""
    run, config = made
    record = json.loads((run.path("job") / "job.json").read_text())
    run.write_json("job_result", {"script_sha256": record["script"]["sha256"], "job_id": "", "fingerprint": record["fingerprint"]})
    pushing = config.model_copy(update={"push": True, "push_artifacts": "adapter, run"})
    export.write_card(run, pushing)
    export.push(export.plan_push(run, pushing), run)
    return run, config, hub.repo(REPO)


def change(repo, path, **values):
    content = json.loads(repo.head.files[path].content)
    target = content["config"] if "config" in content and not set(values) & set(content) else content
    target.update(values)
    repo.add("changed", {**repo.head.files, path: Blob(json.dumps(content).encode(), False)})


def test_a_result_of_a_job_started_by_hand_comes_back(finished, tmp_path):
    run, _, repo = finished
    repo.add("a pickle", {**repo.head.files, "adapter_model.bin": Blob(b"\x80\x04.", True)})
    for _ in range(2):  # a second time it takes its own place
        fetch_job(run, into=tmp_path / "back")
    back = RunDir(tmp_path / "back")
    assert back.read_json("fetched")["commit"] == repo.head.oid
    assert not list(back.root.rglob("*.bin"))
    assert {item["path"] for item in back.read_json("fetched")["files"]} >= {"adapter_model.safetensors", "run/train_config.json"}
    assert back.has("manifest")


@pytest.mark.parametrize(
    ("path", "values", "match"),
    [
        ("run/job.json", {"script_sha256": "0" * 64}, "not this job's result"),
        ("run/manifest.json", {"fingerprint": "0" * 64}, "other data than the local run has"),
        ("run/train_config.json", {"data_fingerprint": "0" * 64}, "other data than the local run has"),
        ("run/train_config.json", {"learning_rate": 0.5}, "learning_rate: 0.0002 asked, 0.5 trained"),
    ],
)
def test_a_result_of_something_else_is_refused(finished, tmp_path, path, values, match):
    run, _, repo = finished
    change(repo, path, **values)
    with pytest.raises(CheckFailed, match=match):
        fetch_job(run, into=tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".back")]


def test_a_damaged_adapter_is_refused(finished, tmp_path):
    run, _, repo = finished
    whole = repo.head.files["adapter_model.safetensors"].content
    repo.add("cut", {**repo.head.files, "adapter_model.safetensors": Blob(whole[:-100], True)})
    with pytest.raises(InputError, match="damaged or cut short"):
        fetch_job(run, into=tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_with_something_else_is_left_alone(finished, tmp_path):
    run, _, _ = finished
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for place in (tmp_path / "mine", run.root):
        with pytest.raises(InputError):
            fetch_job(run, into=place)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_without_a_result_it_is_said(made, hub, alice):
    with pytest.raises(MissingArtifact, match="no result at alice/from-the-cloud"):
        fetch_job(made[0])
