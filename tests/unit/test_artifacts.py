import json
import os

import pytest

from mac_lora_helpers.artifacts import ARTIFACTS, NOTEBOOKS, RunDir
from mac_lora_helpers.errors import InputError, MissingArtifact
from mac_lora_helpers.files import atomic_file
from mac_lora_helpers.ownership import MARKER
from mac_lora_helpers.redaction import portable


def test_a_missing_artefact_names_its_notebook(tmp_path):
    with pytest.raises(MissingArtifact, match=r"02_data_formatting\.ipynb"):
        RunDir(tmp_path).need("manifest")


def test_every_artefact_belongs_to_a_notebook_or_the_suite():
    assert {number for _, number in ARTIFACTS.values()} <= set(range(len(NOTEBOOKS) + 1))


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    run = RunDir(tmp_path)
    run.write_json("job_result", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        run.write_json("job_result", {"a": float("nan")})
    with pytest.raises(RuntimeError), atomic_file(run.path("job_result")) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert run.read_json("job_result") == {"a": 1}
    assert sorted(os.listdir(tmp_path)) == [MARKER, "job_result.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    run = RunDir(tmp_path)
    with run.folder("adapter") as folder:
        (folder / "old").write_text("1")
    with pytest.raises(RuntimeError), run.folder("adapter") as folder:
        (folder / "half").write_text("1")
        raise RuntimeError
    assert os.listdir(run.path("adapter")) == ["old"]
    with run.folder("adapter") as folder:
        (folder / "new").write_text("1")
    assert os.listdir(run.path("adapter")) == ["new"]
    assert sorted(os.listdir(tmp_path)) == [MARKER, "adapter"]


def test_home_and_tokens_are_in_no_artefact(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/Users/anna")
    monkeypatch.setenv("HF_TOKEN", "not-of-the-usual-form-123")
    run = RunDir(tmp_path)
    secret = "hf_" + "aB3" * 12
    run.write_json("job_result", {"/Users/anna/k": ["/Users/anna/m", f"x {secret} y", "not-of-the-usual-form-123", "/Users/annabel/m"]})
    text = run.path("job_result").read_text()
    assert json.loads(text) == {"~/k": ["~/m", "x <secret removed> y", "<secret removed>", "/Users/annabel/m"]}


def test_portable_leaves_other_text_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert portable("a / b hf_short") == "a / b hf_short"


def test_damaged_json_is_told(tmp_path):
    run = RunDir(tmp_path)
    run.path("manifest").write_text("{")
    with pytest.raises(InputError, match="02_data_formatting"):
        run.read_json("manifest")


def test_damaged_lines_are_told_with_their_number(tmp_path):
    run = RunDir(tmp_path)
    run.path("test").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(InputError, match="line 2"):
        run.read_lines("test")


def test_a_run_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="out_dir"):
        RunDir(tmp_path / "f")
