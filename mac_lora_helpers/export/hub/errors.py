"""The Hub's refusals in the user's terms, and the few that are worth another try."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from mac_lora_helpers.errors import InputError, UserError

T = TypeVar("T")
#: HTTP status (0: no answer) → what happened, what to do.
Sentences = dict[int, tuple[str, str]]

#: Seconds between tries of a call that failed for a reason that passes.
WAITS = (1.0, 3.0)
#: A wait that the Hub asks for and that is still sensible to sit through.
LONGEST_WAIT = 60.0
#: Answers that pass by themselves: too many requests, and the Hub's own failures.
PASSING = {408, 429, 500, 502, 503, 504}
_FULL = re.compile(r"quota|storage limit|storage.{0,20}exceeded|limit.{0,20}storage|upgrade your plan", re.I)
_KEPT = "What was already uploaded is kept: run this step again and it goes on from there. Nothing is published before the last step."


class HubError(UserError):
    """The Hub, or the way to it, refused. ``status`` is the HTTP status; 0 if there was no answer."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", status: int = 0) -> None:
        super().__init__(what, where=where, fix=fix)
        self.status = status


#: HTTP status → (what happened, what to do). ``{repo}``, ``{namespace}`` and ``{said}`` are filled in.
SENTENCES: Sentences = {
    400: ("The Hub does not accept the content: {said}", "correct what it names, then run this step again"),
    401: (
        "The Hub does not accept this login.",
        "run `hf auth login` with a token from https://huggingface.co/settings/tokens; a HF_TOKEN in the environment counts before it",
    ),
    403: (
        "This login may not write to {repo}.",
        "use a token with the role write (or a fine-grained one with write access to {namespace}), or choose a repo_id under your own name",
    ),
    404: (
        "{repo} is not on the Hub, or this login may not see it.",
        "check repo_id for typing errors, and that the repository was not deleted or renamed meanwhile",
    ),
    409: ("The Hub is busy with another change to {repo}.", "wait a minute, then run this step again. " + _KEPT),
    412: ("{repo} was changed by somebody else during this push.", "look at what changed, then run this step again. " + _KEPT),
    413: (
        "A file is larger than the Hub accepts.",
        "send less: push_artifacts = adapter, or a smaller GGUF type; see https://huggingface.co/docs/hub/storage-limits",
    ),
    429: ("The Hub has had too many requests from this login or address.", "wait {wait}, then run this step again. " + _KEPT),
    500: ("The Hub has trouble of its own (status {status}).", "look at https://status.huggingface.co and try again later. " + _KEPT),
    507: (
        "The storage of {namespace} on the Hub is full.",
        "delete what is no longer needed, send less (push_artifacts = adapter), or enlarge the plan; "
        "see https://huggingface.co/settings/billing",
    ),
    0: (
        "The Hub cannot be reached.",
        "check the connection (and a proxy or HF_ENDPOINT, if one is set), then run this step again. " + _KEPT,
    ),
}


def call(
    repo: str,
    function: Callable[..., T],
    *arguments: Any,
    waits: tuple[float, ...] | None = None,
    sentences: Sentences = SENTENCES,
    **options: Any,
) -> T:
    """Calls the Hub; tries again after a passing failure, and raises every other one as a :class:`HubError`.

    Args:
        repo: what the call is about, for the message. waits: seconds between tries. sentences: what each status means.
    """
    for wait in [*(WAITS if waits is None else waits), None]:
        try:
            return function(*arguments, **options)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            known = translate(error, repo, sentences)
            if known is None:
                raise
            pause = _pause(error, known, wait)
            if pause is None:
                raise known from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def within(seconds: float, function: Callable[[], T], repo: str) -> T:
    """Calls the Hub but waits no longer than ``seconds``: a dead network must not hang a notebook.

    Raises:
        HubError: no answer in time, or the Hub's own refusal.
    """
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            box["value"] = function()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _sentence(0, repo, f"no answer within {seconds:g} s")
    if "error" in box:
        raise box["error"]
    return box["value"]


def translate(error: BaseException, repo: str, sentences: Sentences = SENTENCES) -> UserError | None:
    """The error in the user's terms; None for what is no refusal of the Hub's (a bug, then)."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    for link in _chain(error):
        if isinstance(link, UserError):
            return link
        if isinstance(link, HFValidationError):
            return InputError(f"repo_id cannot be {repo!r}: {link}", where="parameter repo_id", fix="use name or user/name")
        if isinstance(link, LocalTokenNotFoundError):
            return no_login()
        if isinstance(link, OfflineModeIsEnabled):
            return HubError("The Hub is switched off by HF_HUB_OFFLINE.", where=repo, fix="unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE)")
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return _refusal(link, repo, sentences)
        if isinstance(link, httpx2.TransportError):
            return _sentence(0, repo, _no_way(link), sentences=sentences)
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return _sentence(400, repo, str(error))
    return None


def _no_way(error: BaseException) -> str:
    """What stands in the way to the Hub: the error's kind, and its text where a certificate is refused."""
    text = str(error)
    return f"{type(error).__name__}: {text[:200]}" if "certificate" in text.lower() else type(error).__name__


def no_login() -> HubError:
    """There is no token on this machine."""
    return HubError(
        "No Hub login was found on this machine.",
        where="neither HF_TOKEN nor a saved login",
        fix="run `hf auth login` in a terminal with a token that may write (https://huggingface.co/settings/tokens)",
        status=401,
    )


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _refusal(error: Any, repo: str, sentences: Sentences) -> HubError:
    status, said = error.response.status_code, _said(error)
    full = status == 507 or (status == 402 and 402 not in sentences) or (status in (400, 403, 413) and _FULL.search(said))
    kind = 507 if full else 400 if status == 422 else min(status, 500)
    return _sentence(kind, repo, said, status, _asked_wait(error), sentences)


def _sentence(
    kind: int, repo: str, said: str, status: int | None = None, wait: float | None = None, sentences: Sentences = SENTENCES
) -> HubError:
    what, fix = sentences.get(
        kind, ("The Hub refused with status {status}: {said}", "run this step again, or look at https://status.huggingface.co")
    )
    values = {
        "repo": repo,
        "namespace": repo.split("/")[0],
        "said": said,
        "status": status,
        "wait": f"{wait:.0f} seconds" if wait else "a few minutes",
    }
    where = repo if kind in (400, 403) or not said else f"{repo} ({'the Hub said: ' if kind else ''}{said})"
    return HubError(what.format(**values), where=where, fix=fix.format(**values), status=kind if status is None else status)


def _said(error: Any) -> str:
    """The Hub's own words: one line, cut, and never a token."""
    from mac_lora_helpers.files import portable

    text = error.response.headers.get("X-Error-Message") or error.server_message or ""
    return portable(" ".join(text.split())[:200])


def _asked_wait(error: Any) -> float | None:
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _pause(error: BaseException, known: UserError, wait: float | None) -> float | None:
    """Seconds to wait before another try; None: there is no sense in one."""
    if wait is None or not isinstance(known, HubError) or not (known.status == 0 or known.status in PASSING):
        return None
    if "HF_HUB_OFFLINE" in known.what:
        return None
    asked = next((_asked_wait(link) for link in _chain(error) if getattr(link, "response", None) is not None), None)
    if asked is None:
        return wait
    return asked if asked <= LONGEST_WAIT else None
