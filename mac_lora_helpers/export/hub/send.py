"""The push itself for where there is no notebook, and what follows it everywhere: the comparison and the record."""

from __future__ import annotations

from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.hub.errors import HubError, call, refusals
from mac_lora_helpers.export.hub.plan import PushPlan, differing, remote_digests


def push(plan: PushPlan, run: RunDir) -> dict[str, Any]:
    """What notebook 05's push cell does: a private repository, everything in one commit, then :func:`finish_push`.

    Raises:
        CheckFailed: the plan has problems, or a file changed since. HubError: the Hub refused; the message says what to do.
    """
    from huggingface_hub import HfApi

    plan.require_ready()
    if not plan.dry_run:
        api = HfApi(library_name="mac-lora-helpers")
        with refusals(plan.repo_id):
            api.create_repo(plan.repo_id, private=True, exist_ok=True)
            api.create_commit(plan.repo_id, plan.operations(api), commit_message="Upload with mac-lora-helpers")
    return finish_push(plan, run)


def finish_push(plan: PushPlan, run: RunDir) -> dict[str, Any]:
    """Reads back what the Hub holds, opens the repository if that was asked, and writes ``export/push.json``.

    An interrupted push can be run again: files that arrived are not sent a second time.

    Returns:
        The content of ``push.json``: ``repo_id private dry_run files url who commit sent notes``.

    Raises:
        CheckFailed: the plan has problems, or the Hub does not hold the planned bytes. HubError: the Hub refused.
    """
    plan.require_ready()
    commit = None if plan.dry_run else _checked_commit(plan)
    record = {
        "repo_id": plan.repo_id,
        "private": plan.private,
        "dry_run": plan.dry_run,
        "files": plan.files,
        "url": plan.url,
        "who": plan.who,
        "commit": commit,
        "sent": [] if plan.dry_run else differing(plan, plan.before),
        "notes": plan.notes,
    }
    run.write_json("push", record)
    return record


def _checked_commit(plan: PushPlan) -> str:
    """The commit that holds the plan's bytes, each digest compared; only then is a repository made public."""
    from huggingface_hub import HfApi

    api, repo = HfApi(library_name="mac-lora-helpers"), plan.repo_id
    try:
        wrong = differing(plan, remote_digests(repo))
        commit = call(repo, api.model_info, repo).sha
    except HubError as error:
        fix = "look at the repository in the browser; run this step again to check it"
        raise CheckFailed(f"The files were sent, but could not be checked: {error.what}", where=plan.url, fix=fix) from error
    if wrong:
        fix = "run this step again; if it stays so, delete the repository"
        raise CheckFailed("The Hub does not hold the planned bytes.", where=", ".join(wrong), fix=fix)
    if not plan.private:
        call(repo, api.update_repo_settings, repo, private=False)
    return commit
