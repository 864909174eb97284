"""The finished adapter comes back: from the Hub, at one commit, into a run directory of its own, checked before it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mac_lora_helpers.adapter import Adapter
from mac_lora_helpers.artifacts import ARTIFACTS, RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export.hub.errors import HubError, call
from mac_lora_helpers.export.hub.files import RECORDS, digest_of
from mac_lora_helpers.export.job.submit import quiet
from mac_lora_helpers.export.job.write import AT_HOME, read_record
from mac_lora_helpers.files import atomic_folder
from mac_lora_helpers.redaction import portable

#: What is taken from the repository: PEFT's files, the tokenizer's, the run's records and executed notebooks. Never a pickle.
_WANTED = ["adapter_config.json", "adapter_model.safetensors", "tokenizer*.json", "tokenizer.model", "special_tokens_map.json"]
_WANTED += ["added_tokens.json", "vocab.*", "merges.txt", "*.jinja", "run/notebooks/*.ipynb", *RECORDS]
_FIX = "if the job has finished, look at the repository in the browser; a repo_id of its own for each job keeps results apart"


def fetch_job(run: RunDir, into: str | Path | None = None) -> list[tuple[str, str]]:
    """Brings the finished job's adapter, records and executed notebooks into a run directory of their own.

    The local run stays as it is. What comes back must have been made by the script that was written here, from the same tokens and with
    the same parameters; else nothing is kept.

    Args:
        into: the new run directory; by default the local one's name with ``-cloud`` behind it.

    Returns:
        (what, value) for a table; the first losses of both runs stand side by side.

    Raises:
        MissingArtifact: no job was written, or the Hub holds no result yet. InputError: the folder holds something else.
        CheckFailed: the result is not this job's. HubError: the Hub refused or cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    record = read_record(run)
    job = {**{name: record[name] for name in ("repo_id", "fingerprint", "parameters", "at_home")}, **record.get("job", {})}
    job.setdefault("script_sha256", record["script"]["sha256"])
    target, repo = _target(run, into), job["repo_id"]
    repo = repo if "/" in repo else f"{call(repo, HfApi().whoami)['name']}/{repo}"
    commit = _commit(repo)
    with atomic_folder(target) as folder:
        RunDir(folder).claim()
        with quiet():
            options = {"revision": commit, "local_dir": folder / "hub", "allow_patterns": _WANTED, "library_name": "mac-lora-helpers"}
            call(repo, snapshot_download, repo, **options)
        shutil.rmtree(folder / "hub" / ".cache", ignore_errors=True)
        result = _checked(folder / "hub", job, repo, run)
        files = _arrange(folder, result, job, target, run)
        made = {"repo_id": repo, "commit": commit, "script_sha256": job["script_sha256"], "job_id": result["job"]["job_id"], "files": files}
        RunDir(folder).write_json("fetched", made)
    return [
        ("fetched", f"{len(files)} files from {repo} at {commit[:12]}"),
        ("run directory", portable(str(target))),
        ("data", f"the local run's: fingerprint {job['fingerprint']}"),
        ("parameters", "the local run's, all of data and training"),
        ("first losses", _losses(run, RunDir(target))),
        ("look further", f"mac-lora run --only 04 --only 05 --run-dir {portable(str(target))}"),
    ]


def _target(run: RunDir, into: str | Path | None) -> Path:
    target = Path(into).expanduser().absolute() if into else run.root.with_name(f"{run.root.name}-cloud")
    if target == run.root:
        raise InputError("the local run would be overwritten", where=str(target), fix="name another folder")
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / ARTIFACTS["fetched"][0]).is_file())):
        raise InputError("the folder holds something else", where=str(target), fix="name an empty or a new folder")
    return target


def _commit(repo: str) -> str:
    from huggingface_hub import HfApi

    try:
        return str(call(repo, HfApi().model_info, repo).sha)
    except HubError as error:
        if error.status != 404:
            raise
        raise MissingArtifact(
            f"the Hub holds no result at {repo}", where=repo, fix="wait until the job has finished: `hf jobs ps`"
        ) from error


def _checked(folder: Path, job: Mapping[str, Any], repo: str, run: RunDir) -> dict[str, Any]:
    """The records of the result, by name, once they are found to be this job's."""
    result = {name: _read(folder / f"run/{name}.json", repo) for name in ("job", "train_config", "train_metrics", "manifest")}
    theirs, mine = result["job"].get("script_sha256", ""), job["script_sha256"]
    if theirs != mine:
        where = f"{repo}: made by script {theirs[:12] or 'unknown'}, this run's is {mine[:12]}"
        raise CheckFailed("what lies on the Hub is not this job's result", where=where, fix=_FIX)
    here = run.read_json("manifest").get("fingerprint")
    prints = {result["manifest"].get("fingerprint"), result["train_config"].get("data_fingerprint"), job["fingerprint"], here}
    if len(prints) != 1:
        listed = ", ".join(str(item)[:12] for item in sorted(map(str, prints)))
        raise CheckFailed("the job was trained on other data than the local run has", where=f"{repo}: fingerprints {listed}", fix=_FIX)
    config, asked = result["train_config"].get("config", {}), resolve(job["parameters"], env={})
    names = [name for name in asked.names("data", "training") if name in config and name not in AT_HOME]
    differ = [name for name in names if config[name] != getattr(asked, name)]
    if differ:
        listed = ", ".join(f"{name}: {getattr(asked, name)} asked, {config[name]} trained" for name in differ)
        raise CheckFailed("the job was trained with other parameters than were asked for", where=f"{repo}: {listed}", fix=_FIX)
    return result


def _read(path: Path, repo: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise CheckFailed(f"the result on the Hub has no readable run/{path.name}", where=repo, fix=_FIX) from None


def _arrange(folder: Path, result: Mapping[str, Any], job: Mapping[str, Any], target: Path, run: RunDir) -> list[dict[str, Any]]:
    """The downloaded files where a run directory has them, with this machine's paths; the adapter is read once."""
    hub, new = folder / "hub", RunDir(folder)
    names = [path.relative_to(hub).as_posix() for path in sorted(hub.rglob("*")) if path.is_file()]
    files = [{"path": name, **dict(zip(("bytes", "sha256"), digest_of(hub / name), strict=True))} for name in names]
    shutil.copyfile(hub / "run/train_log.jsonl", new.path("train_log"))
    if (hub / "run/notebooks").is_dir():
        shutil.copytree(hub / "run/notebooks", new.path("executed"))
    shutil.rmtree(hub / "run")
    hub.rename(new.path("adapter"))
    config = {**result["train_config"]["config"], **job["at_home"], "out_dir": portable(str(target))}
    new.write_json("train_config", {**result["train_config"], "config": config})
    new.write_json("train_metrics", result["train_metrics"])
    path = new.path("adapter") / "adapter_config.json"
    settings = {**_read(path, "adapter_config.json"), "base_model_name_or_path": config["model_id"]}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _ = Adapter.read(new.need("adapter"), "adapter", own=True).tensors
    shutil.copytree(run.need("data"), new.path("data"), dirs_exist_ok=True)
    return files


def _losses(run: RunDir, cloud: RunDir) -> str:
    """The first step's loss here and there; it sees base model, tokens, labels and the order of rows."""
    first = [
        next((row["loss"] for row in place.read_lines("train_log") if "loss" in row), None)
        for place in (run, cloud)
        if place.has("train_log")
    ]
    if len(first) < 2 or None in first:
        return "not known: the local run has no log"
    return f"{first[0]:.6f} here, {first[1]:.6f} in the cloud: {abs(first[0] - first[1]):.1e} apart"
