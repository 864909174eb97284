"""Cheap checks of the input before anything runs or is written."""

from __future__ import annotations

import os
from pathlib import Path

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.model import find_base
from mac_lora_helpers.redaction import portable

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def preflight(config: Config) -> None:
    """Refuses what could only fail later.

    Raises:
        InputError: a data file that is not there or empty, a model folder without its files, an input where an output would lie.
    """
    check_data_files(config)
    check_model_folder(config)
    config.refuse_inputs_among_outputs()


def check_data_files(config: Config) -> None:
    """What ``data_files`` names is there, not empty, and of a known kind; no row is read."""
    if config.data_patterns:
        from mac_lora_helpers.data.sources import load_files  # `doctor` must start where numpy is missing

        load_files(config)


def check_model_folder(config: Config) -> None:
    """The model can be trained from, as far as this machine knows, and a folder of the user's has a tokenizer."""
    base, place = find_base(config), f"model_id: {portable(config.model_id)}"
    if base.problem:
        raise InputError(f"the model cannot be used: {base.problem}", where=place, fix=base.fix or "set model_id to another model")
    folder = Path(config.model_path)
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.suffix in (".py", ".json", ".jinja", ".safetensors") and not os.access(file, os.R_OK):
            raise InputError(f"{file.name} may not be read by this user", where=place, fix="give this user the right to read it")
    modules = Path(os.environ.get("HF_MODULES_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "modules").expanduser()
    if config.trust_remote_code and modules.exists() and not os.access(modules, os.R_OK | os.W_OK | os.X_OK):
        what = "the folder into which a model's code is copied may not be used by this user"
        raise InputError(
            what, where=portable(str(modules)), fix="give this user the right to it, or set HF_MODULES_CACHE to another folder"
        )
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise InputError("the model folder has no tokenizer", where=place, fix="save it there too: tokenizer.save_pretrained(folder)")
