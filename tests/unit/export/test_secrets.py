"""Planted secrets are found wherever they stand; what only looks a little like one is not."""

from __future__ import annotations

import json
import struct

import pytest
from planted_secrets import PLANTED

from mac_lora_helpers.export.hub import secrets


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
