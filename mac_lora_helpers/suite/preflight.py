"""Cheap checks of the input before anything runs or is written."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import portable
from mac_lora_helpers.model import find_base

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def preflight(config: Config) -> None:
    """Refuses what could only fail later.

    Raises:
        InputError: a data file that is not there or empty, a model folder without its files.
    """
    check_data_files(config)
    check_model_folder(config)


def check_data_files(config: Config) -> None:
    """Every pattern of ``data_files`` names at least one file, and none of them is empty."""
    for pattern in config.data_patterns:
        files = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not files:
            raise InputError(
                "no such file", where=f"data_files: {portable(pattern)}", fix=f"check the path; it is read from {portable(os.getcwd())}"
            )
        for file in files:
            if os.path.isdir(file):
                raise InputError(
                    "a folder, not a file", where=f"data_files: {portable(file)}", fix=f"name files, for example {file}/*.jsonl"
                )
            if os.path.getsize(file) == 0:
                raise InputError("the file is empty", where=f"data_files: {portable(file)}", fix="put one JSON object on each line")


def check_model_folder(config: Config) -> None:
    """The model can be trained from, as far as this machine knows, and a folder of the user's has a tokenizer."""
    base, place = find_base(config), f"model_id: {portable(config.model_id)}"
    if base.problem:
        raise InputError(f"the model cannot be used: {base.problem}", where=place, fix=base.fix or "set model_id to another model")
    folder = Path(config.model_path)
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise InputError("the model folder has no tokenizer", where=place, fix="save it there too: tokenizer.save_pretrained(folder)")
