"""The stand-in refuses what the Hub refuses, checks digests and serves the bytes back, to the real client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError

WEIGHTS = bytes(range(256)) * 512
CARD = b"---\nlicense: mit\ntags: [lora]\n---\n# Card\n"


@pytest.fixture
def api(hub, alice):
    api = HfApi(endpoint=hub.url)
    api.create_repo("alice/model", private=True)
    return api


def status(call) -> int:
    with pytest.raises(HfHubHTTPError) as error:
        call()
    return error.value.response.status_code


def test_bytes_come_back(api, hub, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "weights.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "up" / "README.md").write_bytes(CARD)
    api.upload_folder(folder_path=tmp_path / "up", repo_id="alice/model")
    folder = snapshot_download("alice/model", local_dir=tmp_path / "down", cache_dir=tmp_path / "cache")
    for name, content in (("weights.safetensors", WEIGHTS), ("README.md", CARD)):
        assert (tmp_path / "down" / name).read_bytes() == content, folder
    lfs = {item.path: item.lfs.sha256 for item in api.list_repo_tree("alice/model") if item.lfs}
    assert lfs == {"weights.safetensors": hashlib.sha256(WEIGHTS).hexdigest()}


def test_nothing_is_sent_twice(api, hub, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(WEIGHTS)
    for _ in range(2):
        operation = CommitOperationAdd("weights.safetensors", str(tmp_path / "weights.safetensors"))
        api.create_commit("alice/model", operations=[operation], commit_message="weights")
    assert len([request for request in hub.requests if request.startswith("PUT /lfs/")]) == 1
    assert len(hub.repo("alice/model").commits) == 2


def test_a_bad_token_is_refused(api, hub):
    assert status(lambda: HfApi(endpoint=hub.url, token="hf_nobody").whoami()) == 401
    assert status(lambda: HfApi(endpoint=hub.url, token="hf_nobody").create_repo("alice/x")) == 401


@pytest.mark.parametrize("options", [{"role": "read"}, {"role": "fineGrained", "scopes": {"mallory": ["repo.content.read"]}}])
def test_a_token_without_the_right_is_refused(api, hub, options):
    reader = HfApi(endpoint=hub.url, token=hub.add_user("mallory", **options))
    assert status(lambda: reader.create_repo("mallory/x")) == 403
    assert status(lambda: HfApi(endpoint=hub.url).create_repo("someone-else/x")) == 403
    assert status(lambda: HfApi(endpoint=hub.url).create_repo("readers/x")) == 403


def test_a_private_repository_does_not_exist_for_others(api, hub):
    other = HfApi(endpoint=hub.url, token=hub.add_user("bob"))
    with pytest.raises(RepositoryNotFoundError):
        other.model_info("alice/model")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info("alice/model")
    assert api.model_info("alice/model").private


def test_a_repository_is_made_once(api):
    assert status(lambda: api.create_repo("alice/model")) == 409
    api.create_repo("alice/model", exist_ok=True)


def test_a_missing_file_is_an_entry_not_found(api, hub):
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("alice/model", "nothing.txt")


def test_damaged_bytes_are_refused(api, hub, alice):
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    body = json.dumps({"objects": [{"oid": oid, "size": len(WEIGHTS)}]}).encode()
    request = urllib.request.Request(f"{hub.url}/alice/model.git/info/lfs/objects/batch", body, {"Authorization": f"Bearer {alice}"})
    href = json.load(urllib.request.urlopen(request))["objects"][0]["actions"]["upload"]["href"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(href, WEIGHTS[:-1] + b"x", method="PUT"))
    assert not hub.repo("alice/model").objects


def test_a_commit_of_a_missing_object_is_refused(api, hub, alice):
    line = {"key": "lfsFile", "value": {"path": "w.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    body = "\n".join(json.dumps(part) for part in ({"key": "header", "value": {"summary": "x"}}, line)).encode()
    request = urllib.request.Request(f"{hub.url}/api/models/alice/model/commit/main", body, {"Authorization": f"Bearer {alice}"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    assert len(hub.repo("alice/model").commits) == 1


def test_bad_metadata_is_refused_before_anything_is_sent(api, hub):
    with pytest.raises(ValueError, match="base_model"):
        api.upload_file(path_or_fileobj=b"---\nbase_model: /Users/me/model\n---\n", path_in_repo="README.md", repo_id="alice/model")
    assert not hub.uploads()


def test_limits(api, hub):
    hub.state.largest = 100
    assert status(lambda: api.create_commit("alice/model", [CommitOperationAdd("w.bin", WEIGHTS)], commit_message="x")) == 413
    hub.state.largest, hub.state.quota = None, 100
    assert status(lambda: api.create_commit("alice/model", [CommitOperationAdd("w.bin", WEIGHTS)], commit_message="x")) == 403


def test_the_hf_command_talks_to_it(api, hub, alice, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "weights.safetensors").write_bytes(WEIGHTS)
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": alice, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}

    def hf(*words):
        command = [Path(sys.executable).with_name("hf"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **settings}).stdout

    assert "alice" in hf("auth", "whoami")
    hf("upload", "alice/model", str(tmp_path / "up"), ".")
    hf("download", "alice/model", "--local-dir", str(tmp_path / "down"))
    assert (tmp_path / "down" / "weights.safetensors").read_bytes() == WEIGHTS


def test_faults_hit_the_requests_they_name(api, hub):
    hub.fail(r"^GET /api/models/", 503, times=1, after=1)
    assert api.model_info("alice/model").id == "alice/model"
    assert status(lambda: api.model_info("alice/model")) == 503
    assert api.model_info("alice/model").id == "alice/model"
