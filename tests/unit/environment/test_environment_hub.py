"""Login, cache and reachability of the Hub, against a stand-in on this machine; the token shows up nowhere."""

import http.server
import json
import socket
import threading
import time

import huggingface_hub.constants
import pytest

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment.probe import Probe
from mac_lora_helpers.environment.storage import check_disk, check_hub, check_model
from mac_lora_helpers.model import find_base

TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyz012345"
PAGES = {
    "/api/models/Qwen/Qwen2.5-0.5B-Instruct": {"gated": False},
    "/api/models/meta/gated-1B": {"gated": "manual"},
    "/api/datasets/HuggingFaceH4/ultrachat_200k": {"gated": False},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows one token and a few pages, and keeps what it was sent."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return self.answer(200 if known else 401, {"name": "learner"} if known else {"error": "Invalid"})
        path = self.path.split("?")[0]
        return self.answer(200 if path in PAGES else 401, {"id": path, **PAGES.get(path, {})})

    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield server
    server.shutdown()
    server.server_close()


def hub_checks(env=None, **parameters):
    config = resolve({"preset": "local", **parameters}, env={})
    probe = Probe(env={"no_proxy": "*", **(env or {})}, hub_timeout=2)
    checks = {check.name: check for check in check_hub(config, find_base(config, probe.cached_folder), probe)}
    assert not any(TOKEN in json.dumps(check.to_dict()) for check in checks.values())
    return checks


def test_logged_in_by_variable(hub):
    checks = hub_checks({"HF_TOKEN": TOKEN})
    assert checks["Hub login"].detail == "logged in as learner (token from HF_TOKEN)"
    assert {check.status for check in checks.values()} == {"ok"}
    # The token goes to the question who it belongs to, and nowhere else.
    assert [path for path, sent in hub.seen if sent] == ["/api/whoami-v2"]
    assert {path.split("?")[0] for path, _ in hub.seen} >= {"/api/whoami-v2", *(path for path in PAGES if "gated" not in path)}


def test_logged_in_by_file(hub, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert hub_checks()["Hub login"].detail == "logged in as learner (token from the token file)"


def test_a_refused_token(hub):
    check = hub_checks({"HF_TOKEN": TOKEN[:-1]})["Hub login"]
    assert (check.status, check.fix) == ("warn", "unset HF_TOKEN, then: hf auth login")
    assert hub_checks({"HF_TOKEN": TOKEN[:-1]}, push=True)["Hub login"].status == "fail"


def test_not_logged_in(hub):
    assert hub_checks()["Hub login"].status == "ok"
    check = hub_checks(push=True)["Hub login"]
    assert (check.status, check.fix) == ("fail", "hf auth login")
    assert not any(sent for _, sent in hub.seen)


@pytest.mark.parametrize(
    ("model_id", "status", "said"),
    [("nobody/nothing-1B", "warn", "does not exist"), ("meta/gated-1B", "warn", "gated")],
)
def test_models_that_cannot_just_be_loaded(hub, model_id, status, said):
    check = hub_checks(model_id=model_id)["Hub"]
    assert (check.status, said in check.detail) == (status, True), check


def test_nothing_is_asked_when_all_is_local(hub, tmp_path):
    checks = hub_checks({"HF_TOKEN": TOKEN}, preset="smoke")
    assert hub.seen == []
    assert "not needed" in checks["Hub"].detail
    assert "not asked" in checks["Hub login"].detail


def test_offline_asks_nothing(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    checks = hub_checks({"HF_TOKEN": TOKEN})
    assert hub.seen == []
    assert (checks["Hub"].status, checks["Hub"].fix) == ("warn", "unset HF_HUB_OFFLINE")


def test_nobody_answers(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for env in ({}, {"HF_TOKEN": TOKEN}):
        check = hub_checks(env)["Hub"]
        assert (check.status, "cannot be reached" in check.detail) == ("warn", True)


def test_a_hub_that_hangs_does_not_block(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        check = hub_checks({"HF_TOKEN": TOKEN})["Hub"]
    assert check.status == "warn"
    assert time.monotonic() - begin < 5


def test_a_name_server_that_hangs_does_not_block(monkeypatch):
    from mac_lora_helpers.environment.probe import bounded

    begin = time.monotonic()
    assert "no answer" in bounded(lambda: time.sleep(5) or {}, 0.2)["error"]
    assert time.monotonic() - begin < 2


def disk(recorded, model_id="Qwen/Qwen2.5-0.5B-Instruct", **changes):
    answer = {"free": 500 << 30, "total": 500 << 30, "volume": "1", "writable": True, **changes}
    probe = recorded("m2-pro-16gb")
    probe.disk = lambda path: {**answer, "writable": answer["writable"] or path == "outputs/local-lora"}
    config = resolve({"preset": "local", "model_id": model_id}, env={})
    return check_disk(config, find_base(config, probe.cached_folder), probe)


def test_disks(recorded):
    assert disk(recorded).status == "ok"
    full = disk(recorded, free=2 << 30)
    assert (full.status, "free at least" in full.fix) == ("fail", True)
    unwritable = disk(recorded, writable=False)
    assert (unwritable.status, "HF_HOME" in unwritable.fix) == ("warn", True)
    assert "unknown" in disk(recorded, "somebody/unnamed").detail


def test_a_model_that_cannot_be_used_fails_with_its_remedy():
    check = check_model(find_base(resolve({"model_id": "./no/such/folder"})))
    assert (check.status, "no such folder" in check.detail, bool(check.fix)) == ("fail", True, True)
