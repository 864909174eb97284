"""One meaning of ``adapter_dir``: a PEFT folder, a run directory or a Hub id; and what tells two adapters apart."""

import json
import shutil

import pytest
from tiny import tiny_adapter, tiny_model

from mac_lora_helpers.adapter import SETTINGS, WEIGHTS, Adapter
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError, MissingArtifact


@pytest.fixture
def made(tmp_path):
    """A base model, and a run directory with an adapter for it."""
    base = tiny_model(tmp_path / "base")
    run = RunDir(tmp_path / "made")
    tiny_adapter(base, run.path("adapter"))
    return base, run


def found(run, base, **values):
    return Adapter.find(run, resolve({"model_id": str(base), **values}, env={}))


def test_a_folder_a_run_directory_and_the_runs_own(made, tmp_path):
    base, run = made
    here = RunDir(tmp_path / "here")
    assert found(run, base).own
    for asked in (run.path("adapter"), run.root):
        adapter = found(here, base, adapter_dir=str(asked))
        assert (adapter.folder, adapter.own, adapter.base) == (run.path("adapter"), False, str(base))
    with pytest.raises(MissingArtifact):
        found(here, base)


def test_what_is_no_adapter(made, tmp_path):
    base, run = made
    for asked, said in ((str(base), "no PEFT adapter"), (str(tmp_path / "none"), "no folder"), ("two words", "neither a folder nor")):
        with pytest.raises(InputError, match=said) as caught:
            found(run, base, adapter_dir=asked)
        assert "adapter_dir" in caught.value.fix


def test_the_digest_is_the_trainings_not_the_files_order(made, tmp_path):
    _, run = made
    other = shutil.copytree(run.path("adapter"), tmp_path / "other")
    settings = json.loads((other / SETTINGS).read_text())
    settings |= {"target_modules": settings["target_modules"][::-1], "base_model_name_or_path": "elsewhere"}
    (other / SETTINGS).write_text(json.dumps(settings))
    assert Adapter.read(other).digest == Adapter.read(run.path("adapter")).digest
    tiny_adapter(tmp_path / "base", other, seed=9)
    assert Adapter.read(other).digest != Adapter.read(run.path("adapter")).digest


def test_reading_opens_the_header_alone(made):
    _, run = made
    adapter = Adapter.read(run.path("adapter"))
    assert adapter.shapes.keys() == adapter.tensors.keys()
    file = run.path("adapter") / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged or cut short"):
        Adapter.read(run.path("adapter"))
