"""Builds a run directory as notebooks 02 and 03 leave it, around a tiny random model."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import tiny_model

from mac_lora_helpers import config as parameters
from mac_lora_helpers.artifacts import RunDir

SENTENCES = [
    "What is the capital of France?",
    "The quick brown fox jumps over the lazy dog",
    'Say {"a": 1} twice, please.',
    "How are you? I'm fine, thanks!",
    "user assistant 0123456789",
    "Hello   there,\n\nhow is it?",
    "Größe, naïve café, 北京 – ok?",
    "I've seen the dog's 42 jumps",
]


#: Folders that live as long as the test session.
_PLACES: list[tempfile.TemporaryDirectory] = []


@dataclass
class Trained:
    """A finished run: ``run`` directory, resolved ``config``, the ``base`` folder."""

    run: RunDir
    config: parameters.Config
    base: Path


def conversations(count: int = 8) -> list[dict[str, Any]]:
    rows = []
    for index in range(count):
        question = SENTENCES[index % len(SENTENCES)]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"The answer is {index}."}]
        rows.append({"messages": [{"role": "system", "content": "Be brief."}, *messages] if index % 3 == 0 else messages})
    return rows


def add_adapter(base: Path, folder: Path, strength: float = 0.5, seed: int = 1, options: dict | None = None, **lora: Any) -> None:
    """A PEFT adapter with random matrices, strong enough to change the greedy tokens.

    Args:
        options: how the base is loaded.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "task_type": "CAUSAL_LM", **lora}
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, **(options or {})), LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                weight.normal_(std=strength)
            elif "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * strength / 10)
    model.save_pretrained(folder)


@functools.cache
def _base(family: str, model: str) -> Path:
    """A random base, made once for each set of settings."""
    place = tempfile.TemporaryDirectory(prefix="bases-")
    _PLACES.append(place)
    return tiny_model(Path(place.name) / "base", family, **{"initializer_range": 0.2, **json.loads(model)})


def make_trained(
    root: Path, family: str = "qwen2", rows: list | None = None, lora: dict | None = None, tokenizer: Any = None, **model: Any
) -> Trained:
    """Base model, adapter, ``train_config.json`` and held-out rows in a fresh run directory."""
    if tokenizer is not None:
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model = {"vocab_size": len(tokenizer), **ids, **model}
    base = shutil.copytree(_base(family, json.dumps(model, sort_keys=True)), root / "base")
    if tokenizer is not None:
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            (base / file).unlink(missing_ok=True)
        tokenizer.save_pretrained(base)
    return trained_on(base, root, rows=rows, **(lora or {}))


def trained_on(base: Path, root: Path, options: dict | None = None, rows: list | None = None, **lora: Any) -> Trained:
    """The same on a base that is there."""
    run = RunDir(root / "run")
    add_adapter(base, run.path("adapter"), options=options, **lora)
    values = {"model_id": str(base), "out_dir": str(root / "run"), "lora_r": lora.get("r", 4), "lora_alpha": lora.get("lora_alpha", 8)}
    config = parameters.resolve({"preset": "local", **values, "max_new_tokens": 12}, env={})
    run.write_json("train_config", config.model_dump())
    run.write_lines("test", rows or conversations())
    return Trained(run, config, base)


def copy_of(made: Trained, root: Path) -> Trained:
    """The same run and base in another folder."""
    shutil.copytree(made.run.root, root / "run")
    shutil.copytree(made.base, root / "base")
    values = {"model_id": str(root / "base"), "out_dir": str(root / "run")}
    edit_json(root / "run" / "train_config.json", **values)
    return Trained(RunDir(root / "run"), changed(made.config, **values), root / "base")


def edit_json(path: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    value = {key: item for key, item in json.loads(path.read_text(encoding="utf-8")).items() if key not in (*drop, "digest")}
    value.update(changes)
    path.write_text(json.dumps(value), encoding="utf-8")


def changed(config: parameters.Config, **values: Any) -> parameters.Config:
    """A copy of the config with values set as a form sets them."""
    copy = config.model_copy(deep=True)
    for name, value in values.items():
        setattr(copy, name, value)
    return copy
