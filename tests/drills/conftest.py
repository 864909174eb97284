"""Two small finished runs, made once by the stages themselves; tests copy and damage them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from exporting import Exported, export_all

from mac_lora_helpers.artifacts import RunDir, adapter_digest
from mac_lora_helpers.config import Config, resolve

ROWS = 24
VALUES = {
    "preset": "smoke",
    "max_steps": 6,
    "learning_rate": 0.01,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "save_steps": 3,
    "eval_examples": 2,
    "max_new_tokens": 4,
    "gguf_types": "F16",
    "fast_path": "off",
    "device": "cpu",
}


@dataclass(frozen=True)
class Made:
    """A run directory and the parameters it was made with."""

    folder: Path
    values: dict

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder)

    @property
    def config(self) -> Config:
        return resolve({**self.values, "out_dir": str(self.folder)}, env={})

    def copy(self, to: Path, *without: str) -> Made:
        """The same run elsewhere, some artefacts left out."""
        left_out = {str(self.folder / name) for name in without}
        shutil.copytree(self.folder, to, ignore=lambda place, names: [name for name in names if f"{place}/{name}" in left_out])
        return Made(to, self.values)


def rows(count: int, word: str) -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": f"What is {word} {i}?"}, {"role": "assistant", "content": f"It is {word} number {i}."}]}
        for i in range(count)
    ]


def make(folder: Path, word: str, seed: int) -> Made:
    """Stages 01 to 04 as the notebooks call them, and of 05 what is quick: the record of a check, and the card."""
    from mac_lora_helpers import environment
    from mac_lora_helpers.export import write_card

    file = folder.with_name(f"{folder.name}.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(ROWS, word)))
    made = Made(folder, {**VALUES, "data_files": str(file), "seed": seed, "lora_alpha": 32 * seed})
    run, config = made.run, made.config
    run.write_json("environment", environment.check_environment(config).to_dict())
    format_data(made)
    train(made)
    evaluate(made)
    about = adapter_digest(run.need("adapter"))
    run.write_json("equivalence", {"passed": None, "artefacts": [], "control": {}, "conditions": {"adapter_digest": about}})
    write_card(run, config)
    return made


def format_data(made: Made) -> None:
    from mac_lora_helpers import data

    run, config = made.run, made.config
    source = data.load(config)
    found = data.validate(source, config)
    splits = data.split(found, config)
    data.save(run, source, found, splits, data.encode(splits, data.load_tokenizer(config), config), config)


def train(made: Made) -> None:
    from mac_lora_helpers import training

    training.run_training(made.run, made.config)


def evaluate(made: Made) -> None:
    from mac_lora_helpers import data, evaluation

    run = made.run
    config = made.config.inherit(run.config("train_config"), "data", "training", made_by="03_lora_training.ipynb")
    _, tokens = data.load_tokens(run)
    trained = evaluation.load(run, config)
    losses = evaluation.compare_losses(trained, tokens["test"])
    answers = evaluation.compare_answers(trained, run.read_lines("test"), config)
    with run.begin(4) as stage:
        evaluation.save(stage, evaluation.score(losses, answers), answers, trained)


def export(made: Made) -> Exported:
    """Notebook 05; takes longest."""
    from mac_lora_helpers import export as out

    run = made.run
    config = made.config.inherit(run.config("train_config"), "data", "training", made_by="03_lora_training.ipynb")
    written = export_all(run, config)
    written.check()
    out.write_card(run, config)
    out.write_job(run, config)
    out.push(out.plan_push(run, config), run)
    return written


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> tuple[Made, Made]:
    root = tmp_path_factory.mktemp("runs")
    return make(root / "one", "red", 1), make(root / "two", "blue", 2)


@pytest.fixture
def finished(whole) -> Made:
    """The finished run itself; not to be changed."""
    return whole[0]


@pytest.fixture
def made(whole, tmp_path) -> Made:
    """A fresh copy of a finished run."""
    return whole[0].copy(tmp_path / "run")


@pytest.fixture
def light(whole, tmp_path) -> Made:
    """The same without the large files: checkpoints and exported models."""
    return whole[0].copy(tmp_path / "run", "checkpoints", "export/merged", "export/gguf", "export/mlx")


@pytest.fixture
def other(whole) -> Made:
    """Another finished run, with other data and another seed; not to be changed."""
    return whole[1]


#: Code that comes with a model and leaves a mark when it runs.
REMOTE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
pathlib.Path({mark!r}).touch()
from transformers import Qwen2Config, Qwen2ForCausalLM
class OwnConfig(Qwen2Config):
    model_type = "own_with_code"
class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def model_with_code(tmp_path):
    """A model folder that brings its own Python code, which leaves a mark when it runs."""
    from tiny import tiny_model

    folder, mark = tiny_model(tmp_path / "model"), tmp_path / "code-ran"
    (folder / "own.py").write_text(REMOTE.format(mark=str(mark)))
    settings = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "own_with_code", "auto_map": classes}))
    return folder, mark
