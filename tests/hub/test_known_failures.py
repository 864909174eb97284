"""The Hub's refusals as the libraries raise them, against the stand-in: each is recognised."""

import http.server
import ssl
import subprocess
import threading

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download

from mac_lora_helpers.config import resolve
from mac_lora_helpers.export.hub.errors import translate
from mac_lora_helpers.troubleshooting import explain

GATED = {"status": 403, "message": "Access to model is restricted", "headers": {"X-Error-Code": "GatedRepo"}}
MISSING = {"status": 404, "message": "Repository not found", "headers": {"X-Error-Code": "RepoNotFound"}}


def raised(action, *arguments, **options):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any kind; what matters is what is made of it
        action(*arguments, **options)
    return caught.value


def load_model(name):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(name)


def load_tokenizer(name):
    from mac_lora_helpers import data

    data.load_tokenizer(resolve({"model_id": name}, {}))


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("answer", "key"), [(GATED, "gated"), (MISSING, "not-on-the-hub")], ids=["gated", "missing"])
def test_refused_downloads(hub, tmp_path, answer, key):
    hub.fail("(GET|HEAD) ", **answer)
    assert explain(raised(hf_hub_download, "alice/model", "config.json", cache_dir=tmp_path)).key == key
    assert explain(raised(load_model, "alice/model")).key == key
    assert explain(raised(load_tokenizer, "alice/model")).key == key


def test_offline_by_switch(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert explain(raised(hf_hub_download, "alice/model", "config.json", cache_dir=tmp_path)).key == "offline"
    assert explain(raised(HfApi(endpoint=hub.url, token="hf_x").whoami)).key == "offline"


def test_nobody_answers(hub):
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token="hf_x")
    assert explain(raised(nowhere.whoami)).key == "offline"


def test_logins(hub, alice):
    reader = hub.add_user("bob", role="read")
    assert explain(raised(HfApi(endpoint=hub.url, token="hf_" + "a" * 30).whoami)).key == "login"
    assert explain(raised(HfApi(endpoint=hub.url, token=reader).create_repo, "alice/model")).key == "push-denied"


def test_no_login_at_all(hub):
    assert explain(raised(HfApi(endpoint=hub.url, token=True).whoami)).key == "login"


@pytest.fixture
def strange_certificate(tmp_path):
    """Address of an HTTPS server whose certificate nobody knows, as behind a proxy that opens the traffic."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*made, "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_certificate_that_is_not_trusted(strange_certificate):
    error = raised(HfApi(endpoint=strange_certificate, token="hf_x").whoami)
    assert explain(error).key == "certificate"
    told = translate(error, "alice/model")
    assert "certificate" in str(told)
    assert explain(told).key == "certificate"


def test_a_proxy_that_refuses(hub, monkeypatch):
    """The stand-in knows no CONNECT: the way to https:// ends at it, as at a proxy that wants a password."""
    monkeypatch.setenv("HTTPS_PROXY", hub.url)
    assert explain(raised(HfApi(endpoint="https://hub.invalid", token="hf_x").whoami)).key == "offline"
