"""The push itself: into a private repository, in one commit, checked afterwards; or the record of a dry run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.hub.errors import HubError, call, translate
from mac_lora_helpers.export.hub.plan import PushPlan

_SHOWN = 10
_MESSAGE = "Upload with mac-lora-helpers"


def push(plan: PushPlan, run: RunDir) -> dict[str, Any]:
    """Carries the plan out as notebook 05's cell does, sits through passing failures, and writes ``export/push.json``.

    An interrupted push can be run again: files that arrived are not sent a second time.

    Raises:
        CheckFailed: the plan has problems, a file changed since, or the Hub does not hold the planned bytes afterwards.
        HubError: the Hub refused; the message says what to do.
    """
    from huggingface_hub import HfApi

    plan.require_sound()
    if not plan.dry_run:
        call(plan.repo_id, HfApi().create_repo, plan.repo_id, private=True, exist_ok=True)
        with sending(plan) as folder:
            call(plan.repo_id, HfApi().upload_folder, repo_id=plan.repo_id, folder_path=folder, commit_message=_MESSAGE)
    return record_push(plan, run)


@contextmanager
def hub_errors(plan: PushPlan) -> Iterator[None]:
    """Inside, the Hub's refusals are said in the user's terms.

    Raises:
        HubError: the Hub refused; the message says what to do.
    """
    try:
        yield
    except Exception as error:
        known = translate(error, plan.repo_id)
        if known is None or known is error:
            raise
        raise known from error


@contextmanager
def sending(plan: PushPlan) -> Iterator[Path]:
    """A folder with exactly what was planned, to be uploaded inside; afterwards what the Hub holds is compared.

    The repository is made public last, if asked for.

    Raises:
        CheckFailed: the repository became public meanwhile, or the Hub does not hold the planned bytes.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    api, quiet = HfApi(), are_progress_bars_disabled()
    _refuse_public(api, plan)
    before = _remote(api, plan.repo_id)
    disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(prefix="push-") as place:
            _lay_out(plan, Path(place))
            yield Path(place)
    finally:
        if not quiet:
            enable_progress_bars()
    after = _check(api, plan)
    if not plan.private:
        call(plan.repo_id, api.update_repo_settings, plan.repo_id, private=False)
    plan.commit = call(plan.repo_id, api.model_info, plan.repo_id).sha
    plan.sent = [upload.path for upload in plan.uploads if before.get(upload.path) != after[upload.path]]


def record_push(plan: PushPlan, run: RunDir) -> dict[str, Any]:
    """Writes ``export/push.json``: ``repo_id private dry_run files url who commit sent notes``."""
    names = ("repo_id", "private", "dry_run", "files", "url", "who", "commit", "sent", "notes")
    record = {name: getattr(plan, name) for name in names}
    run.write_json("push", record)
    return record


def _lay_out(plan: PushPlan, folder: Path) -> None:
    """Links to the planned files (which the upload follows), and the bytes of those that are sent otherwise than they lie here."""
    for upload in plan.uploads:
        target = folder / upload.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if upload.content is not None:
            target.write_bytes(upload.content)
            continue
        try:
            os.symlink(upload.file, target)
        except OSError:
            shutil.copyfile(upload.file, target)


def _refuse_public(api: Any, plan: PushPlan) -> None:
    """Between plan and push somebody may have made the repository public."""
    if plan.private and not call(plan.repo_id, api.model_info, plan.repo_id).private:
        raise CheckFailed(
            f"{plan.repo_id} is public, and private = True was asked for.", where=plan.url, fix="choose another repo_id, or private = False"
        )


def _remote(api: Any, repo: str) -> dict[str, tuple[str, str]]:
    """Path → (kind of digest, digest) of what the repository holds."""
    found = {}
    for item in call(repo, lambda: list(api.list_repo_tree(repo, recursive=True))):
        if hasattr(item, "size"):
            found[item.path] = ("sha256", item.lfs.sha256) if item.lfs else ("git", item.blob_id)
    return found


def _remote_id(upload: Any, remote: tuple[str, str] | None) -> tuple[str, str] | None:
    """The local file's digest in the remote one's kind."""
    from huggingface_hub.utils.sha import git_hash

    if remote is None:
        return ("", "")
    if remote[0] == "sha256":
        return ("sha256", upload.sha256)
    return ("git", git_hash(upload.content if upload.content is not None else upload.file.read_bytes()))


def _check(api: Any, plan: PushPlan) -> dict[str, tuple[str, str]]:
    """Reads back what the Hub holds and compares every digest.

    Raises:
        CheckFailed: a file is missing or differs.
    """
    try:
        remote = _remote(api, plan.repo_id)
    except HubError as error:
        fix = "look at the repository in the browser; run this step again to check it"
        raise CheckFailed(f"The files were sent, but could not be checked: {error.what}", where=plan.url, fix=fix) from error
    wrong = [upload.path for upload in plan.uploads if remote.get(upload.path) != _remote_id(upload, remote.get(upload.path))]
    if wrong:
        raise CheckFailed(
            "The Hub does not hold the planned bytes.",
            where=", ".join(wrong),
            fix="run this step again; if it stays so, delete the repository",
        )
    return remote
