"""What can go wrong with a job, in the user's terms: the sentences of the jobs endpoint and of its bucket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mac_lora_helpers.errors import UserError
from mac_lora_helpers.export.hub import errors
from mac_lora_helpers.export.hub.errors import HubError
from mac_lora_helpers.files import portable

T = TypeVar("T")

_SAFE = "Then run this step again: a job that was started is found, and none is started twice."
#: As ``hub.errors.SENTENCES``, of jobs. ``{repo}`` is the job or, before it has an id, its namespace.
SENTENCES: dict[int, tuple[str, str]] = {
    **errors.SENTENCES,
    400: (
        "The Hub does not accept this job: {said}",
        "correct what it names (`hf jobs hardware` lists the flavors), then run this step again",
    ),
    402: (
        "The account {namespace} cannot pay for this job.",
        "add credits or a payment method at https://huggingface.co/settings/billing, or choose a cheaper job_flavor",
    ),
    403: (
        "This login may not run jobs for {namespace}.",
        "use a token that may write and run jobs there (a fine-grained one needs both rights), or a repo_id under your own name",
    ),
    404: (
        "The Hub knows no job or account {repo}, or this login may not see it.",
        "look at `hf jobs ps --all`, and check repo_id for typing errors; jobs are kept for a limited time",
    ),
    409: ("The Hub is busy with another change to {repo}.", "wait a minute, then run this step again"),
    413: (
        "The job's script or its files are larger than the Hub accepts.",
        "put model and data on the Hub (private is fine) and name them by their ids",
    ),
    429: ("The Hub has had too many requests from this login or address.", "wait {wait}. " + _SAFE),
    500: ("The Hub has trouble of its own (status {status}).", "look at https://status.huggingface.co and try again later. " + _SAFE),
    507: (
        "The storage of {namespace} on the Hub is full: the job's script cannot be kept there.",
        "delete what is no longer needed in the bucket jobs-artifacts or elsewhere; see https://huggingface.co/settings/billing",
    ),
    0: ("The Hub cannot be reached.", "check the connection (and a proxy or HF_ENDPOINT, if one is set). " + _SAFE),
}


def ask(about: str, function: Callable[..., T], *arguments: Any, waits: tuple[float, ...] | None = None, **options: Any) -> T:
    """Calls the Hub about a job; as :func:`hub.errors.call`, with a job's sentences.

    Raises:
        HubError: the Hub refused or cannot be reached; the message says what to do.
    """
    return errors.call(about, function, *arguments, waits=waits, sentences=SENTENCES, **options)


def of_start(error: Exception, about: str) -> UserError | None:
    """A failed start in the user's terms; None for what is no refusal of the Hub's."""
    known = errors.translate(error, about, SENTENCES)
    if known is None and isinstance(error, (RuntimeError, OSError)):
        # The bucket's uploader raises Python's own errors; what the Hub answered is only in their text.
        said = portable(" ".join(str(error).split())[:200])
        return HubError("The job's script could not be uploaded.", where=f"{about}: {said}", fix=f"nothing was started. {_SAFE}")
    return known


def of_log(error: Exception, about: str) -> UserError | None:
    """A log that broke off in the user's terms; None for what is no refusal of the Hub's."""
    return errors.translate(error, about, SENTENCES)
