"""A question to the exported file, asked through llama.cpp as an application would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.equivalence import engine_llama_cpp
from mac_lora_helpers.export.gguf.write import best_first

_CONTEXT = 2048


def ask_exported(run: RunDir, config: Config, prompt: str = "", file: str = "") -> dict[str, Any]:
    """Asks one question; greedy.

    Args:
        prompt: the question; empty: ``config.prompt``. file: name of a GGUF file; empty: the one that the Modelfile names.

    Returns:
        ``{"file", "prompt", "answer", "ended", "prompt_tokens"}``.

    Raises:
        MissingArtifact: no GGUF files. InputError: no such file, or llama.cpp is not installed.
    """
    path, question = _choose(run.need("gguf"), file), prompt or config.prompt
    engine = engine_llama_cpp.LlamaCpp(path, context=_CONTEXT)
    try:
        reply = engine.chat([{"role": "user", "content": question}], config.max_new_tokens)
    finally:
        engine.close()
    return {
        "file": path.name,
        "prompt": question,
        "answer": reply["text"],
        "ended": reply["ended"],
        "prompt_tokens": reply["prompt_tokens"],
    }


def _choose(folder: Path, file: str) -> Path:
    """The named file, or the model that comes first in ``best_first``."""
    models = sorted(
        (path for path in folder.glob("*.gguf") if "-tuned-" in path.name), key=lambda path: best_first(path.stem.rpartition("-")[2])
    )
    found = [path for path in models if not file or path.name == file]
    if not found:
        names = ", ".join(path.name for path in models) or "none"
        raise InputError(
            f"no GGUF model {file}".rstrip(), where="export/gguf", fix=f"there are: {names}; gguf_types decides which are written"
        )
    return found[0]
