"""Cheap checks of the input before anything runs or is written."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import portable

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
    """A ``model_id`` that is a folder, or is written like one, holds a config, weights and a tokenizer."""
    if config.model_id == EMBEDDED:
        return
    folder = Path(config.model_path)
    written_as_path = config.model_id.startswith((".", "/", "~")) or config.model_id.count("/") > 1
    if not folder.is_dir():
        if written_as_path or folder.exists():
            raise InputError("no such model folder", where=f"model_id: {portable(config.model_id)}", fix="check the path, or name a Hub id")
        return
    place = f"model_id: {portable(config.model_id)}"
    if not (folder / "config.json").exists():
        raise InputError("the folder has no config.json", where=place, fix="name a folder written by save_pretrained()")
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise InputError("the model folder has no tokenizer", where=place, fix="save it there too: tokenizer.save_pretrained(folder)")
    if not any(folder.glob("*.safetensors")):
        raise InputError("the model folder has no *.safetensors weights", where=place, fix="save it with model.save_pretrained(folder)")
