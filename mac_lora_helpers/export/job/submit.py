"""Starting the written job, through the Hub's own client; and what is known about a job that was started."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, MissingArtifact
from mac_lora_helpers.export.hub.errors import HubError, no_login
from mac_lora_helpers.export.hub.plan import check_access
from mac_lora_helpers.export.job import record as records
from mac_lora_helpers.export.job.errors import ask, of_start
from mac_lora_helpers.export.job.record import INPUTS
from mac_lora_helpers.files import portable

#: Stages that a job leaves no more, and those of them that a new job may follow.
ENDED, FAILED = ("COMPLETED", "ERROR", "CANCELED", "DELETED"), ("ERROR", "CANCELED", "DELETED")
#: The stage of a job that was submitted before, while ``submit_job`` is off: the Hub is not asked then.
UNASKED = "NOT ASKED"
#: The label that finds a job again by its script.
LABEL = "mac-lora-script"


@dataclass(frozen=True)
class JobState:
    """What is known about the run's job.

    Attributes:
        id: the Hub's id; empty if no job was submitted. namespace: whose job it is. url: its page.
        stage: SCHEDULING, RUNNING, COMPLETED, ERROR, CANCELED or DELETED; ``UNASKED`` if the Hub was not asked.
        message: the Hub's word on it.
        repo_id: where its result goes. seconds: how long it has been running; None if that is not known.
        command: what would start it by hand. interrupted: following it was broken off. note: worth knowing.
    """

    id: str = ""
    namespace: str = ""
    url: str = ""
    stage: str = ""
    message: str = ""
    repo_id: str = ""
    seconds: int | None = None
    command: str = ""
    interrupted: bool = False
    note: str = ""

    @property
    def submitted(self) -> bool:
        return bool(self.id)

    @property
    def ended(self) -> bool:
        return self.stage in ENDED

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        if not self.submitted:
            return [("submitted", "no: submit_job is off"), ("to start it", f"submit_job = True, or: {self.command}")]
        if self.stage == UNASKED:
            asked = "not asked, because submit_job is off: `mac-lora job status`, `mac-lora job fetch`"
            return [("job", f"{self.namespace}/{self.id}"), ("stage", asked), ("page", self.url)]
        stage = f"{self.stage.lower()}{f': {self.message}' if self.message else ''}"
        rows = [("job", f"{self.namespace}/{self.id}"), ("stage", stage), ("page", self.url), ("result goes to", self.repo_id)]
        rows += [("running for", f"{self.seconds} s")] if self.seconds is not None else []
        rows += [("note", self.note)] if self.note else []
        return rows


def submit_job(run: RunDir, config: Config) -> JobState:
    """Starts the job of ``export/job/`` and keeps its id in ``job.json``; with ``submit_job`` off nothing is sent.

    A job of this very script that was started before is not started again unless it failed: its state is returned.

    Raises:
        MissingArtifact: no job was written. CheckFailed: the script was changed, the login may not write where the
            result goes, or the bucket for scripts is public. HubError: the Hub refused; the message says what to do.
    """
    record = records.read(run)
    if not config.submit_job:
        return state_of(record) if record.get("job") else JobState(command=" ".join(record["command"]))
    if (before := _before(run, record)) is not None:
        return before
    records.script_of(run, record)
    plan = check_access(config.model_copy(update={"repo_id": record["repo_id"], "private": record["private"]}))
    namespace = plan.repo_id.split("/")[0]
    found = _started_before(namespace, record)
    info = found or _start(run, record, namespace)
    earlier = [*record.get("earlier_jobs", []), *([record["job"]] if record.get("job") else [])]
    record = records.update(run, submitted=True, job=_entry(info, plan.repo_id, record), earlier_jobs=earlier)
    state = state_of(record, info)
    return _noted(state, "was already running with this script; nothing was started now") if found else state


def _before(run: RunDir, record: Mapping[str, Any]) -> JobState | None:
    """The job that was submitted from here before, unless a new one may follow it: it failed, or the Hub keeps it no more.

    Raises:
        CheckFailed: it still runs, and with another script.
    """
    if not record.get("job"):
        return None
    try:
        state = job_status(run)
    except HubError as error:
        if error.status == 404 and _sees(record["job"]["namespace"]):
            return None
        raise
    if record["job"]["script_sha256"] == record["script"]["sha256"]:
        return None if state.stage in FAILED else _noted(state, "was submitted before; nothing was started now")
    if not state.ended:
        raise CheckFailed(
            "a job of this run directory with an earlier script still runs",
            where=f"{state.namespace}/{state.id}",
            fix="wait for it, or stop it: `mac-lora job cancel`; another out_dir keeps the two apart",
        )
    return None


def _sees(namespace: str) -> bool:
    """Whether this login would be shown the namespace's jobs; to others the Hub says that there are none."""
    who = ask(namespace, _api().whoami)
    return namespace in {who.get("name"), *(org.get("name") for org in who.get("orgs", []))}


def _entry(info: Any, repo_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a started job: how to find it, and what its result has to be."""
    made = {name: record[name] for name in ("fingerprint", "parameters", "at_home")}
    where = {"id": info.id, "namespace": info.owner.name, "url": info.url, "repo_id": repo_id}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {**where, "submitted_at": when, "script_sha256": record["script"]["sha256"], **made}


def job_status(run: RunDir) -> JobState:
    """The submitted job as the Hub knows it now.

    Raises:
        MissingArtifact: no job was written, or none was submitted. HubError: the Hub refused or cannot be reached.
    """
    record, job = submitted(run)
    return state_of(record, ask(f"{job['namespace']}/{job['id']}", _api().inspect_job, job_id=job["id"], namespace=job["namespace"]))


def cancel_job(run: RunDir) -> JobState:
    """Stops the submitted job. Raises as :func:`job_status`."""
    _, job = submitted(run)
    ask(f"{job['namespace']}/{job['id']}", _api().cancel_job, job_id=job["id"], namespace=job["namespace"])
    return job_status(run)


def submitted(run: RunDir) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and its entry of the submitted job.

    Raises:
        MissingArtifact: none was submitted.
    """
    record = records.read(run)
    if not record.get("job"):
        fix = "run 05_export_and_push.ipynb with submit_job = True, or `mac-lora job submit`"
        raise MissingArtifact("no job was submitted from this run directory", where=portable(str(run.root)), fix=fix)
    return record, record["job"]


def state_of(record: Mapping[str, Any], info: Any = None) -> JobState:
    """The state from the record and, if it was asked, the Hub's answer."""
    job = record["job"]
    known = {name: job[name] for name in ("id", "namespace", "url", "repo_id")}
    if info is None:
        return JobState(**known, stage=UNASKED, command=" ".join(record["command"]))
    seconds = info.durations.running_secs if info.durations else None
    return JobState(**known, stage=_stage(info), message=portable(info.status.message or ""), seconds=seconds)


def _stage(info: Any) -> str:
    return str(getattr(info.status.stage, "value", info.status.stage))


def _noted(state: JobState, note: str) -> JobState:
    return JobState(**{**vars(state), "note": note})


def _started_before(namespace: str, record: Mapping[str, Any]) -> Any:
    """A job of this very script that was started although its answer never arrived; None if there is none."""
    labels = {LABEL: record["script"]["sha256"][:40]}
    known = {item["id"] for item in [record.get("job") or {}, *record.get("earlier_jobs", [])] if item}
    found = ask(namespace, lambda: list(_api().list_jobs(namespace=namespace, labels=labels, timeout=30)))
    return next((info for info in found if info.id not in known and _stage(info) not in FAILED), None)


def _start(run: RunDir, record: Mapping[str, Any], namespace: str) -> Any:
    """Uploads the script into the account's private bucket and starts the job. A start is never tried twice."""
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise no_login()
    _refuse_public_bucket(namespace)
    folder = run.path("job")
    arguments = [str(folder / INPUTS)] if record["inputs"] else []
    labels = {"name": f"mac-lora-{record['script']['sha256'][:8]}", LABEL: record["script"]["sha256"][:40]}
    with quiet():
        try:
            return _api().run_uv_job(
                str(folder / records.SCRIPT),
                script_args=arguments,
                flavor=record["flavor"],
                timeout=record["timeout"],
                secrets={"HF_TOKEN": token},
                labels=labels,
                namespace=namespace,
            )
        except Exception as error:
            known = of_start(error, namespace)
            if known is None:
                raise
            raise known from error


def _refuse_public_bucket(namespace: str) -> None:
    """The client puts the script into a bucket of a fixed name; if that one is public already, so would be the data."""
    from huggingface_hub import constants

    bucket = f"{namespace}/{constants.HF_JOBS_ARTIFACTS_BUCKET_NAME}"
    try:
        info = ask(bucket, _api().bucket_info, bucket)
    except HubError as error:
        if error.status == 404:
            return
        raise
    if not info.private:
        fix = f"make it private at {constants.ENDPOINT}/buckets/{bucket}, then run this step again"
        raise CheckFailed("the bucket that would carry the job's script and data is public", where=bucket, fix=fix)


@contextlib.contextmanager
def quiet() -> Any:
    """The client prints where the script went and shows a bar; neither belongs into a notebook's output."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is experimental.*")
            yield
    finally:
        if not quiet:
            enable_progress_bars()


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="mac-lora-helpers")
