"""The plan of a push: who, where, which files. Made before anything is sent; without a login or a network too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.export.card.write import NOBODY, kinds_of, repo_name, require_one_adapter, write_card
from mac_lora_helpers.export.hub.errors import HubError, call, no_login, within
from mac_lora_helpers.export.hub.files import Upload, collect

#: Seconds that a question to the Hub may take; problems that a message lists.
PATIENCE, SHOWN = 20.0, 10
_MAY_WRITE = ("admin", "write", "contributor")
#: Path in a repository → (kind of digest, digest).
Digests = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Account:
    """Whose token this is. ``orgs``: organisation → role there. ``token``: whoami's record of the token."""

    name: str
    orgs: dict[str, str]
    token: Mapping[str, Any]

    @classmethod
    def of(cls, whoami: Mapping[str, Any]) -> Account:
        """From the Hub's answer."""
        orgs = {org["name"]: org.get("roleInOrg", "") for org in whoami.get("orgs", [])}
        return cls(whoami["name"], orgs, whoami.get("auth", {}).get("accessToken", {}))

    def may_write(self, repo_id: str) -> bool | None:
        """Whether the token may write to a repository; None where whoami does not tell."""
        namespace, role = repo_id.split("/")[0], self.token.get("role")
        if role == "read" or (namespace != self.name and namespace not in self.orgs):
            return False
        if role == "fineGrained":
            scopes = self.token.get("fineGrained", {}).get("scoped", [])
            named = [scope for scope in scopes if scope.get("entity", {}).get("name") in (namespace, repo_id)]
            return any("repo.write" in scope.get("permissions", []) for scope in named)
        if namespace == self.name:
            return True if role == "write" else None
        return self.orgs[namespace] in _MAY_WRITE if self.orgs[namespace] else None


@dataclass
class PushPlan:
    """What a push would do.

    Attributes:
        repo_id: user/name; the name alone while nobody is logged in.
        private: visibility of the repository after the push.
        dry_run: nothing will be sent.
        who: the login's name; None if there is none or the Hub could not be asked. logged_in: whether there is a token.
        exists: whether the repository is there; None: not known. before: what it holds then.
        uploads: what would be sent. left_out: (path, reason).
        problems: each of them stops the push. notes: worth knowing.
        url: where it will be; empty while the user is not known.
    """

    repo_id: str
    private: bool
    dry_run: bool
    who: str | None = None
    logged_in: bool = False
    exists: bool | None = None
    before: Digests = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def files(self) -> list[dict[str, Any]]:
        """``path``, ``bytes`` and ``sha256`` of every file."""
        return [{"path": upload.path, "bytes": upload.bytes, "sha256": upload.sha256} for upload in self.uploads]

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        state = {True: "exists", False: "will be made", None: "not looked up"}[self.exists]
        return [
            ("mode", "dry run: nothing is sent" if self.dry_run else "push"),
            ("you", self.who or ("not known: the Hub was not asked" if self.logged_in else "no login found (`hf auth login`)")),
            ("repository", f"{self.repo_id} ({state})"),
            ("visibility", "private" if self.private else "public"),
            ("files", f"{len(self.uploads)} files, {sum(upload.bytes for upload in self.uploads):,} bytes"),
            *[("left out", f"{path}: {reason}") for path, reason in self.left_out],
            *[("note", note) for note in self.notes],
            *[("problem", problem) for problem in self.problems],
        ]

    def require_ready(self) -> None:
        """Looked at once more before anything is sent.

        Raises:
            CheckFailed: the plan has problems (a secret, a file outside the run directory, …), or a file changed since.
        """
        if self.problems:
            more = len(self.problems) - SHOWN
            listed = "\n    ".join([*self.problems[:SHOWN], *([f"… and {more} more"] if more > 0 else [])])
            fix = "remove or correct each of them, then make the plan again; a token that lay in a file should be revoked, not only deleted"
            raise CheckFailed("Nothing is sent: the plan has problems.", where=f"\n    {listed}", fix=fix)
        changed = [upload.path for upload in self.uploads if not upload.unchanged()]
        if changed:
            fix = "make the plan again, look at it, then push"
            raise CheckFailed("Files changed since the plan was made.", where=", ".join(changed[:SHOWN]), fix=fix)

    def operations(self, api: Any) -> list[Any]:
        """What ``create_commit`` takes: every file of the plan, the repository's visibility looked at first.

        Raises:
            CheckFailed: the repository is public, and a private push was asked for (somebody may have opened it meanwhile).
        """
        from huggingface_hub import CommitOperationAdd

        if self.private and not api.model_info(self.repo_id).private:
            fix = "choose another repo_id, or private = False"
            raise CheckFailed(f"{self.repo_id} is public, and private = True was asked for.", where=self.url, fix=fix)
        return [CommitOperationAdd(upload.path, str(upload.file) if upload.content is None else upload.content) for upload in self.uploads]


def plan_push(run: RunDir, config: Config) -> PushPlan:
    """Collects and checks what a push would send, and asks the Hub who is asking and whether they may.

    A dry run needs neither login nor network: what could not be found out is a note. A push needs both.

    Raises:
        MissingArtifact: something to be sent was not made yet. InputError: ``repo_id`` or ``push_artifacts`` cannot be.
        HubError: a real push, and the Hub refuses or cannot be reached.
    """
    kinds, name = kinds_of(config), repo_name(config)
    if config.push and not config.repo_id.strip():
        raise InputError("a push needs a name for the repository", where="parameter repo_id", fix=f"for example repo_id = {name!r}")
    plan = _placed(PushPlan(_checked(name), config.private, dry_run=not config.push))
    adapter = require_one_adapter(run, config)
    if not run.has("card"):
        write_card(run, config)
    _name_in_card(run, plan)
    listing = collect(run, adapter, kinds)
    plan.uploads, plan.left_out = listing.uploads, listing.left_out
    plan.problems += listing.problems
    return plan


def check_access(config: Config) -> PushPlan:
    """A plan without files: who is asking, and whether they may write there. For a job, before it spends its hours.

    Raises:
        HubError: no login, or the Hub refuses. CheckFailed: the login may not write there, or the repository is public.
    """
    plan = _placed(PushPlan(_checked(repo_name(config)), config.private, dry_run=False))
    if plan.problems:
        fix = "choose another repo_id, or log in with a token that may write there"
        raise CheckFailed("; ".join(plan.problems), where=plan.url, fix=fix)
    return plan


def _checked(name: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        fix = "use name or user/name with letters, digits, - _ ."
        raise InputError(f"repo_id cannot be {name!r}: {error}", where="parameter repo_id", fix=fix) from None
    return name


def _account(plan: PushPlan) -> Account | None:
    """Whose login this is. In a dry run a failure is a note, else it is raised."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        if not plan.dry_run:
            raise no_login()
        plan.notes.append("No Hub login was found: a push would need `hf auth login`. The plan was made without asking the Hub.")
        return None
    plan.logged_in = True
    waits = () if plan.dry_run else None
    try:
        return Account.of(within(PATIENCE, lambda: call(plan.repo_id, HfApi().whoami, waits=waits), plan.repo_id))
    except HubError as error:
        if not plan.dry_run:
            raise
        plan.notes.append(f"The Hub was not asked: {error.what} To do: {error.fix}")
        return None


def _placed(plan: PushPlan) -> PushPlan:
    """Fills in the user's name, whether they may write there, and what is there already."""
    from huggingface_hub import constants

    account = _account(plan)
    if account is None:
        return plan
    plan.who = account.name
    if "/" not in plan.repo_id:
        plan.repo_id = _checked(f"{account.name}/{plan.repo_id}")
    plan.url = f"{constants.ENDPOINT}/{plan.repo_id}"
    allowed = account.may_write(plan.repo_id)
    if allowed is False:
        plan.problems.append(f"{plan.repo_id}: the login {account.name} may not write there, or its token is for reading only")
    elif allowed is None:
        plan.notes.append("Whether this token may write is not known before the push.")
    _look_up(plan)
    return plan


def _look_up(plan: PushPlan) -> None:
    from huggingface_hub import HfApi

    try:
        info = within(PATIENCE, lambda: call(plan.repo_id, HfApi().model_info, plan.repo_id, timeout=PATIENCE), plan.repo_id)
        plan.before = within(PATIENCE, lambda: remote_digests(plan.repo_id), plan.repo_id)
    except HubError as error:
        if error.status == 404:
            plan.exists = False
        elif plan.dry_run:
            plan.notes.append(f"Whether the repository exists was not found out: {error.what}")
        else:
            raise
        return
    plan.exists = True
    if not info.private and plan.private:
        fix = "set private = False if everybody may see this, or choose another repo_id"
        plan.problems.append(f"{plan.repo_id} exists and is public; {fix}")
    elif info.private and not plan.private:
        plan.notes.append("The repository is private and will be made public, because private = False.")


def remote_digests(repo: str) -> Digests:
    """What a repository holds, by path: ``("sha256", …)`` for a file in LFS, ``("git", …)`` for any other."""
    from huggingface_hub import HfApi

    items = call(repo, lambda: list(HfApi().list_repo_tree(repo, recursive=True)))
    return {item.path: ("sha256", item.lfs.sha256) if item.lfs else ("git", item.blob_id) for item in items if hasattr(item, "size")}


def differing(plan: PushPlan, remote: Digests) -> list[str]:
    """Paths of the plan that a repository does not hold, or holds otherwise."""
    local = {"sha256": lambda upload: upload.sha256, "git": Upload.git_digest}
    here = {upload.path: upload for upload in plan.uploads}
    return [path for path, upload in here.items() if path not in remote or local[remote[path][0]](upload) != remote[path][1]]


def _name_in_card(run: RunDir, plan: PushPlan) -> None:
    """Puts the repository's full name into the card, which was written before the user was known."""
    if "/" not in plan.repo_id:
        return
    text = run.need("card").read_text(encoding="utf-8")
    name = plan.repo_id.split("/")[-1]
    if f"{NOBODY}/{name}" in text:
        run.write_text("card", text.replace(f"{NOBODY}/{name}", plan.repo_id))
