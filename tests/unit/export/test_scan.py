"""Planted secrets are found wherever they stand; what only looks a little like one is not."""

from __future__ import annotations

import json
import struct

import pytest
from planted_secrets import PLANTED

from mac_lora_helpers.export.hub import scan


def found(path, literal=None):
    return scan.scan_files([path], path.parent, literal or {})


@pytest.mark.parametrize("kind", PLANTED)
def test_every_kind_is_found_in_plain_text_and_in_a_notebook(tmp_path, kind):
    plain, notebook = tmp_path / "log.txt", tmp_path / "x.ipynb"
    plain.write_text(f"first line\nit is {PLANTED[kind]} here\n")
    notebook.write_text(json.dumps({"cells": [{"outputs": [{"text": f"printed:\n{PLANTED[kind]}\n"}]}]}))
    assert f"log.txt, line 2: {kind}" in found(plain)
    assert f"x.ipynb, line 1: {kind}" in found(notebook)
    assert PLANTED[kind] not in str(found(plain))


def test_a_row_of_the_data_is_named(tmp_path):
    rows = [{"text": "fine"}, {"text": PLANTED["Hugging Face token"]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert found(tmp_path / "train.jsonl") == ["train.jsonl, row 2: Hugging Face token"]


def test_a_tokenizer_and_a_model_folder_are_harmless(tmp_path):
    from tiny import tiny_model

    assert scan.scan_files(scan.texts_of(tiny_model(tmp_path / "model")), tmp_path, {}) == []


def test_a_secret_known_by_value_is_found(tmp_path):
    (tmp_path / "x.log").write_text("the thing is correct horse battery staple")
    known = scan.known_secrets({"MY_PASSWORD": "correct horse battery", "TOKEN_PATH": "/a/b/c/d/e/f/g", "SHORT_TOKEN": "abc"})
    assert {kind for kind in known if "Hub login" not in kind} == {"the value of MY_PASSWORD"}
    assert found(tmp_path / "x.log", known) == ["x.log, line 1: the value of MY_PASSWORD"]


def test_a_safetensors_header_is_read_and_its_numbers_are_not(tmp_path):
    header = json.dumps({"__metadata__": {"note": PLANTED["Hugging Face token"]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    empty = b"{}      "
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(empty)) + empty + PLANTED["Hugging Face token"].encode())
    assert found(tmp_path / "a.safetensors") == ["a.safetensors: Hugging Face token"]
    assert found(tmp_path / "b.safetensors") == []


def test_a_large_text_is_read_in_parts_of_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK", 10_000)
    token, path = PLANTED["Hugging Face token"], tmp_path / "x.txt"
    for position in (9_990, 18_150, 40_000):
        path.write_text("x\n" * (position // 2) + token + "\n" + "y\n" * 30_000)
        assert found(path) == [f"x.txt, line {position // 2 + 1}: Hugging Face token"]


def test_hidden_files_are_looked_at_and_links_are_not_followed(tmp_path):
    (tmp_path / "outside.txt").write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".env").write_text("x")
    (run / "link").symlink_to(tmp_path / "outside.txt")
    assert [path.name for path in scan.texts_of(run)] == [".env"]
