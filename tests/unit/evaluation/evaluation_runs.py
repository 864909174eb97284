"""Run directories as notebook 03 leaves them, around tiny random models."""

import json
from pathlib import Path

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config, resolve


def resolved(model_folder: Path, **values) -> Config:
    defaults = {"preset": "local", "model_id": str(model_folder), "device": "cpu", "max_new_tokens": 16, "max_seq_length": 256}
    return resolve({**defaults, **values}, env={})


def save_adapter(model_folder: Path, folder: Path, strength: float = 0.5, seed: int = 1, **lora) -> Path:
    """A PEFT adapter with random matrices; ``strength`` is the standard deviation of lora_B."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **lora}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=strength)
            elif name.endswith("bias") and settings.get("bias", "none") != "none":
                weight.add_(0.5)
    model.save_pretrained(folder)
    return folder


def make_run(root: Path, model_folder: Path, strength: float = 0.5, **lora) -> RunDir:
    run = RunDir(root)
    save_adapter(model_folder, run.path("adapter"), strength, **lora)
    return run


def chat_rows(count: int) -> list[dict]:
    """Questions of different lengths; every third has a system turn."""
    rows = []
    for index in range(count):
        question = "What is " + "the capital of " * (index % 5) + f"France {index}?"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is Paris {index}."}]
        rows.append({"messages": [{"role": "system", "content": "Be brief."}, *messages] if index % 3 == 0 else messages})
    return rows


def token_rows(tokenizer, rows: list[dict]) -> list[dict]:
    """``input_ids`` and ``labels`` of chat rows, the answers' tokens counting."""
    from mac_lora_helpers.evaluation.general import conversation_tokens

    return [conversation_tokens(tokenizer, row["messages"]) for row in rows]


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
