"""Starting the written job through the Hub's own client; following and stopping it is ``hf jobs``."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.hub.errors import SENTENCES, HubError, call
from mac_lora_helpers.export.hub.files import digest_of
from mac_lora_helpers.export.hub.plan import check_access
from mac_lora_helpers.export.job.write import INPUTS, SCRIPT, follow, read_record, update_record

#: What a status means where a job is started, beside the Hub's own table.
_STARTING = SENTENCES | {
    402: ("The account {namespace} cannot pay for this job.", "add credits in the Hub's billing settings, or choose a cheaper job_flavor")
}


def submit_job(run: RunDir, config: Config) -> list[tuple[str, str]]:
    """Starts the job of ``export/job/`` and keeps its id in ``job.json``; with ``submit_job`` off nothing is sent.

    A script that was submitted before is not submitted again: write the job anew with another parameter, or use its command.

    Returns:
        (what, value) for a table.

    Raises:
        MissingArtifact: no job was written. CheckFailed: the script was changed, or was submitted before; the login may not write where the
            result goes; the bucket for scripts is public. HubError: the Hub refused; the message says what to do.
    """
    if not config.submit_job and not run.has("job"):
        return [("submitted", "no: no job was written")]
    record = read_record(run)
    if not config.submit_job:
        return [("submitted", "no: submit_job is off"), ("to start it", f"submit_job = True, or: {' '.join(record['command'])}")]
    script = run.path("job") / SCRIPT
    if not script.is_file() or digest_of(script)[1] != record["script"]["sha256"]:
        raise CheckFailed(f"{SCRIPT} is not the script that was written", where=str(script), fix="write the job again: notebook 05")
    job = record.get("job") or {}
    if job.get("script_sha256") == record["script"]["sha256"]:
        words = {what: " ".join(words) for what, words in follow(job).items()}
        fix = f"look at it: {words['its state']}; to run it once more use the command in command.txt"
        raise CheckFailed("this job was submitted before, and a job costs money", where=f"{job['namespace']}/{job['id']}", fix=fix)
    place = check_access(config.model_copy(update={"repo_id": record["repo_id"], "private": record["private"], "push": True}))
    namespace = place.repo_id.split("/")[0]
    _refuse_public_bucket(namespace)
    info = call(namespace, _start, run, record, namespace, waits=(), sentences=_STARTING)  # a start is never tried twice
    kept = {name: record[name] for name in ("fingerprint", "parameters", "at_home")}
    job = {"id": info.id, "namespace": info.owner.name, "url": info.url, "repo_id": place.repo_id, **kept}
    job |= {"submitted_at": datetime.now(UTC).isoformat(timespec="seconds"), "script_sha256": record["script"]["sha256"]}
    update_record(run, submitted=True, job=job)
    rows = [("job", f"{job['namespace']}/{job['id']}"), ("page", job["url"]), ("result goes to", place.repo_id)]
    return [
        *rows,
        *((what, " ".join(words)) for what, words in follow(job).items()),
        ("fetch the result", f"mac-lora job fetch --run-dir {run.root}"),
    ]


def _start(run: RunDir, record: Mapping[str, Any], namespace: str) -> Any:
    """Uploads the script into the account's private bucket and starts the job."""
    from huggingface_hub import HfApi, get_token

    folder = run.path("job")
    with quiet():
        return HfApi(library_name="mac-lora-helpers").run_uv_job(
            str(folder / SCRIPT),
            script_args=[str(folder / INPUTS)] if record["inputs"] else [],
            flavor=record["flavor"],
            timeout=record["timeout"],
            secrets={"HF_TOKEN": get_token()},
            labels={"name": f"mac-lora-{record['script']['sha256'][:8]}"},
            namespace=namespace,
        )


def _refuse_public_bucket(namespace: str) -> None:
    """The client puts the script into a bucket of a fixed name; if that one is public already, so would be the data."""
    from huggingface_hub import HfApi, constants

    bucket = f"{namespace}/{constants.HF_JOBS_ARTIFACTS_BUCKET_NAME}"
    try:
        info = call(bucket, HfApi().bucket_info, bucket)
    except HubError as error:
        if error.status == 404:
            return
        raise
    if not info.private:
        fix = f"make it private at {constants.ENDPOINT}/buckets/{bucket}, then run this step again"
        raise CheckFailed("the bucket that would carry the job's script and data is public", where=bucket, fix=fix)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The client prints where the script went and shows a bar; neither belongs into a notebook's output."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is experimental.*")
            yield
    finally:
        if shown:
            enable_progress_bars()
