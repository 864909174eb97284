"""Run directories as notebook 03 leaves them, around tiny random models."""

import json
from pathlib import Path

from tiny import tiny_adapter as save_adapter

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config, resolve


def resolved(model_folder: Path, **values) -> Config:
    defaults = {"preset": "local", "model_id": str(model_folder), "device": "cpu", "max_new_tokens": 16, "max_seq_length": 256}
    return resolve({**defaults, **values}, env={})


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
    from mac_lora_helpers.evaluation.losses import labelled
    from mac_lora_helpers.evaluation.questions import trained_turn

    return [labelled(*trained_turn(tokenizer, row["messages"])) for row in rows]


def ask(trained, prompt: str, which: str = "tuned", **values):
    """One answer to one question."""
    from mac_lora_helpers import evaluation

    config = trained.config.model_copy(update=values)
    (answer,) = evaluation.generate(trained, [evaluation.prompt_ids(trained.tokenizer, prompt)], config, which)
    return answer


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
