"""Watching a job: its stage while it waits, then its log line by line. Breaking off leaves the job running."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.export.job.errors import ask, of_log
from mac_lora_helpers.export.job.submit import UNASKED, JobState, _api, job_status, submitted
from mac_lora_helpers.files import portable

#: Seconds between two questions about a job that waits for its machine.
PAUSE = 2.0


def job_logs(run: RunDir, follow: bool = False) -> Iterator[str]:
    """The job's log, line by line; with ``follow`` until the job ends. Home directory and tokens are taken out.

    Raises:
        MissingArtifact: no job was submitted. HubError: the Hub refused or cannot be reached.
    """
    _, job = submitted(run)
    about = f"{job['namespace']}/{job['id']}"
    lines = iter(_api().fetch_job_logs(job_id=job["id"], namespace=job["namespace"], follow=follow))
    while True:
        try:
            yield portable(next(lines))
        except StopIteration:
            return
        except Exception as error:
            known = of_log(error, about)
            if known is None:
                raise
            raise known from error


def follow_job(run: RunDir, state: JobState, show: Callable[[str], None] = print) -> JobState:
    """Shows what the job does until it ends; returns its state then. Without a submitted job nothing happens.

    Ctrl-C (the notebook's stop button) stops the watching only: the job runs on, and how to go on is said.

    Raises:
        HubError: the Hub refused or cannot be reached.
    """
    if not state.submitted or state.stage == UNASKED:
        return state
    try:
        state = _wait_for_start(run, show)
        for line in job_logs(run, follow=True):
            show(line)
        return _wait_for_end(run)
    except KeyboardInterrupt:
        folder = portable(str(run.root))
        show(f"The job {state.namespace}/{state.id} runs on. Watch it again: mac-lora job logs --follow --run-dir {folder}")
        show(f"Stop it: mac-lora job cancel --run-dir {folder}")
        return dataclasses.replace(state, interrupted=True)


def _wait_for_start(run: RunDir, show: Callable[[str], None]) -> JobState:
    """Until the job has a machine; a new word of the Hub's is shown once."""
    shown = ""
    while (state := job_status(run)).stage == "SCHEDULING":
        said = f"waiting for a machine{f': {state.message}' if state.message else ''}"
        if said != shown:
            show(said)
            shown = said
        time.sleep(PAUSE)
    return state


def _wait_for_end(run: RunDir) -> JobState:
    """The log may end a little before the job does."""
    about = "/".join(submitted(run)[1][name] for name in ("namespace", "id"))
    while not (state := ask(about, job_status, run)).ended:
        time.sleep(PAUSE)
    return state
