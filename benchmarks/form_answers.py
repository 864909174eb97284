"""How long the memory bar of notebook 03 takes to follow a change: seconds until the form has its answer.

The model has Qwen2.5-0.5B's shape; its configuration alone is read. Two columns: each change asked for right after the form was
made, and after the kernel had time to count ahead (``training.count_ahead``). The machine itself may not fit the training:
``--free`` says how much memory to pretend there is.

    OMP_NUM_THREADS=1 python benchmarks/form_answers.py
    OMP_NUM_THREADS=1 python benchmarks/form_answers.py --free 2.5e9
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from train_speed import SHAPES  # noqa: E402

#: In this order: each starts from the values of those before it, as at a form.
CHANGES = [
    ("max_seq_length", 768),
    ("lora_r", 8),
    ("per_device_train_batch_size", 2),
    ("per_device_train_batch_size", 4),
    ("per_device_train_batch_size", 1),
    ("dtype", "bfloat16"),
    ("dtype", "float32"),
    ("gradient_checkpointing", True),
    ("gradient_checkpointing", "auto"),
    ("fast_path", "off"),
    ("fast_path", "lean"),
    ("fast_path", "auto"),
    ("lora_targets", "all-linear"),
    ("lora_targets", "auto"),
    ("lora_dropout", 0.0),
    ("lora_layers", 8),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--free", type=float, help="bytes that a training may take (default: nine tenths of what is free)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cold, warm, counting = asyncio.run(_answers(folder, arguments.free))
    print("| change | at once | counted ahead |\n|---|---:|---:|")
    for (name, value), first, later in zip(CHANGES, cold, warm, strict=True):
        print(f"| {name}={value} | {first:.2f} s | {later:.2f} s |")
    print(json.dumps({"longest_at_once": max(cold), "longest_counted_ahead": max(warm), "seconds_of_counting": counting}))


async def _answers(folder: str, free: float | None) -> tuple[list[float], list[float], float]:
    from transformers import AutoConfig

    from mac_lora_helpers.training import memory, step_memory

    AutoConfig.for_model("qwen2", **SHAPES["full"], tie_word_embeddings=True).save_pretrained(folder)
    if free:
        memory.available = lambda device: int(free / 0.9)
    form = _form(folder)
    cold = [_seconds(form, name, value) for name, value in CHANGES]
    step_memory._models.clear()
    form, begin = _form(folder), time.perf_counter()
    while form._idle.busy:
        await asyncio.sleep(0.1)
    counting, warm = time.perf_counter() - begin, []
    for name, value in CHANGES:
        warm.append(_seconds(form, name, value))
        while form._idle.busy:
            await asyncio.sleep(0.1)
    return cold, warm, round(counting, 1)


def _form(folder: str) -> Any:
    from mac_lora_helpers.config import resolve
    from mac_lora_helpers.ui.memory_form import TrainingForm

    config = resolve({"preset": "local", "model_id": folder, "device": "cpu"}, env={})
    names = [*config.names("training"), "dtype", "max_seq_length"]
    return TrainingForm(config, list(dict.fromkeys(names)))


def _seconds(form: Any, name: str, value: Any) -> float:
    widget, begin = form.fields[name].widget, time.perf_counter()
    widget.value = value
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
