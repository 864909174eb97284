"""Every artefact, damaged in every way, put before the stage that reads it: refused in words, never used.

The stages' own reading functions run on a real finished run directory of the embedded model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drills.conftest import Made, rows, train
from drills.conftest import export as write_exports
from mac_lora_helpers import data, evaluation, training
from mac_lora_helpers.errors import UserError

# The stages, as far as they read


def read_data(made: Made) -> None:
    data.load_tokens(made.run)


def read_trained(made: Made) -> None:
    """Notebook 04 up to the loaded model."""
    run = made.run
    config = made.config.inherit(run.config("train_config"), "data", "training", made_by="03_lora_training.ipynb")
    data.load_tokens(run)
    evaluation.load(run, config)


def read_for_export(made: Made) -> None:
    from mac_lora_helpers.export import open_source

    assert open_source(made.run, made.config).updates.modules


def read_for_card(made: Made) -> None:
    from mac_lora_helpers.export import write_card

    write_card(made.run, made.config)


def read_for_push(made: Made) -> None:
    from mac_lora_helpers.export import plan_push

    plan = plan_push(made.run, made.config)
    if plan.problems:
        raise UserError("; ".join(plan.problems))


#: Artefact → the readers that decide by it.
READERS: dict[str, list[Callable[[Made], None]]] = {
    "data/manifest.json": [read_data],
    "data/train.jsonl": [read_data],
    "data/valid.jsonl": [read_data],
    "data/test.jsonl": [read_data],
    "data/tokens/train.arrow": [read_data],
    "data/tokens/valid.arrow": [read_data],
    "data/tokens/test.arrow": [read_data],
    "train_config.json": [read_trained, read_for_export, read_for_card],
    "adapter/adapter_config.json": [read_trained, read_for_export, read_for_card, read_for_push],
    "adapter/adapter_model.safetensors": [read_trained, read_for_export, read_for_card, read_for_push],
    "train_metrics.json": [read_for_card],
    "eval/metrics.json": [read_for_card],
}


# The damage


def truncated(path: Path, other: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def last_byte_gone(path: Path, other: Path) -> None:
    content = path.read_bytes().rstrip(b"\n")
    path.write_bytes(content[:-1])


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path, other: Path) -> None:
    path.unlink()


def one_digit_changed(path: Path, other: Path) -> None:
    """Near the middle, and so that the form stays what it was."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".arrow":
        content[_place_of_a_token(path)] ^= 1
        path.write_bytes(content)
        return
    places = [i for i, byte in enumerate(content) if byte in b"0123456789"] or [len(content) // 2]
    place = min(places, key=lambda i: abs(i - len(content) // 2))
    content[place] = ord("7") if content[place] != ord("7") else ord("3")
    path.write_bytes(content)


def _place_of_a_token(path: Path) -> int:
    """Where the first row's last token stands in the file; other bytes of an Arrow file may be padding."""
    ids = data.tokens.open_tokens(path)[0]["input_ids"]
    start = path.read_bytes().index(np.array(ids, dtype="<i4").tobytes())
    return start + 4 * (len(ids) - 1)


def noise(path: Path, other: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def another_runs(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def a_folder_instead(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_itself(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGE = [truncated, last_byte_gone, emptied, removed, one_digit_changed, noise, another_runs, a_folder_instead, a_link_to_itself]
#: A card can be written without figures and says then that there are none.
MAY_BE_MISSING = {"train_metrics.json", "eval/metrics.json"}


def cases() -> list[tuple[str, Callable, Callable]]:
    everything = [(name, damage, reader) for name, readers in READERS.items() for damage in DAMAGE for reader in readers]
    return [case for case in everything if not (case[0] in MAY_BE_MISSING and case[1] in (removed, a_link_to_itself))]


def told(error: UserError, made: Made) -> None:
    text = str(error)
    assert error.what
    assert "Traceback" not in text
    text.encode("utf-8")


@pytest.mark.parametrize(("name", "damage", "reader"), cases(), ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_damage_is_refused(name, damage, reader, light, other):
    if reader is read_for_card and name == "train_config.json" and damage in (removed, a_link_to_itself):
        pytest.skip("a card without it says that the recipe is not recorded")
    path = light.folder / name
    damage(path, other.folder / name)
    with pytest.raises(UserError) as caught:
        reader(light)
    told(caught.value, light)


@pytest.mark.parametrize("damage", [removed, a_link_to_itself], ids=lambda value: value.__name__)
@pytest.mark.parametrize("name", ["train_config.json", *sorted(MAY_BE_MISSING)])
def test_a_card_says_what_was_not_recorded(name, damage, light, other):
    from mac_lora_helpers.export import write_card

    damage(light.folder / name, other.folder / name)
    assert name in write_card(light.run, light.config).missing


def test_the_undamaged_run_is_read_by_all(light):
    for reader in (read_data, read_trained, read_for_export, read_for_card, read_for_push):
        reader(light)


@pytest.mark.parametrize("reader", [read_trained, read_for_export, read_for_card, read_for_push], ids=lambda value: value.__name__)
def test_another_runs_whole_adapter_is_not_taken_for_this_ones(reader, light, other):
    shutil.rmtree(light.folder / "adapter")
    shutil.copytree(other.folder / "adapter", light.folder / "adapter")
    with pytest.raises(UserError, match="not the adapter that train_config"):
        reader(light)


@pytest.mark.parametrize("reader", [read_trained, read_for_export, read_for_card, read_for_push], ids=lambda value: value.__name__)
def test_an_adapter_beside_other_data(reader, light, other):
    """02 was run again on other rows and 03 was not: what is held out now may have been trained on."""
    shutil.rmtree(light.folder / "data")
    shutil.copytree(other.folder / "data", light.folder / "data")
    with pytest.raises(UserError, match="trained on other data"):
        reader(light)


@pytest.mark.parametrize("reader", [read_for_card, read_for_push], ids=lambda value: value.__name__)
@pytest.mark.parametrize("name", ["train_metrics.json", "eval/metrics.json", "export/equivalence.json"])
def test_figures_of_another_adapter(name, reader, light, other):
    shutil.copyfile(other.folder / name, light.folder / name)
    with pytest.raises(UserError, match=r"another adapter|is not of the run"):
        reader(light)


def test_an_adapter_that_tells_another_place_of_its_base_is_the_same(light):
    """A push takes the author's folder out of it, and a job's result that comes home gets it back."""
    path = light.folder / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "elsewhere/base"}))
    for reader in (read_trained, read_for_export, read_for_card, read_for_push):
        reader(light)


def test_an_older_run_without_fingerprints_is_still_read(light):
    for name in ("train_config.json", "train_metrics.json", "eval/metrics.json", "data/manifest.json"):
        path = light.folder / name
        value = json.loads(path.read_text())
        path.write_text(json.dumps({key: item for key, item in value.items() if key not in ("digest", "adapter_digest")}))
    for reader in (read_data, read_trained, read_for_export, read_for_card):
        reader(light)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda value: value.__name__)
def test_a_damaged_environment_is_told_or_measured_anew(damage, light, other):
    """It only tells what 01 saw; device and number format are always chosen on this machine."""
    damage(light.folder / "environment.json", other.folder / "environment.json")
    try:
        device, _ = training.place(light.run, light.config)
        assert device.name == "cpu"
    except UserError as error:
        told(error, light)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda value: value.__name__)
def test_a_damaged_card_does_not_stop_the_next_one(damage, light, other):
    damage(light.folder / "export/README.md", light.folder / "data/train.jsonl")
    try:
        read_for_card(light)
        read_for_push(light)
    except UserError as error:
        told(error, light)
    else:
        assert "## Base against tuned" in (light.folder / "export/README.md").read_text()


FOLDERS = ["data", "data/tokens", "adapter", "eval", "export"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_where_a_folder_should_be(name, light):
    shutil.rmtree(light.folder / name)
    (light.folder / name).write_text("")
    refused = 0
    for reader in (read_data, read_trained, read_for_export, read_for_card, read_for_push):
        try:
            reader(light)
        except UserError as error:
            told(error, light)
            refused += 1
    assert refused or name == "eval", "the figures of 04 may be missing; everything else may not"


@pytest.mark.parametrize("name", FOLDERS)
def test_writing_where_a_file_stands_in_the_way(name, light):
    from mac_lora_helpers.artifacts import ARTIFACTS

    shutil.rmtree(light.folder / name)
    (light.folder / name).write_text("")
    below = [key for key, (path, _) in ARTIFACTS.items() if path.startswith(f"{name}/") and path.endswith(".json")]
    for key in below:
        with pytest.raises(UserError, match="a file stands where a folder is needed"):
            light.run.write_json(key, {})
    assert below or name in ("data/tokens", "adapter")
    assert (light.folder / name).read_text() == ""


CHECKPOINT_FILES = ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "checkpoint.json", "rng_state.pth"]


@pytest.mark.parametrize("damage", [truncated, emptied, removed, noise, a_folder_instead], ids=lambda value: value.__name__)
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_damaged_checkpoint_is_passed_over(name, damage, finished, tmp_path, capsys):
    made = finished.copy(tmp_path / "run", "export", "eval", "adapter")
    (made.folder / "checkpoints/state.json").write_text('{"status": "interrupted"}')
    config = made.config.inherit(made.run.read_json("manifest")["config"], "data", made_by="02_data_formatting.ipynb")
    damage(made.folder / "checkpoints/checkpoint-6" / name, Path())
    assert training.last_checkpoint(made.run, config) == str(made.folder / "checkpoints/checkpoint-3")
    assert "checkpoint-6 is incomplete or damaged and is not used" in capsys.readouterr().out


def test_a_training_over_a_damaged_checkpoint_ends_the_same(finished, tmp_path):
    made = finished.copy(tmp_path / "run", "export", "eval", "adapter")
    (made.folder / "checkpoints/state.json").write_text('{"status": "interrupted"}')
    truncated(made.folder / "checkpoints/checkpoint-6/optimizer.pt", Path())
    train(made)
    whole = (finished.folder / "adapter/adapter_model.safetensors").read_bytes()
    assert (made.folder / "adapter/adapter_model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("name", ["seed", "learning_rate", "lora_r"])
def test_a_checkpoint_of_other_settings_is_refused(name, finished, tmp_path):
    made = finished.copy(tmp_path / "run", "export", "eval", "adapter")
    (made.folder / "checkpoints/state.json").write_text('{"status": "interrupted"}')
    changed = Made(made.folder, {**made.values, name: {"seed": 9, "learning_rate": 0.5, "lora_r": 2}[name]})
    with pytest.raises(UserError, match=name):
        config = changed.config.inherit(made.run.read_json("manifest")["config"], "data", made_by="02_data_formatting.ipynb")
        training.last_checkpoint(made.run, config)


def test_pickled_weights_are_nowhere_opened(light, tmp_path):
    """A pickle that would leave a mark if anything loaded it, in an adapter and in a base model."""
    import pickle

    mark = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(mark),))

    adapter = light.folder / "adapter"
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    (adapter / "adapter_model.safetensors").unlink()
    for reader in (read_trained, read_for_export):
        with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
            reader(light)
    base = tmp_path / "base"
    shutil.copytree(light.config.model_path, base)
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(5, "x")))
    from mac_lora_helpers.config import resolve

    config = resolve({**light.values, "model_id": str(base)}, env={})
    with pytest.raises(UserError, match="safetensors"):
        training.load_model(config, *training.place(light.run, config))
    assert not mark.exists()


@pytest.mark.slow
def test_damaged_exports_are_not_passed(made):
    """Merged weights, GGUF and the MLX adapter, each damaged, in one check."""
    written = write_exports(made)
    exported = made.folder / "export"
    for path in [*exported.glob("gguf/*.gguf"), exported / "mlx/adapters.safetensors", exported / "merged/model.safetensors"]:
        truncated(path, path)
    states = {name: entry["passed"] for name, entry in written.check().items()}
    assert [name for name, passed in states.items() if passed] == ["adapter (PEFT)"], states
    with pytest.raises(UserError, match="does not say what the adapter says"):
        written.last.require_passed()
