"""A stand-in Hub that this process's huggingface_hub talks to, whatever login the machine has."""

from __future__ import annotations

import pytest

from hub.standin import StandInHub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in as the endpoint, without a token until a test sets ``HF_TOKEN``, and without waiting between retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session, disable_progress_bars

    disable_progress_bars()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with StandInHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        close_session()
        yield server
        close_session()


@pytest.fixture
def alice(hub, monkeypatch):
    """A user who is logged in through the environment; gives the token."""
    token = hub.add_user("alice", orgs={"team": "write", "readers": "read"})
    monkeypatch.setenv("HF_TOKEN", token)
    return token
