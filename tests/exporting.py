"""Notebook 05 up to the check, for tests that need its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mac_lora_helpers import export
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config


@dataclass
class Exported:
    """What the cells of notebook 05 hold after the files are written."""

    run: RunDir
    source: Any
    reference: Any
    merged: Any
    gguf: Any
    mlx: Any

    def check(self, *names: str) -> dict[str, dict[str, Any]]:
        """Checks the named artefacts, or all: name → its entry in ``equivalence.json``."""
        check = export.Check(self.reference, self.gguf, self.mlx)
        if names:
            kept = [artefact for artefact in check.artefacts if artefact.name in names]
            check.artefacts, check.entries = kept, [check._blank(artefact) for artefact in kept]
        self.lines = list(check.lines())
        self.last = check
        return {entry["name"]: entry for entry in check.entries}


def merge(run: RunDir, config: Config) -> tuple[Any, Any, Any]:
    """Source, reference and merged model, as the notebook's first cells make them."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = export.open_source(run, config)
    with source.loading():
        base = AutoModelForCausalLM.from_pretrained(source.base, dtype=torch.float32, **source.options)
        head = source.prepare(base)
        model = PeftModel.from_pretrained(base, source.folder)
    reference = export.Reference(model, run, source)
    return source, reference, export.write_merged(model.merge_and_unload(safe_merge=True), run, source, head)


def export_all(run: RunDir, config: Config) -> Exported:
    """Every file that the config asks for."""
    source, reference, merged = merge(run, config)
    gguf = export.Gguf(run, config, source)
    gguf.convert()
    gguf.quantize()
    return Exported(run, source, reference, merged, gguf, export.write_mlx(run, config, source))
