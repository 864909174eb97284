"""The Hub's refusals as the libraries raise them, against the stand-in: each is recognised."""

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download

from mac_lora_helpers.config import resolve
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
