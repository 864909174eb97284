"""The push itself: into a private repository, in one commit, checked afterwards; or the record of a dry run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.hub.errors import HubError, call
from mac_lora_helpers.export.hub.plan import PushPlan

#: Called with (files done, files in all, path) after every file.
Progress = Callable[[int, int, str], None]
_SHOWN = 10


def push(plan: PushPlan, run: RunDir, on_progress: Progress | None = None) -> dict[str, Any]:
    """Carries the plan out and writes ``export/push.json``.

    A repository is made private, gets everything in one commit, and is made public last, if asked. An interrupted
    push can be run again: files that arrived are not sent a second time.

    Returns:
        The content of ``push.json``: ``repo_id private dry_run files url who commit sent notes``.

    Raises:
        CheckFailed: the plan has problems (a secret, a file outside the run directory, …), a file changed since the plan,
            or the Hub does not hold the planned bytes afterwards.
        HubError: the Hub refused; the message says what to do.
    """
    _refuse_problems(plan)
    record: dict[str, Any] = {
        "repo_id": plan.repo_id,
        "private": plan.private,
        "dry_run": plan.dry_run,
        "files": plan.files,
        "url": plan.url,
        "who": plan.who,
        "commit": None,
        "sent": [],
        "notes": plan.notes,
    }
    if not plan.dry_run:
        record.update(_send(plan, on_progress))
    run.write_json("push", record)
    return record


def _refuse_problems(plan: PushPlan) -> None:
    if plan.problems:
        more = len(plan.problems) - _SHOWN
        listed = "\n    ".join([*plan.problems[:_SHOWN], *([f"… and {more} more"] if more > 0 else [])])
        raise CheckFailed(
            "Nothing is sent: the plan has problems.",
            where=f"\n    {listed}",
            fix="remove or correct each of them, then make the plan again; a token that lay in a file should be revoked, not only deleted",
        )
    changed = [upload.path for upload in plan.uploads if not upload.unchanged()]
    if changed:
        raise CheckFailed(
            "Files changed since the plan was made.", where=", ".join(changed[:_SHOWN]), fix="make the plan again, look at it, then push"
        )


def _send(plan: PushPlan, on_progress: Progress | None) -> dict[str, Any]:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    api, repo, quiet = HfApi(library_name="mac-lora-helpers"), plan.repo_id, are_progress_bars_disabled()
    disable_progress_bars()
    try:
        before = _remote(api, repo) if plan.exists else {}
        call(repo, api.create_repo, repo, private=True, exist_ok=True)
        _refuse_public(api, plan)
        commit = _commit(api, plan, on_progress)
        _check(api, plan)
        if not plan.private:
            call(repo, api.update_repo_settings, repo, private=False)
    finally:
        if not quiet:
            enable_progress_bars()
    sent = [upload.path for upload in plan.uploads if before.get(upload.path) != _remote_id(upload, before.get(upload.path))]
    return {"commit": commit, "sent": sent}


def _refuse_public(api: Any, plan: PushPlan) -> None:
    """Between plan and push somebody may have made the repository public."""
    if plan.private and not call(plan.repo_id, api.model_info, plan.repo_id).private:
        raise CheckFailed(
            f"{plan.repo_id} is public, and private = True was asked for.", where=plan.url, fix="choose another repo_id, or private = False"
        )


def _commit(api: Any, plan: PushPlan, on_progress: Progress | None) -> str:
    """Uploads file by file, then commits all of them at once; what the Hub already has is not sent."""
    from huggingface_hub import CommitOperationAdd

    operations = []
    for number, upload in enumerate(plan.uploads, 1):
        operation = CommitOperationAdd(upload.path, upload.content if upload.content is not None else str(upload.file))
        call(plan.repo_id, api.preupload_lfs_files, plan.repo_id, [operation], free_memory=False, waits=())
        operations.append(operation)
        if on_progress is not None:
            on_progress(number, len(plan.uploads), upload.path)
    return call(plan.repo_id, api.create_commit, plan.repo_id, operations, commit_message="Upload with mac-lora-helpers").oid


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


def _check(api: Any, plan: PushPlan) -> None:
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
