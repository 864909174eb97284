"""Run directories with a real adapter on a tiny base, as stages 01 to 04 leave them."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import tiny_model

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config, resolve

FINGERPRINT = "sha256:" + "5e" * 32

ARTEFACTS = {
    "environment": {"python": "3.11.9", "packages": {"torch": {"version": "2.13.0"}, "peft": {"version": "0.21.2"}, "trl": None}},
    "manifest": {
        "source": "embedded",
        "format": "messages",
        "rows": {"read": 240, "accepted": 239, "rejected": 1},
        "splits": {"train": 200, "valid": 12, "test": 27},
        "tokens": {"total": 12345, "supervised": 4567},
        "truncation": {"rows_cut": 0, "answers_cut": 0, "eos_lost": 0, "dropped": 0},
        "template": {"name": "chatml", "masking": "assistant"},
        "fingerprint": FINGERPRINT,
    },
    "train_metrics": {"steps": 40, "first_loss": 2.5, "last_loss": 0.125, "seconds": 7.25, "device": "cpu", "dtype": "float32"},
    "eval_metrics": {
        "base": {"loss": 2.0, "perplexity": 7.389, "exact_match": 0.0},
        "tuned": {"loss": 0.5, "perplexity": 1.649, "exact_match": 0.925},
        "examples": 27,
        "verdict": "better: exact match rose on 27 held-out examples",
    },
    "equivalence": {
        "artefacts": [
            {"name": "merged", "prompts": 8, "prompt_ids_equal": True, "greedy_agreement": 1.0, "passed": True},
            {"name": "gguf/Q4_0", "prompts": 8, "prompt_ids_equal": True, "greedy_agreement": 0.75, "passed": None},
        ]
    },
}


def write_adapter(folder: Path, base: str | Path, base_id: str | None = None, seed: int = 1) -> Path:
    """A LoRA adapter with non-zero B on the model in ``base``; its configuration names ``base_id``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    tuned.save_pretrained(folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_id or str(base)
    path.write_text(json.dumps(config))
    return folder


def finished_run(
    root: Path, *, base_id: str = "Qwen/Qwen2.5-0.5B-Instruct", base: Path | None = None, **parameters
) -> tuple[RunDir, Config]:
    """A run that stages 01 to 04 have been through, and a config of stage 05."""
    base = base or tiny_model(root / "base")
    values = {"preset": "local", "out_dir": str(root / "run"), "model_id": base_id, "prompt": "Hello there, how are you?", **parameters}
    config = resolve(values, env={})
    run = RunDir(root / "run")
    write_adapter(run.path("adapter"), base, base_id)
    saved = config.model_dump()
    run.write_json("train_config", {"config": saved})
    for name, content in ARTEFACTS.items():
        run.write_json(name, {**content, "config": saved} if name == "manifest" else content)
    run.write_lines("test", [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}])
    return run, config
