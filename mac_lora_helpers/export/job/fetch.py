"""The finished adapter comes back: from the Hub, at one commit, into a run directory of its own, checked before it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import ARTIFACTS, RunDir
from mac_lora_helpers.config import Config, resolve
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export.hub.errors import HubError
from mac_lora_helpers.export.hub.files import RECORDS, digest_of
from mac_lora_helpers.export.job import record as records
from mac_lora_helpers.export.job.errors import ask
from mac_lora_helpers.export.job.follow import job_logs
from mac_lora_helpers.export.job.submit import UNASKED, JobState, _api, quiet
from mac_lora_helpers.files import atomic_folder, portable

#: What is taken from the repository: PEFT's files, the tokenizer's, the run's records. Never a pickle.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_TOKENIZER = ("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")
_FIX = "if the job has finished, look at the repository in the browser; a repo_id of its own for each job keeps results apart"


@dataclass(frozen=True)
class Fetched:
    """A result that came back. ``folder``: its run directory; None if there was nothing to fetch, then ``why`` says so."""

    folder: Path | None = None
    repo_id: str = ""
    commit: str = ""
    files: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        if self.folder is None:
            return [("fetched", f"nothing: {self.why}")]
        folder = portable(str(self.folder))
        total = sum(item["bytes"] for item in self.files)
        return [
            ("fetched", f"{len(self.files)} files, {total:,} bytes, from {self.repo_id} at {self.commit[:12]}"),
            ("run directory", folder),
            ("checked", "made by this job's script, from the same data and parameters; the weights are whole and finite"),
            ("evaluate it", f"mac-lora run --only 04 --only 05 --run-dir {folder}"),
        ]


def fetch_job(run: RunDir, state: JobState | None = None, into: str | Path | None = None) -> Fetched:
    """Brings the finished job's adapter and records into a run directory of their own.

    The local run stays as it is. What comes back must have been made by the script that was written here, from the
    same tokens and with the same parameters; else nothing is kept.

    Args:
        state: what following the job gave; a job that was not submitted, or still runs, gives an empty result. Without
            a state the repository is asked, also for a job that was started by hand with ``command.txt``.
        into: the new run directory; by default the local one's name with ``-cloud`` behind it.

    Raises:
        MissingArtifact: no job was written, or the Hub holds no result yet. InputError: the folder holds something else.
        CheckFailed: the job failed, or the result is not this job's. HubError: the Hub refused or cannot be reached.
    """
    if state is not None and (why := _not_yet(state)):
        return Fetched(why=why)
    record = records.read(run)
    job = {**{name: record[name] for name in ("repo_id", "fingerprint", "parameters", "at_home")}, **record.get("job", {})}
    job.setdefault("script_sha256", record["script"]["sha256"])
    target = _target(run, into)
    repo = _full_name(job["repo_id"])
    with atomic_folder(target) as folder:
        RunDir(folder).claim()
        commit = _download(repo, folder / "hub")
        result = _checked(folder / "hub", job, repo)
        files = _arrange(folder, result, job, target)
        _data(run, folder, job, result)
        _log(run, record, folder)
        made = {"repo_id": repo, "commit": commit, "script_sha256": job["script_sha256"], "job_id": result["job"]["job_id"], "files": files}
        RunDir(folder).write_json("fetched", made)
    return Fetched(target, repo, commit, files)


def _not_yet(state: JobState) -> str:
    """Why there is nothing to fetch; empty if there is.

    Raises:
        CheckFailed: the job ended without a result.
    """
    if not state.submitted:
        return "no job was submitted"
    if state.stage == UNASKED:
        return "submit_job is off; `mac-lora job fetch` brings the result of the job that was submitted before"
    if not state.ended:
        return "the job is still running; run this step again when it has ended"
    if state.stage != "COMPLETED":
        said = f"{state.stage.lower()}{f': {state.message}' if state.message else ''}"
        fix = "look at its log: `mac-lora job logs`; correct what it names, then submit again"
        fix = "give it a longer job_timeout, then submit again" if "timeout" in state.message.lower() else fix
        raise CheckFailed(f"the job did not finish ({said})", where=f"{state.namespace}/{state.id}", fix=fix)
    return ""


def _target(run: RunDir, into: str | Path | None) -> Path:
    target = Path(into).expanduser().absolute() if into else run.root.with_name(f"{run.root.name}-cloud")
    if target == run.root:
        raise InputError("the local run would be overwritten", where=portable(str(target)), fix="name another folder")
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / ARTIFACTS["fetched"][0]).is_file())):
        raise InputError("the folder holds something else", where=portable(str(target)), fix="name an empty or a new folder")
    return target


def _full_name(repo: str) -> str:
    return repo if "/" in repo else f"{ask(repo, _api().whoami)['name']}/{repo}"


def _download(repo: str, folder: Path) -> str:
    """Everything that is wanted, at the commit that the repository has now."""
    from huggingface_hub import snapshot_download

    try:
        commit = ask(repo, _api().model_info, repo).sha
    except HubError as error:
        if error.status != 404:
            raise
        fix = "wait until the job has finished; its log says where it pushed to"
        raise MissingArtifact(f"the Hub holds no result at {repo}", where=repo, fix=fix) from error
    wanted = [*_ADAPTER, *_TOKENIZER, *RECORDS]
    with quiet():
        ask(repo, snapshot_download, repo, revision=commit, local_dir=folder, allow_patterns=wanted, library_name="mac-lora-helpers")
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return str(commit)


def _checked(folder: Path, job: Mapping[str, Any], repo: str) -> dict[str, Any]:
    """The records of the result, by name, once they are found to be this job's."""
    result = {name: _read(folder / f"run/{name}.json", repo) for name in ("job", "train_config", "train_metrics", "manifest")}
    theirs = result["job"].get("script_sha256", "")
    if theirs != job["script_sha256"]:
        where = f"{repo}: made by script {theirs[:12] or 'unknown'}, this run's is {job['script_sha256'][:12]}"
        raise CheckFailed("what lies on the Hub is not this job's result", where=where, fix=_FIX)
    prints = {result["manifest"].get("fingerprint"), result["train_config"].get("data_fingerprint"), job["fingerprint"]} - {""}
    if len(prints) != 1:
        listed = ", ".join(str(item)[:12] for item in sorted(map(str, prints)))
        raise CheckFailed("the job was trained on other data than the local run", where=f"{repo}: fingerprints {listed}", fix=_FIX)
    config, names = result["train_config"].get("config", {}), resolve({}, env={}).names("data", "training")
    other = [name for name in names if name in job["parameters"] and config.get(name) != job["parameters"][name]]
    if other:
        listed = ", ".join(f"{name}: {job['parameters'][name]} asked, {config.get(name)} trained" for name in other)
        raise CheckFailed("the job was trained with other parameters than were asked for", where=f"{repo}: {listed}", fix=_FIX)
    return result


def _read(path: Path, repo: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise CheckFailed(f"the result on the Hub has no readable run/{path.name}", where=repo, fix=_FIX) from None


def _arrange(folder: Path, result: Mapping[str, Any], job: Mapping[str, Any], target: Path) -> list[dict[str, Any]]:
    """The downloaded files where a run directory has them, with this machine's paths; the adapter is read once."""
    from mac_lora_helpers.adapter import Adapter

    hub, new = folder / "hub", RunDir(folder)
    names = [path.relative_to(hub).as_posix() for path in sorted(hub.rglob("*")) if path.is_file()]
    files = [{"path": name, **dict(zip(("bytes", "sha256"), digest_of(hub / name), strict=True))} for name in names]
    shutil.copyfile(hub / "run/train_log.jsonl", new.path("train_log"))
    shutil.rmtree(hub / "run")
    hub.rename(new.path("adapter"))
    config = {**result["train_config"]["config"], **job["at_home"], "out_dir": portable(str(target))}
    new.write_json("train_config", {**result["train_config"], "config": config})
    new.write_json("train_metrics", result["train_metrics"])
    path = new.path("adapter") / "adapter_config.json"
    if path.is_file():
        settings = {**json.loads(path.read_text(encoding="utf-8")), "base_model_name_or_path": config["model_id"]}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _ = Adapter.read(new.need("adapter"), "adapter", own=True).tensors
    return files


def _data(run: RunDir, folder: Path, job: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """The data that the job was trained on: the local run's where they are the same, else made again from the source.

    Raises:
        CheckFailed: the source gives other data here than in the job.
    """
    from mac_lora_helpers.export.job import script as job_script

    new, wanted = RunDir(folder), result["manifest"]["fingerprint"]
    if run.has("manifest") and run.read_json("manifest").get("fingerprint") == wanted:
        shutil.copytree(run.need("data"), new.path("data"), dirs_exist_ok=True)
        return
    saved = new.config("train_config")
    config = resolve({name: value for name, value in saved.items() if name in Config.model_fields}, env={})
    made = job_script.write_data(new, config)
    if made["fingerprint"] != wanted:
        what = "the data cannot be made here as they were in the job"
        fix = "the source changed since: run 02 with the job's parameters and compare, or write and submit the job again"
        raise CheckFailed(what, where=f"fingerprint {made['fingerprint'][:12]} here, {wanted[:12]} in the job", fix=fix)


def _log(run: RunDir, record: Mapping[str, Any], folder: Path) -> None:
    """The job's log, where the Hub still has it; a result without its log is a result."""
    if not record.get("job"):
        return
    try:
        text = "".join(f"{line}\n" for line in job_logs(run))
    except HubError as error:
        text = f"The log could not be fetched: {error.what}\n"
    RunDir(folder).write_text("job_log", text)
