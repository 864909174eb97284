"""The files for other engines, all at once: what cannot be written for this model is told and does not stop the rest."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.gguf.chat import ask_exported
from mac_lora_helpers.export.gguf.file import GgufFile
from mac_lora_helpers.export.gguf.types import parse_types
from mac_lora_helpers.export.gguf.write import write_gguf
from mac_lora_helpers.export.mlx.write import MlxReport, write_mlx


@dataclass
class EngineFiles:
    """What was written. ``left_out``: (what, why, what to do instead)."""

    gguf: list[GgufFile] = field(default_factory=list)
    mlx: MlxReport | None = None
    left_out: list[tuple[str, str, str]] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str, int | None, str]]:
        """(file, kind, bytes, note) for a table."""
        rows: list[tuple[str, str, int | None, str]] = [(f"gguf/{file.name}", file.type, file.bytes, file.note) for file in self.gguf]
        if self.mlx:
            rows.append(("mlx/adapters.safetensors", "MLX adapter", self.mlx.bytes, f"rank {self.mlx.rank}, scale {self.mlx.scale:g}"))
        return rows + [("–", f"{what}: not written", None, f"{why}; to do: {fix}") for what, why, fix in self.left_out]


def write_engine_files(run: RunDir, config: Config) -> EngineFiles:
    """Writes the GGUF files that ``gguf_types`` asks for and the MLX adapter.

    Raises:
        InputError: ``gguf_types`` names no type. MissingArtifact: no adapter or no merged model.
    """
    parse_types(config.gguf_types)
    files = EngineFiles()
    for name, write in (("gguf", write_gguf), ("mlx", write_mlx)):
        try:
            made = write(run, config)
        except InputError as error:
            files.left_out.append((name.upper(), error.what, error.fix))
            made = None
        if made:
            setattr(files, name, made)
        else:  # an older run's files would pass for this one's
            shutil.rmtree(run.path(name), ignore_errors=True)
    return files


def ask_rows(run: RunDir, config: Config) -> list[tuple[Any, ...]]:
    """(file, question, answer, ended by itself): the exported file asked ``prompt`` through llama.cpp, if there is one."""
    if not run.has("gguf"):
        return [("–", config.prompt, "no GGUF file was written for this model", None)]
    said = ask_exported(run, config)
    return [(said["file"], said["prompt"], said["answer"], said["ended"])]
