"""The stand-in's jobs: what the real client asks of the jobs endpoint and of the bucket that carries the script.

A job that was accepted can really run: ``hub.jobs.run_scripts = True`` starts its ``uv run`` command in a subprocess
here, with this Python instead of uv's, the bucket's files in a folder of its own, and its secrets in its environment only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from hub.state import Refusal, User
from hub.xet import XetStore

#: Made-up machines with made-up prices, in the form of the Hub's answer.
HARDWARE = [
    {"name": "cpu-basic", "prettyName": "CPU Basic", "cpu": "2 vCPU", "ram": "16 GB", "ephemeralStorage": "20 GB", "accelerator": None},
    *(
        {
            "name": name,
            "prettyName": f"Stand-in {name}",
            "cpu": "4 vCPU",
            "ram": "15 GB",
            "ephemeralStorage": "50 GB",
            "accelerator": {"type": "gpu", "model": "T4", "quantity": number, "vram": "16 GB", "manufacturer": "Nvidia"},
        }
        for name, number in (("t4-small", "1"), ("a10g-small", "1"), ("a10g-large", "1"), ("a10g-largex2", "2"), ("a100-large", "1"))
    ),
]
for _number, _machine in enumerate(HARDWARE, 1):
    _machine.update({"unitCostMicroUSD": 1000 * _number, "unitCostUSD": 0.001 * _number, "unitLabel": "minute"})
_ENDED = ("COMPLETED", "ERROR", "CANCELED", "DELETED")
#: What a job of this stand-in cannot need of the machine it runs on.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Bucket:
    """A private place for files: path → content."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Job:
    """A job as the endpoint knows it. ``lines``: (time, text) of its log."""

    id: str
    namespace: str
    spec: dict
    stage: str = "SCHEDULING"
    message: str | None = None
    created: str = field(default_factory=now)
    started: str | None = None
    finished: str | None = None
    lines: list[tuple[str, str]] = field(default_factory=list)
    process: subprocess.Popen | None = None
    thread: threading.Thread | None = None

    def log(self, text: str) -> None:
        self.lines.append((now(), text))

    def end(self, stage: str, message: str | None = None) -> None:
        if self.stage not in _ENDED:
            self.stage, self.message, self.finished = stage, message, now()

    def answer(self) -> dict:
        """What inspecting it gives; secrets by name only."""
        spec = self.spec
        return {
            "id": self.id,
            "createdAt": self.created,
            "startedAt": self.started,
            "finishedAt": self.finished,
            "dockerImage": spec.get("dockerImage"),
            "spaceId": None,
            "command": spec["command"],
            "arguments": spec.get("arguments", []),
            "environment": spec.get("environment", {}),
            "secrets": sorted(spec.get("secrets", {})),
            "flavor": spec["flavor"],
            "labels": spec.get("labels", {}),
            "status": {"stage": self.stage, "message": self.message},
            "durations": {"schedulingSecs": 1, "runningSecs": 60 if self.started else None, "totalSecs": 61},
            "owner": {"id": "0", "name": self.namespace, "type": "user"},
            "initiator": {"type": "user", "id": "0", "name": self.namespace},
        }


class Jobs:
    """Every job, bucket and uploaded file. ``poor``: namespaces that cannot pay."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.buckets: dict[str, Bucket] = {}
        self.xet = XetStore()
        self.xet_tokens: dict[str, str] = {}
        self.poor: set[str] = set()
        self.run_scripts = False
        self.extra_arguments: list[str] = []
        self.url = ""

    def submit(self, namespace: str, spec: dict) -> Job:
        """
        Raises:
            Refusal: 400 for an unknown flavor or a command of another form, 402 for an account that cannot pay.
        """
        if spec.get("flavor") not in {machine["name"] for machine in HARDWARE}:
            raise Refusal(400, f"Invalid flavor: {spec.get('flavor')}")
        if not isinstance(spec.get("command"), list) or not (spec.get("dockerImage") or spec.get("spaceId")):
            raise Refusal(400, "Invalid job specification")
        if namespace in self.poor:
            raise Refusal(402, "Pre-paid credit balance is insufficient - add more credits to your account to use Jobs.")
        job = Job(f"{len(self.jobs) + 1:024x}", namespace, spec)
        self.jobs[job.id] = job
        if self.run_scripts:
            job.thread = threading.Thread(target=self._run, args=(job,), daemon=True)
            job.thread.start()
        return job

    def find(self, namespace: str, identity: str) -> Job:
        job = self.jobs.get(identity)
        if job is None or job.namespace != namespace:
            raise Refusal(404, "Job not found")
        return job

    def close(self) -> None:
        """Ends what still runs."""
        for job in self.jobs.values():
            if job.process is not None and job.process.poll() is None:
                job.process.kill()
            if job.thread is not None:
                job.thread.join(10)

    def _run(self, job: Job) -> None:
        """The job's command, as the cloud would run it: its files, its environment, its time limit."""
        spec = job.spec
        job.stage, job.started = "RUNNING", now()
        job.log("===== Job started at " + job.started)
        with tempfile.TemporaryDirectory(prefix="stand-in-job-") as place:
            command = self._mounted(spec, Path(place))
            environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
            environment |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "JOB_ID": job.id, "PYTHONUNBUFFERED": "1"}
            environment |= spec.get("environment", {}) | spec.get("secrets", {})
            words = [sys.executable, *command[2:], *self.extra_arguments]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            job.process = subprocess.Popen(words, cwd=place, env=environment, **pipes)
            limit = threading.Timer(spec.get("timeoutSeconds", 1800), lambda: (job.end("ERROR", "Job timeout"), job.process.kill()))
            limit.start()
            for line in job.process.stdout:
                job.log(line.rstrip("\n"))
            code = job.process.wait()
            limit.cancel()
        job.end("COMPLETED" if code == 0 else "ERROR", None if code == 0 else f"Job failed with exit code: {code}")

    def _mounted(self, spec: dict, place: Path) -> list[str]:
        """The command with the volumes' mount paths replaced by folders here."""
        command = list(spec["command"])
        for number, volume in enumerate(spec.get("volumes", [])):
            folder, prefix = place / f"volume{number}", volume.get("path", "") + "/"
            for path, content in self.buckets[volume["source"]].files.items():
                if path.startswith(prefix):
                    target = folder / path.removeprefix(prefix)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
            command = [word.replace(volume["mountPath"] + "/", f"{folder}/", 1) for word in command]
        return command


class JobRoutes:
    """Answers of the jobs endpoint and of buckets; a part of the stand-in's handler."""

    job_routes = (
        ("GET", r"/api/jobs/hardware", "job_hardware"),
        ("POST", r"/api/jobs/(?P<namespace>[^/]+)", "job_submit"),
        ("GET", r"/api/jobs/(?P<namespace>[^/]+)", "job_list"),
        ("GET", r"/api/jobs/(?P<namespace>[^/]+)/(?P<identity>[^/]+)", "job_inspect"),
        ("POST", r"/api/jobs/(?P<namespace>[^/]+)/(?P<identity>[^/]+)/cancel", "job_cancel"),
        ("GET", r"/api/jobs/(?P<namespace>[^/]+)/(?P<identity>[^/]+)/logs", "job_logs"),
        ("POST", r"/api/buckets/(?P<bucket>[^/]+/[^/]+)", "bucket_create"),
        ("GET", r"/api/buckets/(?P<bucket>[^/]+/[^/]+)", "bucket_info"),
        ("GET", r"/api/buckets/(?P<bucket>[^/]+/[^/]+)/xet-(?P<kind>read|write)-token", "bucket_token"),
        ("POST", r"/api/buckets/(?P<bucket>[^/]+/[^/]+)/batch", "bucket_batch"),
        ("GET", r"/xet-\w+/v1/chunks/[^/]+/[^/]+", "xet_chunk"),
        ("POST", r"/xet-\w+/v1/xorbs/[^/]+/(?P<name>\w+)", "xet_xorb"),
        ("POST", r"/xet-\w+/v1/shards", "xet_shard"),
    )

    def _member(self, namespace: str, write: bool = True) -> User:
        user = self.user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if namespace != user.name and namespace not in user.orgs:
            raise Refusal(404 if not write else 403, "Job not found" if not write else "Forbidden: you may not run jobs in this namespace")
        if write and not user.may_write(namespace):
            raise Refusal(403, "Forbidden: this token lacks the permission job.write")
        return user

    def job_hardware(self) -> None:
        self._json(HARDWARE)

    def job_submit(self, namespace: str) -> None:
        self._member(namespace)
        self._json(self.hub.jobs.submit(namespace, json.loads(self.body)).answer())

    def job_list(self, namespace: str) -> None:
        self._member(namespace, write=False)
        asked = parse_qsl(urlsplit(self.path).query)
        labels = dict(value.split("=", 1) for name, value in asked if name == "label")
        found = [job.answer() for job in self.hub.jobs.jobs.values() if job.namespace == namespace]
        self._json([job for job in found if labels.items() <= job["labels"].items()])

    def job_inspect(self, namespace: str, identity: str) -> None:
        self._member(namespace, write=False)
        self._json(self.hub.jobs.find(namespace, identity).answer())

    def job_cancel(self, namespace: str, identity: str) -> None:
        self._member(namespace)
        job = self.hub.jobs.find(namespace, identity)
        job.end("CANCELED")
        if job.process is not None:
            job.process.kill()
        self._json(job.answer())

    def job_logs(self, namespace: str, identity: str) -> None:
        self._member(namespace, write=False)
        self.later = lambda: self._stream_logs(self.hub.jobs.find(namespace, identity))

    def _stream_logs(self, job: Job) -> None:
        """Server-sent events until the job has ended."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        sent = 0
        while True:
            ended = job.stage in _ENDED
            for when, text in job.lines[sent:]:
                self.wfile.write(f"data: {json.dumps({'timestamp': when, 'data': text})}\n\n".encode())
                sent += 1
            self.wfile.flush()
            if ended:
                return
            time.sleep(0.05)

    def bucket_create(self, bucket: str) -> None:
        self._member(bucket.split("/")[0])
        if bucket in self.hub.jobs.buckets:
            return self._json({"error": "You already created this bucket", "url": f"{self.hub.url}/buckets/{bucket}"}, 409)
        private = json.loads(self.body or b"{}").get("visibility") == "private"
        self.hub.jobs.buckets[bucket] = Bucket(private)
        return self._json({"url": f"{self.hub.url}/buckets/{bucket}", "name": bucket})

    def bucket_info(self, bucket: str) -> None:
        self._member(bucket.split("/")[0], write=False)
        found = self.hub.jobs.buckets.get(bucket)
        if found is None:
            raise Refusal(404, "Bucket not found", "RepoNotFound")
        size = sum(map(len, found.files.values()))
        self._json({"id": bucket, "private": found.private, "createdAt": now(), "size": size, "totalFiles": len(found.files)})

    def bucket_token(self, bucket: str, kind: str) -> None:
        self._member(bucket.split("/")[0])
        token = f"xet-{len(self.hub.jobs.xet_tokens)}"
        self.hub.jobs.xet_tokens[token] = bucket
        expires = int(time.time()) + 3600
        place = f"{self.hub.url}/{self.hub.jobs.xet.place}"
        told = {"X-Xet-Cas-Url": place, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        answer = {"casUrl": place, "accessToken": token, "exp": expires}
        self._send(200, json.dumps(answer).encode(), told)

    def _xet_login(self) -> None:
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.jobs.xet_tokens:
            raise Refusal(401, "Invalid Xet token")

    def xet_chunk(self) -> None:
        self._xet_login()
        raise Refusal(404, "no such chunk")

    def xet_xorb(self, name: str) -> None:
        self._xet_login()
        self.hub.jobs.xet.add_xorb(name, self.body)
        self._json({"was_inserted": True})

    def xet_shard(self) -> None:
        self._xet_login()
        self.hub.jobs.xet.add_shard(self.body)
        self._json({"result": 1})

    def bucket_batch(self, bucket: str) -> None:
        self._member(bucket.split("/")[0])
        if bucket not in self.hub.jobs.buckets:
            raise Refusal(404, "Bucket not found", "RepoNotFound")
        for line in self.body.splitlines():
            item = json.loads(line)
            if item["type"] != "addFile" or item["xetHash"] not in self.hub.jobs.xet.files:
                raise Refusal(422, f"{item['path']}: its content was not uploaded")
            self.hub.jobs.buckets[bucket].files[item["path"]] = self.hub.jobs.xet.files[item["xetHash"]]
        self._json({"success": True, "processed": 1, "succeeded": 1, "failed": []})
