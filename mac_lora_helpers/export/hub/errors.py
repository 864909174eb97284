"""The Hub's refusals in the user's terms, in one place, and the few that are worth another try."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.redaction import portable

T = TypeVar("T")
#: HTTP status (0: no answer) → what happened, what to do.
Sentences = dict[int, tuple[str, str]]

_FILE = tomllib.loads(Path(__file__).with_name("refusals.toml").read_text(encoding="utf-8"))
SENTENCES: Sentences = {int(status): (entry["what"], entry["fix"]) for status, entry in _FILE.items()}
_KEPT = "What was already uploaded is kept: run this step again and it goes on from there. Nothing is published before the last step."
#: Seconds between tries of a call that failed for a reason that passes; and a wait that the Hub asks for and that one can sit through.
WAITS, LONGEST_WAIT = (1.0, 3.0), 60.0
#: Answers that pass by themselves: none, too many requests, and the Hub's own failures.
PASSING = {0, 408, 429, 500, 502, 503, 504}
_FULL = re.compile(r"quota|storage limit|storage.{0,20}exceeded|limit.{0,20}storage|upgrade your plan", re.I)


class HubError(UserError):
    """The Hub, or the way to it, refused. ``status`` is the HTTP status; 0 if there was no answer; -1 if it was not asked."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", status: int = -1) -> None:
        super().__init__(what, where=where, fix=fix)
        self.status = status


@contextlib.contextmanager
def refusals(repo: str, sentences: Sentences = SENTENCES) -> Iterator[None]:
    """A context manager for calls of ``HfApi``: what the Hub refuses inside is raised as a :class:`HubError`.

    Args:
        repo: what the calls are about. sentences: what each status means.
    """
    try:
        yield
    except Exception as error:
        known = translate(error, repo, sentences)
        if known is None or known is error:
            raise
        raise known from error


def call(
    repo: str,
    function: Callable[..., T],
    *arguments: Any,
    waits: tuple[float, ...] | None = None,
    sentences: Sentences = SENTENCES,
    **options: Any,
) -> T:
    """Calls the Hub within :func:`refusals`; a failure that passes by itself is tried again after each of ``waits`` seconds."""
    for wait in [*(WAITS if waits is None else waits), None]:
        try:
            with refusals(repo, sentences):
                return function(*arguments, **options)
        except HubError as error:
            asked = next((_asked_wait(link) for link in _chain(error) if getattr(link, "response", None) is not None), None)
            if wait is None or error.status not in PASSING or (asked or 0) > LONGEST_WAIT:
                raise
            time.sleep(wait if asked is None else asked)
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
            text = f": {str(link)[:200]}" if "certificate" in str(link).lower() else ""
            return _sentence(0, repo, type(link).__name__ + text, sentences=sentences)
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return _sentence(400, repo, str(error))
    return None


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
    status = error.response.status_code
    said = portable(" ".join((error.response.headers.get("X-Error-Message") or error.server_message or "").split())[:200])
    full = status == 507 or (status == 402 and 402 not in sentences) or (status in (400, 403, 413) and _FULL.search(said))
    kind = 507 if full else 400 if status == 422 else min(status, 500)
    return _sentence(kind, repo, said, status, _asked_wait(error), sentences)


def _sentence(
    kind: int, repo: str, said: str, status: int | None = None, wait: float | None = None, sentences: Sentences = SENTENCES
) -> HubError:
    otherwise = ("The Hub refused with status {status}: {said}", "run this step again, or look at https://status.huggingface.co")
    what, fix = sentences.get(kind, otherwise)
    asked = f"{wait:.0f} seconds" if wait else "a few minutes"
    values = {"repo": repo, "namespace": repo.split("/")[0], "said": said, "status": status, "wait": asked, "kept": _KEPT}
    where = repo if kind in (400, 403) or not said else f"{repo} ({'the Hub said: ' if kind else ''}{said})"
    return HubError(what.format(**values), where=where, fix=fix.format(**values), status=kind if status is None else status)


def _asked_wait(error: Any) -> float | None:
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None
