"""Whose folder is it? Nobody else's is written to, whoever names it."""

import json
import os
import socket

import pytest

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.ownership import MARKER

ENVIRONMENT = {
    "packages": {},
    "device": {"name": "cpu"},
    "dtype": {"name": "float32"},
    "checks": [],
    "verdict": {"where": "local", "reasons": []},
}


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("names", [["train.jsonl"], ["data/train.jsonl"], [f"{i}.txt" for i in range(200)], [".hidden"], [".git/config"]])
def test_somebodys_folder_is_refused_and_named(names, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as refused:
        RunDir(tmp_path)
    assert sorted(names)[0].split("/")[0] in refused.value.what
    assert "nothing was written" in refused.value.what
    assert ("197 more" in refused.value.what) == (len(names) == 200)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "left", [[], [".DS_Store", ".ipynb_checkpoints/a-checkpoint.ipynb", "Thumbs.db", "._x"], [".run.lock"], [".mac-lora.abcd1234.json"]]
)
def test_an_empty_folder_is_taken_whatever_a_mac_or_jupyter_left_in_it(left, tmp_path):
    for name in left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    RunDir(tmp_path).write_json("job_result", {})
    assert "made_by" in json.loads((tmp_path / MARKER).read_text())
    (tmp_path / "notes.txt").write_text("mine")
    RunDir(tmp_path).write_json("job_result", {})


def test_looking_at_a_folder_writes_nothing(tmp_path):
    assert not RunDir(tmp_path / "new").has("manifest")
    assert not (tmp_path / "new").exists()
    RunDir(tmp_path)
    assert os.listdir(tmp_path) == []


OLDER = {
    "environment.json": ENVIRONMENT,
    "data/manifest.json": {"fingerprint": "a", "tokens": {"total": 3, "supervised": 2}},
    "train_config.json": {"config": {}, "data_fingerprint": None},
}


@pytest.mark.parametrize("name", OLDER)
def test_a_run_directory_of_an_older_version_is_taken(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(OLDER[name]))
    RunDir(tmp_path).write_json("job_result", {})
    assert (tmp_path / MARKER).is_file()


@pytest.mark.parametrize("name", OLDER)
@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", '{"config": [], "packages": 1, "fingerprint": 5, "verdict": null}'])
def test_another_programs_file_of_that_name_is_none_of_ours(name, content, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="did not write"):
        RunDir(tmp_path)


@pytest.mark.parametrize("sign", [".git", "pyproject.toml"])
def test_a_clone_is_none_even_where_an_older_run_littered_it(sign, tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (tmp_path / sign).mkdir()
    with pytest.raises(InputError, match="did not write"):
        RunDir(tmp_path)


def test_home_is_none_and_neither_is_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path, "~", "/"):
        with pytest.raises(InputError, match=r"home folder|did not write"):
            RunDir(folder)
    assert os.listdir(tmp_path) == []


def test_what_lies_there_is_called_what_it_is(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, called in {"link": "a link that leads nowhere", "pipe": "a pipe", "file": "a file", "socket": "a socket"}.items():
            with pytest.raises(InputError, match=f"{called} stands where a folder is needed"):
                RunDir(tmp_path / name)
    with pytest.raises(InputError, match="a file stands where a folder is needed"):
        RunDir(tmp_path / "file/run")


def test_the_run_directory_may_be_a_link_to_a_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    RunDir(tmp_path / "run").write_json("job_result", {})
    assert sorted(os.listdir(tmp_path / "disk")) == [MARKER, "job_result.json"]


@pytest.mark.parametrize("link", ["data", "data/manifest.json"])
def test_nothing_is_written_through_a_link(link, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("mine")
    run = RunDir(tmp_path / "run").claim()
    (run.root / link).parent.mkdir(exist_ok=True)
    (run.root / link).symlink_to(outside / "manifest.json" if link.endswith("json") else outside)
    with pytest.raises(InputError, match=f"{link} is a link"):
        run.write_json("manifest", {"fingerprint": "a"})
    assert snapshot(outside) == {outside / "manifest.json": b"mine"}


@pytest.mark.parametrize("name", [".run.lock", ".write.lock"])
@pytest.mark.parametrize("kind", ["link", "hard link", "dangling", "pipe", "folder"])
def test_a_lock_that_is_not_ours_is_refused_and_its_target_untouched(name, kind, tmp_path):
    target, run = tmp_path / "precious", RunDir(tmp_path / "run").claim()
    target.write_text("mine")
    lock = run.root / name
    make = {
        "link": lambda: lock.symlink_to(target),
        "hard link": lambda: os.link(target, lock),
        "dangling": lambda: lock.symlink_to(tmp_path / "nowhere"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }
    make[kind]()
    with pytest.raises(InputError, match=f"the lock {name}"), run.running("a run"):
        pass
    assert target.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert os.path.lexists(lock)


def overlap(tmp_path, **values):
    resolve({"out_dir": str(tmp_path / "run"), **values}, env={}).refuse_inputs_among_outputs()


@pytest.mark.parametrize("pattern", ["data/train.jsonl", "data/*.jsonl", "data", "da*/t*.jsonl", ".", "data/tokens/train.arrow"])
def test_data_that_would_be_overwritten_are_refused(pattern, tmp_path):
    folder = RunDir(tmp_path / "run").claim().root
    (folder / "data/tokens").mkdir(parents=True)
    for name in ("train.jsonl", "tokens/train.arrow"):
        (folder / "data" / name).write_text("mine")
    with pytest.raises(InputError, match="data_files names what this run would overwrite"):
        overlap(tmp_path, data_files=str(folder / pattern))
    (tmp_path / "link.jsonl").symlink_to(folder / "data/train.jsonl")
    with pytest.raises(InputError, match="would overwrite"):
        overlap(tmp_path, data_files=str(tmp_path / "link.jsonl"))


def test_a_model_and_an_adapter_that_would_be_overwritten(tmp_path):
    folder = RunDir(tmp_path / "run").claim().root
    for name in ("export/merged", "adapter", "export/mlx", "checkpoints/checkpoint-3"):
        (folder / name).mkdir(parents=True)
    for values in (
        {"model_id": str(folder / "export/merged")},
        {"adapter_dir": str(folder / "export/mlx")},
        {"model_id": str(folder / "adapter")},
    ):
        with pytest.raises(InputError, match="would overwrite"):
            overlap(tmp_path, **values)
    for own in (folder, folder / "adapter", folder / "checkpoints/checkpoint-3"):
        overlap(tmp_path, adapter_dir=str(own))


def test_inputs_elsewhere_are_nobodys_business(tmp_path):
    (tmp_path / "run/inputs").mkdir(parents=True)
    (tmp_path / "run/inputs/a.jsonl").write_text("")
    (tmp_path / "other/data").mkdir(parents=True)
    (tmp_path / "other/data/train.jsonl").write_text("")
    overlap(tmp_path, data_files=f"{tmp_path}/run/inputs/a.jsonl, {tmp_path}/other/data/*.jsonl", model_id=str(tmp_path / "other"))
