"""What the stand-in Hub keeps: users, repositories, LFS objects, and the rules about them."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field

#: Stored as LFS whatever their size, like the Hub's default .gitattributes.
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".npz", ".npy", ".parquet", ".zip", ".pkl", ".onnx")
LARGEST_REGULAR = 10 * 2**20


class Refusal(Exception):
    """The Hub's refusal: a status, its message, and the header that names the kind of error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class User:
    """Who a token belongs to. ``role``: write, read or fineGrained (then ``scopes``: namespace → permissions)."""

    name: str
    role: str = "write"
    orgs: dict[str, str] = field(default_factory=dict)
    scopes: dict[str, list[str]] = field(default_factory=dict)

    def may_write(self, namespace: str) -> bool:
        if self.role == "fineGrained":
            return "repo.write" in self.scopes.get(namespace, [])
        return self.role == "write" and (namespace == self.name or self.orgs.get(namespace) in ("admin", "write", "contributor"))

    def whoami(self) -> dict:
        token: dict = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            kinds = [("org" if name in self.orgs else "user", name, permissions) for name, permissions in self.scopes.items()]
            scoped = [{"entity": {"_id": "0", "type": kind, "name": name}, "permissions": allowed} for kind, name, allowed in kinds]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in self.orgs.items()]
        return {"type": "user", "id": "0", "name": self.name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}


@dataclass
class Blob:
    """A committed file. ``oid``: git's blob id of the content, for LFS of the pointer."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        content = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    oid: str
    summary: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A model repository: its commits and the LFS objects uploaded to it, committed or not."""

    name: str
    private: bool
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.add("initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)})

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def stored(self) -> int:
        return sum(map(len, self.objects.values()))

    def at(self, revision: str) -> Commit:
        if revision == "main":
            return self.head
        found = [commit for commit in self.commits if commit.oid == revision]
        if not found:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def add(self, summary: str, files: dict[str, Blob]) -> Commit:
        lines = [f"{path} {blob.oid}" for path, blob in sorted(files.items())]
        before = self.commits[-1].oid if self.commits else ""
        commit = Commit(hashlib.sha1("\n".join([self.name, before, summary, *lines]).encode()).hexdigest(), summary, files)
        self.commits.append(commit)
        return commit


class State:
    """Every user and repository, under one lock.

    Attributes:
        largest: bytes that one LFS object may have; None: no limit.
        quota: bytes that a repository may store; None: no limit.
    """

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.lock = threading.RLock()
        self.largest: int | None = None
        self.quota: int | None = None

    def user(self, authorization: str) -> User | None:
        if not authorization:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def readable(self, name: str, user: User | None) -> Repo:
        """A repository the user may see; a private one of somebody else's does not exist for them."""
        repo = self.repos.get(name)
        namespace = name.split("/")[0]
        known = user is not None and (namespace == user.name or namespace in user.orgs)
        if repo is None or (repo.private and not known):
            raise Refusal(404 if user else 401, "Repository not found" if user else "Invalid username or password.", "RepoNotFound")
        return repo

    def writable(self, name: str, user: User | None) -> Repo:
        repo = self.readable(name, user)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if not user.may_write(name.split("/")[0]):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def create(self, user: User | None, payload: dict) -> Repo:
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        namespace, name = payload.get("organization") or user.name, payload["name"]
        if not user.may_write(namespace):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if not re.fullmatch(r"[\w.-]{1,96}", name) or "--" in name or ".." in name:
            raise Refusal(400, f"Invalid repo name: {namespace}/{name}")
        full = f"{namespace}/{name}"
        if full in self.repos:
            raise Refusal(409, "You already created this model repo")
        self.repos[full] = Repo(full, private=payload.get("visibility", "public") == "private")
        return self.repos[full]

    def preupload(self, repo: Repo, files: list[dict]) -> list[dict]:
        answers = []
        for item in files:
            lfs = item["path"].endswith(LFS_SUFFIXES) or item["size"] > LARGEST_REGULAR
            there = repo.head.files.get(item["path"])
            oid = (there.sha256 if there.lfs else there.oid) if there else None
            answers.append({"path": item["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        return answers

    def refuse_size(self, repo: Repo, size: int) -> None:
        """413 for one object that is too large, 403 for a full quota."""
        if self.largest is not None and size > self.largest:
            raise Refusal(413, "Payload Too Large")
        if self.quota is not None and repo.stored + size > self.quota:
            raise Refusal(403, "Private repository storage limit reached, please upgrade your plan to increase your private storage limit")
