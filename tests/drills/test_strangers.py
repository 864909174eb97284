"""Somebody else's folder, somebody else's code: a run writes only where it is at home, and a file gives no consent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drills.conftest import Made
from drills.test_damaged_artefacts import read_trained
from mac_lora_helpers.artifacts import CONSENT, RunDir
from mac_lora_helpers.config import Config, configure, resolve
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.layout import notebooks_folder

ROOT = Path(__file__).parents[2]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def mac_lora(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mac_lora_helpers", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder of somebody's with 200 files; some are named as a run's artefacts are."""
    folder = tmp_path / "thesis"
    names = ["run.json", "train_config.json", "data/train.jsonl", "data/manifest.json", "notebooks/01_environment_check.ipynb", "loss.png"]
    for name in [*names, *(f"chapter-{i}.md" for i in range(200 - len(names)))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'{{"mine": "{name}"}}')
    return folder


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["run", "--run-dir", "thesis"], {}),
        (["run", "-p", "out_dir", "thesis", "--only", "01"], {}),
        (["run"], {"OUT_DIR": "thesis"}),
        (["run", "--run-dir", "thesis/."], {}),
        (["train", "--run-dir", "thesis"], {}),
        (["job", "submit", "--run-dir", "thesis"], {}),
    ],
)
def test_a_folder_of_somebodys_is_left_alone_by_every_command(arguments, variables, foreign):
    before = snapshot(foreign.parent)
    done = mac_lora(*arguments, folder=foreign.parent, **variables)
    assert done.returncode == 2, done.stderr
    assert "did not write" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(foreign.parent) == before


def test_and_by_notebooks(foreign, monkeypatch):
    """Edited parameters, a form's field, and papermill into a real notebook."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    before = snapshot(foreign)
    monkeypatch.chdir(foreign.parent)
    monkeypatch.setenv("MAC_LORA_HEADLESS", "1")
    with pytest.raises(InputError, match="did not write"):
        RunDir(configure({"out_dir": "thesis"}, env={}).out_dir)
    config = configure({}, env={})
    config.out_dir = "thesis"
    with pytest.raises(InputError, match="did not write"):
        RunDir(config.out_dir)
    source = ROOT / "notebooks/01_environment_check.ipynb"
    with pytest.raises(PapermillExecutionError, match="did not write"):
        papermill.execute_notebook(source, "out.ipynb", {"out_dir": "thesis"}, kernel_name="python3", progress_bar=False)
    assert snapshot(foreign) == before


def test_a_form_opened_on_somebodys_folder_keeps_nothing_there(foreign, monkeypatch):
    """The draft of what is typed lies in the run directory: not in this one."""
    monkeypatch.delenv("MAC_LORA_HEADLESS", raising=False)
    before = snapshot(foreign)
    with pytest.raises(InputError, match="did not write"):
        configure({"out_dir": str(foreign)}, env={}).draft.keep("seed", 3)
    assert snapshot(foreign) == before


def test_the_current_folder_with_ones_own_rows_is_no_run_directory(tmp_path):
    """As it was found: `--run-dir .` and data/train.jsonl of the user's own, which the data stage overwrote."""
    (tmp_path / "data").mkdir()
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "data/train.jsonl").write_text("".join(json.dumps({**row, "n": i}) + "\n" for i in range(42)))
    before = snapshot(tmp_path)
    done = mac_lora("run", "--run-dir", ".", "-p", "data_files", "data/train.jsonl", "--only", "02", folder=tmp_path)
    assert done.returncode == 2
    assert snapshot(tmp_path) == before


def test_a_clone_of_the_project_is_no_run_directory(tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "notebooks", clone / "notebooks")
    (clone / ".git").mkdir()
    before = snapshot(clone)
    done = mac_lora("run", "--run-dir", ".", "--only", "01", folder=clone)
    assert done.returncode == 2
    assert snapshot(clone) == before


def test_an_earlier_runs_own_rows_are_no_input_of_the_same_run(light: Made):
    before = snapshot(light.folder)
    source = str(light.folder / "data/train.jsonl")
    done = mac_lora("run", "--run-dir", str(light.folder), "-p", "data_files", source, "--only", "02", folder=light.folder.parent)
    assert done.returncode == 2
    assert "would overwrite (data/train.jsonl)" in done.stderr
    assert snapshot(light.folder) == before


def test_a_link_in_the_run_directory_is_not_written_through(tmp_path, light: Made):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in (".run.lock", "run.json"):
        (light.folder / name).unlink(missing_ok=True)
        (light.folder / name).symlink_to(precious)
        done = mac_lora("run", "--run-dir", str(light.folder), "--only", "01", folder=tmp_path)
        assert done.returncode == 2, done.stderr
        assert f"{name} is a link" in done.stderr
        assert precious.read_text() == "mine"
        (light.folder / name).unlink()


# Consent


def test_consent_is_what_acts_on_the_world():
    """Every switch that runs foreign code or sends something is in the list, and no preset turns one on."""
    assert {name for name in Config.model_fields if name in ("trust_remote_code", "push", "submit_job")} == set(CONSENT)
    for preset in ("smoke", "local", "real"):
        assert not any(getattr(resolve({"preset": preset}, env={}), name) for name in CONSENT)


def forge(made: Made, **values: object) -> None:
    """Another config in the run's files, with seals that fit."""
    for name in ("manifest", "train_config"):
        saved = made.run.read_json(name)
        made.run.write_json(name, {**saved, "config": {**saved["config"], **values}})
    (made.folder / "draft.json").write_text(json.dumps(values))


def test_no_file_of_a_run_directory_gives_consent(light, monkeypatch):
    monkeypatch.delenv("MAC_LORA_HEADLESS", raising=False)
    forge(light, **dict.fromkeys(CONSENT, True), seed=7)
    fresh = configure({"out_dir": str(light.folder)}, env={})
    for saved in (light.run.config("train_config"), light.run.config("manifest"), light.run.read_json("train_config")["config"]):
        config = fresh.inherit(saved, "data", "training", "evaluation", "export", made_by="03_lora_training.ipynb")
        assert [name for name in CONSENT if getattr(config, name)] == []
    assert not set(CONSENT) & set(light.run.config("train_config"))
    given = configure({"out_dir": str(light.folder), "push": True}, env={})
    assert given.inherit(light.run.config("train_config"), "data", "training", made_by="x").push, "one's own word holds"


def test_code_that_a_forged_run_names_does_not_run(light, model_with_code, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = model_with_code
    forge(light, trust_remote_code=True, model_id=str(folder))
    with pytest.raises(UserError):
        read_trained(light)
    assert not mark.exists()


def test_code_is_named_before_it_may_run(capsys, monkeypatch):
    monkeypatch.setenv("MAC_LORA_HEADLESS", "1")
    config = configure({"trust_remote_code": True, "model_id": "me/model"}, env={})
    assert "Python code that comes with me/model may run" in capsys.readouterr().out
    resolve({"trust_remote_code": True}, env={}).inherit({"model_id": "they/model"}, "data", made_by="02")
    assert "Python code that comes with they/model may run" in capsys.readouterr().out
    assert configure({}, env={"PUSH": "true", "REPO_ID": "me/x"}).push
    assert "push is on: adapter will be sent to me/x" in capsys.readouterr().out
    assert config.trust_remote_code


def test_notebooks_of_the_current_folder_are_not_executed(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    for number in range(1, 6):
        shutil.copy(next((ROOT / "notebooks").glob(f"0{number}*.ipynb")), tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    assert notebooks_folder() == ROOT / "notebooks"
    assert notebooks_folder("notebooks") == Path("notebooks")
    with pytest.raises(InputError, match="not here"):
        notebooks_folder("nowhere")
