"""A job through the real client against the stand-in: submitted, followed, run here, fetched, evaluated; and every refusal."""

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
from mac_lora_helpers.export import HubError, fetch_job, follow_job, job_cost, job_logs, job_status, submit_job, write_job
from mac_lora_helpers.export.job import follow
from mac_lora_helpers.export.job import script as job_script

REPO = "alice/from-the-cloud"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The embedded model, trained for a few steps on this machine as notebooks 02 and 03 do it, and the job written from it."""
    values = {"max_steps": 12, "device": "auto", "eval_examples": 3, "max_new_tokens": 8, "repo_id": REPO, "submit_job": True}
    root = tmp_path_factory.mktemp("jobs") / "run"
    config = resolve({**values, "out_dir": str(root)}, env={})
    run = RunDir(root)
    job_script.write_data(run, config)
    job_script.train(run, config)
    write_job(run, config)
    return run, config


@pytest.fixture
def made(trained, tmp_path, hub):
    """A copy of that run."""
    run, config = trained
    shutil.copytree(run.root, tmp_path / "run")
    return RunDir(tmp_path / "run"), config.model_copy(update={"out_dir": str(tmp_path / "run")})


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(follow, "PAUSE", 0.05)


@pytest.fixture
def slept(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def started(hub):
    return [request for request in hub.requests if request.startswith("POST /api/jobs/")]


def test_submit_follow_fetch_evaluate(made, hub, alice, quick, tmp_path, capsys):
    """The whole way: the real client sends the script over Xet, the script runs in a process of its own and pushes to the
    stand-in, and what comes back is bit for bit what this machine trained."""
    run, config = made
    hub.jobs.run_scripts, hub.jobs.extra_arguments = True, ["--any-device"]
    state = submit_job(run, config)
    assert capsys.readouterr().out == ""
    kept = json.loads((run.path("job") / "job.json").read_text())
    assert (kept["submitted"], kept["job"]["id"], kept["job"]["namespace"]) == (True, state.id, "alice")
    bucket = hub.jobs.buckets["alice/jobs-artifacts"]
    assert bucket.private
    sent = {path.split("/")[-1]: content for path, content in bucket.files.items()}
    assert sent["train_job.py"] == (run.path("job") / "train_job.py").read_bytes()
    lines: list[str] = []
    state = follow_job(run, state, lines.append)
    assert (state.stage, state.ended) == ("COMPLETED", True), "\n".join(lines[-15:])
    assert any("same data as the local run" in line for line in lines)
    assert any(line.startswith("step=") for line in lines)
    fetched = fetch_job(run, state)
    there = RunDir(fetched.folder)
    name = "adapter_model.safetensors"
    assert (there.need("adapter") / name).read_bytes() == (run.need("adapter") / name).read_bytes()
    assert fetched.commit == hub.repo(REPO).head.oid
    assert hub.repo(REPO).private
    assert there.config("train_config")["out_dir"].endswith("run-cloud")
    assert "same data as the local run" in there.path("job_log").read_text()
    job_script.evaluate(there, resolve({**config.model_dump(), "out_dir": str(there.root), "submit_job": False}, env={}))
    assert there.read_json("eval_metrics")["examples"] == 3
    for file in (file for root in (run.root, there.root) for file in root.rglob("*") if file.is_file()):
        assert alice.encode() not in file.read_bytes(), file


def test_off_by_default_nothing_is_sent(made, hub, alice):
    run, config = made
    config.submit_job = False
    state = submit_job(run, config)
    assert not state.submitted
    assert ("submitted", "no: submit_job is off") in state.rows()
    assert follow_job(run, state) is state
    assert fetch_job(run, state).rows() == [("fetched", "nothing: no job was submitted")]
    assert hub.requests == []
    assert resolve({}, env={}).submit_job is False


def test_what_is_submitted_is_what_the_command_says(made, hub, alice):
    run, config = made
    submit_job(run, config)
    spec = next(iter(hub.jobs.jobs.values())).spec
    assert (spec["flavor"], spec["timeoutSeconds"], spec["secrets"]) == ("t4-small", 7200, {"HF_TOKEN": alice})
    assert spec["command"][:2] == ["uv", "run"]
    assert spec["command"][2].endswith("/train_job.py")
    assert "environment" not in spec or alice not in json.dumps(spec["environment"])


def test_a_second_submit_starts_nothing_and_a_failed_job_may_be_followed_by_another(made, hub, alice):
    run, config = made
    first = submit_job(run, config)
    write_job(run, config)  # notebook 05 run again
    again = submit_job(run, config)
    assert (again.id, len(started(hub))) == (first.id, 1)
    assert "nothing was started now" in again.note
    hub.jobs.jobs[first.id].end("ERROR", "out of memory")
    second = submit_job(run, config)
    assert second.id != first.id
    assert json.loads((run.path("job") / "job.json").read_text())["earlier_jobs"][0]["id"] == first.id


def test_a_job_that_the_hub_keeps_no_more_may_be_followed_by_another(made, hub, alice, monkeypatch):
    run, config = made
    first = submit_job(run, config)
    del hub.jobs.jobs[first.id]
    with monkeypatch.context() as other:
        other.setenv("HF_TOKEN", hub.add_user("bob"))  # to bob the Hub would say the same of a job that runs
        with pytest.raises(HubError, match="may not see it"):
            submit_job(run, config)
    assert submit_job(run, config).submitted
    assert len(started(hub)) == 2


def test_an_answer_that_was_lost_starts_no_second_job(made, hub, alice, slept):
    run, config = made
    state = submit_job(run, config)
    record = json.loads((run.path("job") / "job.json").read_text())
    del record["job"]
    (run.path("job") / "job.json").write_text(json.dumps({**record, "submitted": False}))
    again = submit_job(run, config)
    assert (again.id, len(started(hub))) == (state.id, 1)
    assert "already running with this script" in again.note


def test_another_script_waits_for_the_job_that_runs(made, hub, alice):
    run, config = made
    submit_job(run, config)
    config.job_overrides = "learning_rate=0.001"
    assert dict(write_job(run, config).rows())["submitted"].endswith("with an earlier script")
    with pytest.raises(CheckFailed, match="still runs"):
        submit_job(run, config)
    export.cancel_job(run)
    submit_job(run, config)
    assert len(started(hub)) == 3  # two starts and the cancel


def test_with_submit_off_a_job_of_before_is_named_and_nobody_is_asked(made, hub, alice):
    run, config = made
    known = submit_job(run, config)
    config.submit_job, before = False, len(hub.requests)
    state = submit_job(run, config)
    assert state.id == known.id
    assert "mac-lora job fetch" in dict(state.rows())["stage"]
    assert follow_job(run, state) is state
    assert "mac-lora job fetch" in fetch_job(run, state).why
    assert len(hub.requests) == before


def test_a_job_that_takes_too_long_is_stopped_and_told(made, hub, alice, quick):
    run, config = made
    config.job_timeout = "1s"
    write_job(run, config)
    hub.jobs.run_scripts = True
    state = follow_job(run, submit_job(run, config), lambda line: None)
    with pytest.raises(CheckFailed, match=r"Job timeout[\s\S]*longer job_timeout"):
        fetch_job(run, state)


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


def test_breaking_off_leaves_the_job_running(made, hub, alice, quick):
    run, config = made
    state = submit_job(run, config)
    job = hub.jobs.jobs[state.id]
    shown: list[str] = []

    def show(line):
        shown.append(line)
        if line.startswith("waiting"):
            raise KeyboardInterrupt

    state = follow_job(run, state, show)
    assert state.interrupted
    assert any(f"{job.id} runs on" in line for line in shown)
    assert any("mac-lora job logs --follow --run-dir" in line for line in shown)
    assert job.stage == "SCHEDULING"
    assert fetch_job(run, state).why.startswith("the job is still running")


def test_a_failed_job_is_told_and_leaves_nothing(made, hub, alice, quick):
    run, config = made
    state = submit_job(run, config)
    job = hub.jobs.jobs[state.id]
    job.log("Traceback: it went wrong with " + alice)
    job.end("ERROR", "Job failed with exit code: 1")
    lines: list[str] = []
    state = follow_job(run, state, lines.append)
    assert lines == ["Traceback: it went wrong with <secret removed>"]
    with pytest.raises(CheckFailed, match="exit code: 1"):
        fetch_job(run, state)
    assert list(job_logs(run)) == lines
    assert not run.root.with_name("run-cloud").exists()


FAULTS = {
    "401": ("does not accept this login", "hf auth login"),
    "402": ("cannot pay for this job", "credits"),
    "403": ("may not run jobs for alice", "token"),
    "404": ("knows no job or account", "typing errors"),
    "409": ("busy with another change", "wait a minute"),
    "413": ("larger than the Hub accepts", "on the Hub"),
    "429": ("too many requests", "none is started twice"),
    "500": ("trouble of its own (status 500)", "status.huggingface.co"),
    "503": ("trouble of its own (status 503)", "none is started twice"),
    "422": ("does not accept this job", "correct what it names"),
    "0": ("cannot be reached", "check the connection"),
}


@pytest.mark.parametrize("status", FAULTS)
@pytest.mark.parametrize("place", [r"POST /api/jobs/alice$", r"GET /api/jobs/alice/\w+$"])
def test_every_refusal_has_its_sentence(made, hub, alice, status, place, slept):
    run, config = made
    if place.startswith("GET"):
        submit_job(run, config)
    hub.fail(place, int(status), message="stand-in says no")
    with pytest.raises(HubError) as error:
        submit_job(run, config) if place.startswith("POST") else job_status(run)
    what, fix = FAULTS[status]
    assert what in error.value.what
    assert fix in error.value.fix
    assert error.value.exit_code == 1
    assert alice not in str(error.value)
    record = json.loads((run.path("job") / "job.json").read_text())
    assert record["submitted"] is place.startswith("GET")
    if place.startswith("POST"):
        assert len(started(hub)) == 1  # a start is never tried twice
        assert hub.state.repos == {}
        hub.faults.clear()
        assert submit_job(run, config).submitted


@pytest.mark.parametrize(("place", "status"), [(r"xet-write-token", 403), (r"/v1/shards", 400), (r"buckets/.*/batch", 413)])
def test_a_script_that_cannot_be_uploaded_starts_nothing(made, hub, alice, place, status):
    run, config = made
    hub.fail(place, status, message="stand-in says no")
    with pytest.raises(HubError) as error:
        submit_job(run, config)
    assert error.value.exit_code == 1
    assert "Traceback" not in str(error.value)
    assert started(hub) == []


def test_without_a_network_or_a_login_it_is_said(made, hub, alice, monkeypatch, slept):
    from huggingface_hub import constants

    run, config = made
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached"):
        submit_job(run, config)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="No Hub login"):
        submit_job(run, config)


def test_an_account_that_cannot_pay_and_a_flavor_that_is_gone(made, hub, alice):
    run, config = made
    hub.jobs.poor.add("alice")
    with pytest.raises(HubError, match="alice cannot pay"):
        submit_job(run, config)
    config.job_flavor = "h200"  # known to the client, not to this Hub
    write_job(run, config)
    with pytest.raises(HubError, match=r"does not accept this job: .*Invalid flavor: h200"):
        submit_job(run, config)


def test_machine_and_price_are_read_from_the_hub(made, hub, alice, monkeypatch):
    from huggingface_hub import constants

    run, config = made
    rows = dict(job_cost(run, config).rows())
    assert "Stand-in t4-small" in rows["machine"]
    assert rows["price"].startswith("$0.12 an hour")
    assert rows["costs at most"] == "$0.24: the whole time limit of 2 h"
    assert "training took here" in rows["at this machine's speed"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in dict(job_cost(run, config).rows())["price"]
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.requests)
    assert "asks nobody" in dict(job_cost(run, config).rows())["price"]
    assert len(hub.requests) == before


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

    refused = job("status")
    assert (refused.returncode, "no job was submitted" in refused.stderr) == (1, True)
    sent = job("submit")
    (known,) = hub.jobs.jobs.values()
    assert (sent.returncode, known.id in sent.stdout) == (0, True)
    known.log("step=1 loss=0.5")
    known.end("ERROR", "out of memory")
    failed = job("status")
    assert (failed.returncode, "error: out of memory" in failed.stdout) == (1, True)
    assert job("logs").stdout == "step=1 loss=0.5\n"
    assert "did not finish (error: out of memory)" in job("fetch").stderr


def test_the_hf_command_submits_what_command_txt_says(made, hub, alice):
    run, _ = made
    words = shlex.split((run.path("job") / "command.txt").read_text())
    words = [str(Path(sys.executable).with_name("hf")), *words[1:]]
    words = [str(run.path("job") / Path(word).name) if word.endswith((".py", ".zip")) else word for word in words]
    done = terminal(hub, alice, *words[:4], "--detach", *words[4:])
    assert done.returncode == 0, done.stderr
    (known,) = hub.jobs.jobs.values()
    assert (known.spec["flavor"], known.spec["timeoutSeconds"], known.spec["secrets"]) == ("t4-small", 7200, {"HF_TOKEN": alice})
    seen = terminal(hub, alice, words[0], "jobs", "inspect", "--format", "json", f"alice/{known.id}")
    assert known.id in seen.stdout, seen.stderr
    assert alice not in done.stdout + done.stderr + seen.stdout
    assert "t4-small" in terminal(hub, alice, words[0], "jobs", "hardware", "--format", "json").stdout
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
    fetched = fetch_job(run, into=tmp_path / "back")
    assert fetched.commit == repo.head.oid
    assert not list(fetched.folder.rglob("*.bin"))
    assert {item["path"] for item in fetched.files} >= {"adapter_model.safetensors", "run/train_config.json"}
    assert (fetched.folder / "data" / "manifest.json").is_file()
    assert fetch_job(run, into=tmp_path / "back").folder == fetched.folder  # a second time it takes its own place


@pytest.mark.parametrize(
    ("path", "values", "match"),
    [
        ("run/job.json", {"script_sha256": "0" * 64}, "not this job's result"),
        ("run/manifest.json", {"fingerprint": "0" * 64}, "other data than the local run"),
        ("run/train_config.json", {"data_fingerprint": "0" * 64}, "other data than the local run"),
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
