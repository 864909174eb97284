"""A stand-in for the Hub on this machine, for tests: honest about what the Hub refuses, and it serves the bytes back.

    with StandInHub() as hub:
        token = hub.add_user("alice")
        HfApi(endpoint=hub.url, token=token).create_repo("alice/model")

It speaks what ``huggingface_hub`` 2.4 asks with Xet switched off (``HF_HUB_DISABLE_XET=1``): accounts, model
repositories, LFS uploads, commits and downloads; and jobs, with the bucket (over Xet) that carries a job's script.
``hub.fail(...)`` makes chosen requests go wrong. It can run as a process of its own too:
``python -m hub.standin --user alice``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from hub.jobs import JobRoutes, Jobs
from hub.rules import blob_of, good_path, yaml_errors
from hub.state import Refusal, Repo, State, User


@dataclass
class Fault:
    """What goes wrong: requests whose ``METHOD path`` matches, the next ``times`` of them, after letting ``after`` pass.

    ``status`` answers with that status, 0 closes the connection without an answer; ``hold`` waits before going on as usual.
    """

    pattern: str
    status: int | None = None
    message: str = "stand-in fault"
    times: int = 10**9
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)

    def applies(self, request: str) -> bool:
        if not re.search(self.pattern, request) or self.times <= 0:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True


class StandInHub:
    """The server in a thread. ``requests`` lists every ``METHOD path`` that came in, ``received`` the bytes per request."""

    def __init__(self, port: int = 0) -> None:
        self.state = State()
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.received: list[tuple[str, int]] = []
        self.links: dict[str, tuple[str, str, int]] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.jobs = Jobs()
        self.jobs.url = self.url
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> StandInHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.hold:
                fault.hold.set()
        self.jobs.close()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def add_user(self, name: str, **options) -> str:
        """A user and a token for them; options as in :class:`hub.state.User`."""
        token = "hf_" + secrets.token_hex(17)
        self.state.users[token] = User(name, **options)
        return token

    def repo(self, name: str) -> Repo:
        return self.state.repos[name]

    def fail(self, pattern: str, status: int | None = None, **options) -> Fault:
        fault = Fault(pattern, status, **options)
        self.faults.append(fault)
        return fault

    def uploads(self) -> list[str]:
        """The requests that carried file content: LFS uploads and commits."""
        return [request for request in self.requests if request.startswith("PUT /lfs/") or "/commit/" in request]


class _Handler(JobRoutes, BaseHTTPRequestHandler):
    """One connection. Routes are (method, pattern of the path, name of the method that answers)."""

    hub: StandInHub
    protocol_version = "HTTP/1.1"
    routes = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("PUT", r"/api/models/(?P<repo>[^/]+/[^/]+)/settings", "settings"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/verify", "lfs_verify"),
        ("PUT", r"/lfs/(?P<link>\w+)", "lfs_put"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer("GET")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        try:
            self.body = self._read_body()
        except ConnectionError:
            self.close_connection = True
            return
        with self.hub.state.lock:
            self.hub.requests.append(request)
            self.hub.received.append((request, len(self.body)))
            fault = next((fault for fault in self.hub.faults if fault.applies(request)), None)
        if fault is not None and self._go_wrong(fault):
            return
        try:
            action, groups = self._route(method, path)
            self.later: Callable[[], None] | None = None
            with self.hub.state.lock:
                action(**groups)
            if self.later is not None:  # a stream must not keep the others waiting
                self.later()
        except Refusal as refusal:
            self._refuse(refusal)

    def _route(self, method: str, path: str) -> tuple[Callable[..., None], dict[str, str]]:
        for verb, pattern, name in (*self.routes, *self.job_routes):
            match = re.fullmatch(pattern, path) if verb == method else None
            if match:
                return getattr(self, name), {key: value for key, value in match.groupdict().items() if value is not None}
        raise Refusal(404, f"no such page: {method} {path}")

    def _go_wrong(self, fault: Fault) -> bool:
        fault.reached.set()
        if fault.hold is not None:
            fault.hold.wait(60)
        if fault.status is None:
            return False
        if fault.status == 0:
            self.close_connection = True
            self.connection.close()
        else:
            self._refuse(Refusal(fault.status, fault.message), fault.headers)
        return True

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) != size:
            raise ConnectionError("the client went away")
        return body

    def _refuse(self, refusal: Refusal, headers: dict[str, str] | None = None) -> None:
        more = {"X-Error-Message": refusal.message, **({"X-Error-Code": refusal.code} if refusal.code else {}), **(headers or {})}
        self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), more)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    @property
    def user(self) -> User | None:
        return self.hub.state.user(self.headers.get("Authorization", ""))

    # Accounts and repositories

    def whoami(self) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        self._json(self.user.whoami())

    def create(self) -> None:
        payload = json.loads(self.body)
        try:
            repo = self.hub.state.create(self.user, payload)
        except Refusal as refusal:
            if refusal.status != 409:
                raise
            name = f"{payload.get('organization') or self.user.name}/{payload['name']}"
            return self._json({"error": refusal.message, "url": f"{self.hub.url}/{name}"}, 409)
        return self._json({"url": f"{self.hub.url}/{repo.name}", "name": repo.name})

    def settings(self, repo: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        found.private = json.loads(self.body)["visibility"] == "private"
        self._json({"private": found.private})

    def info(self, repo: str, revision: str = "main") -> None:
        found = self.hub.state.readable(repo, self.user)
        commit = found.at(revision)
        siblings = [{"rfilename": path} for path in commit.files]
        self._json({"id": found.name, "modelId": found.name, "private": found.private, "sha": commit.oid, "siblings": siblings, "tags": []})

    def tree(self, repo: str, revision: str) -> None:
        commit, rows = self.hub.state.readable(repo, self.user).at(revision), []
        for path, blob in commit.files.items():
            row = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
            lfs = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
            rows.append({**row, "lfs": lfs} if blob.lfs else row)
        self._json(rows)

    def validate_yaml(self) -> None:
        errors = yaml_errors(json.loads(self.body)["content"])
        self._json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    # Uploading

    def preupload(self, repo: str, revision: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        self._json({"files": self.hub.state.preupload(found, json.loads(self.body)["files"])})

    def lfs_batch(self, repo: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        objects = []
        for item in json.loads(self.body)["objects"]:
            oid, size = item["oid"], item["size"]
            if oid in found.objects:
                objects.append({"oid": oid, "size": size})
                continue
            self.hub.state.refuse_size(found, size)
            link = secrets.token_hex(16)
            self.hub.links[link] = (found.name, oid, size)
            verify = {"href": f"{self.hub.url}/{found.name}.git/info/lfs/objects/verify"}
            objects.append({"oid": oid, "size": size, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{link}"}, "verify": verify}})
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, link: str) -> None:
        if link not in self.hub.links:
            raise Refusal(403, "SignatureDoesNotMatch")
        name, oid, size = self.hub.links.pop(link)
        if len(self.body) != size or hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The Content-SHA256 you specified did not match what we received")
        self.hub.repo(name).objects[oid] = self.body
        self._send(200, b"")

    def lfs_verify(self, repo: str) -> None:
        found, item = self.hub.state.writable(repo, self.user), json.loads(self.body)
        if len(found.objects.get(item["oid"], b"")) != item["size"]:
            raise Refusal(404, "LFS object not found")
        self._json({})

    def commit(self, repo: str, revision: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", found.head.oid) != found.head.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(found.head.files)
        for line in lines:
            if line["key"] == "deletedFile":
                files.pop(line["value"]["path"])
            elif line["key"] != "header":
                files[good_path(line["value"]["path"])] = blob_of(found, line)
        commit = found.add(header["summary"], files)
        self._json({"success": True, "commitOid": commit.oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit.oid}", "hookOutput": ""})

    # Downloading

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self.hub.state.readable(repo, self.user).at(revision)
        blob = commit.files.get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        etag = blob.sha256 if blob.lfs else blob.oid
        self._send(200, blob.content, {"Content-Type": "application/octet-stream", "ETag": f'"{etag}"', "X-Repo-Commit": commit.oid})


def main() -> None:
    """Serves until interrupted; prints the address and the token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default="alice")
    options = parser.parse_args()
    with StandInHub(options.port) as hub:
        print(json.dumps({"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.add_user(options.user), "HF_HUB_DISABLE_XET": "1"}), flush=True)
        hub.thread.join()


if __name__ == "__main__":
    main()
