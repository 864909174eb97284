"""Questions to the exported file, asked through llama.cpp as an application would."""

from __future__ import annotations

from mac_lora_helpers.config import Config
from mac_lora_helpers.export.equivalence import engine_llama_cpp
from mac_lora_helpers.export.equivalence.engines import ask
from mac_lora_helpers.export.gguf.write import Gguf


def ask_exported(gguf: Gguf, config: Config, *questions: str) -> list[tuple[str, str, str, bool | None]]:
    """(file, question, answer, ended by itself): greedy answers of the smallest model file; ``prompt`` unless given."""
    wanted = questions or (config.prompt,)
    models = sorted((file for file in gguf.files if file.kind != "LoRA"), key=lambda file: file.bytes)
    missing = engine_llama_cpp.missing() if models else "no GGUF file was written for this model"
    if missing:
        return [("–", question, missing, None) for question in wanted]
    job = {"path": str(models[0].path), "context": 2048, "questions": list(wanted), "limit": config.max_new_tokens}
    said = [found for found in ask("llama_cpp", job) if "answer" in found]
    return [(models[0].path.name, found["prompt"], found["answer"], found["ended"]) for found in said]
