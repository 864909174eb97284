"""Runs of the suite as a user starts them: the installed command, in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

MESSAGES = [
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there!"}]},
    {"messages": [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]},
]
TEXTS = [{"text": "User: Hello\nAssistant: Hi there!"}, {"text": "User: What is 2+2?\nAssistant: 4"}]


@dataclass(frozen=True)
class Done:
    """A finished ``mac-lora run``."""

    folder: Path
    code: int
    out: str
    err: str

    @property
    def run_dir(self) -> Path:
        return self.folder / "outputs" / "local-lora"

    def json(self, path: str) -> Any:
        return json.loads((self.run_dir / path).read_text())

    def lines(self, path: str) -> list[Any]:
        return [json.loads(line) for line in (self.run_dir / path).read_text().splitlines()]

    def executed(self, name: str) -> Any:
        return nbformat.read(self.run_dir / "notebooks" / f"{name}.ipynb", as_version=4)


def mac_lora_run(folder: Path, *arguments: str, seconds: float = 900, **environment: str) -> Done:
    """``mac-lora run`` in a folder, its home an empty folder beside it, without a network use."""
    home = folder.with_name(folder.name + "-home")
    home.mkdir(exist_ok=True)
    variables = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-m", "mac_lora_helpers", "run", *arguments]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=seconds)
    return Done(folder, done.returncode, done.stdout, done.stderr)


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
