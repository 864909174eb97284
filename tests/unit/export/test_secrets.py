"""Planted secrets are found wherever they stand; what only looks a little like one is not."""

from __future__ import annotations

import json
import struct

import pytest

from mac_lora_helpers.export.hub import secrets

B64 = "Ab3dEf9hIj" * 5
PLANTED = {
    "Hugging Face token": "hf_" + "aBcDeFgHiJ" * 3 + "kLmN",
    "GitHub token": "ghp_" + "a1B2" * 9,
    "OpenAI or Anthropic key": "sk-ant-api03-" + B64,
    "AWS access key": "AKIA" + "A1B2C3D4E5F6G7H8",
    "Google API key": "AIza" + "b" * 35,
    "Slack token": "xoxb-123456789012-abcdefghij",
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "JSON web token": f"eyJ{'a' * 20}.eyJ{'b' * 20}.{'c' * 20}",
    "password in an address": "https://me:hunter2hunter2@example.org/x.git",
    "secret in an assignment": "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567",
}


def kinds(path, literal=None):
    return [finding.kind for finding in secrets.scan_file(path, path.name, literal or {})]


@pytest.mark.parametrize("kind", PLANTED)
def test_every_kind_is_found_in_plain_text_and_in_a_notebook(tmp_path, kind):
    plain, notebook = tmp_path / "log.txt", tmp_path / "x.ipynb"
    plain.write_text(f"first line\nit is {PLANTED[kind]} here\n")
    notebook.write_text(json.dumps({"cells": [{"outputs": [{"text": f"printed:\n{PLANTED[kind]}\n"}]}]}))
    assert kind in kinds(plain)
    assert kind in kinds(notebook)
    finding = secrets.scan_file(plain, "log.txt", {})[0]
    assert (finding.path, finding.line) == ("log.txt", 2)
    assert PLANTED[kind] not in str(finding)


@pytest.mark.parametrize(
    "text",
    [
        '{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": null, "token": 151643}',
        '{"Ġpassword": 16522, "Ġtoken": 4037, "hf": 1, "token_type_ids": [0, 0]}',
        "max_new_tokens: 120, HF_TOKEN_PATH=/somewhere/under/a/long/path/token1",
        "token = get_token_from_the_environment()",
        "fingerprint: sha256:" + "5e" * 32,
        "https://huggingface.co/docs/hub/security-tokens#how-to-use-user-access-tokens-0123456789",
        "hf_hub_download, hf_transfer, sk-learn and risk-averse-investments-in-a-long-hyphenated-phrase",
    ],
)
def test_harmless_text_is_left_alone(tmp_path, text):
    (tmp_path / "x.txt").write_text(text)
    assert kinds(tmp_path / "x.txt") == []


def test_a_tokenizer_and_a_model_folder_are_harmless(tmp_path):
    from tiny import tiny_model

    folder = tiny_model(tmp_path / "model")
    assert secrets.scan_files(secrets.texts_of(folder), tmp_path, {}) == []


def test_a_secret_known_by_value_is_found(tmp_path):
    (tmp_path / "x.log").write_text("the thing is correct horse battery staple")
    known = secrets.known_secrets({"MY_PASSWORD": "correct horse battery", "TOKEN_PATH": "/a/b/c/d/e/f/g", "SHORT_TOKEN": "abc"})
    assert {kind for kind in known if "Hub login" not in kind} == {"the value of MY_PASSWORD"}
    assert kinds(tmp_path / "x.log", known) == ["the value of MY_PASSWORD"]


def test_a_safetensors_header_is_read_and_its_numbers_are_not(tmp_path):
    header = json.dumps({"__metadata__": {"note": PLANTED["Hugging Face token"]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    empty = b"{}      "
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(empty)) + empty + PLANTED["Hugging Face token"].encode())
    assert kinds(tmp_path / "a.safetensors") == ["Hugging Face token"]
    assert kinds(tmp_path / "b.safetensors") == []


def test_a_secret_across_two_parts_of_a_large_text_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "_CHUNK", 10_000)
    token = PLANTED["Hugging Face token"]
    for position in (18_150, 18_190, 28_190, 40_000):
        path = tmp_path / f"{position}.txt"
        path.write_text("x\n" * (position // 2) + token + "\n" + "y\n" * 30_000)
        finding = secrets.scan_file(path, path.name, {})
        assert [(item.kind, item.line) for item in finding] == [("Hugging Face token", position // 2 + 1)]


def test_hidden_files_are_looked_at_and_links_are_not_followed(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".env").write_text("x")
    (run / "link").symlink_to(outside)
    assert [path.name for path in secrets.texts_of(run)] == [".env"]
