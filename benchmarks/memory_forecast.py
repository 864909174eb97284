"""Predicted against measured peak memory of a training, one fresh process a point.

Random weights are built in memory from a configuration; nothing is downloaded. Each point builds the recipe's trainer
(notebook 03's cells) and trains two steps, which are measured: on the CPU the process's resident set above what it
was before the model, on a GPU PyTorch's own count. The prediction is made in another process, from the configuration. The
allowances of the forecast were set while looking at points of the family qwen2; llama and gpt_neox (which the fast path
does not know) are held out.

    python benchmarks/memory_forecast.py --quick                 # under two minutes, four small points
    python benchmarks/memory_forecast.py --keep points.jsonl     # all points, some ten minutes on a quiet core; can be taken up again
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: hidden, intermediate, layers, heads, key-value heads, vocabulary.
SIZES = {
    "small": (256, 704, 6, 4, 2, 32000),
    "medium": (512, 1408, 6, 8, 4, 16000),
    "large": (896, 2432, 4, 14, 2, 32000),
}
HELD_OUT = ("llama", "gpt_neox")
OFF, ON = False, True
#: family, size, rows, tokens, gradient checkpointing, dtype, fast_path.
POINTS = [
    ("qwen2", "small", 1, 512, OFF, "float32", "off"),
    ("qwen2", "small", 1, 512, OFF, "float32", "auto"),
    ("qwen2", "small", 4, 256, ON, "float32", "off"),
    ("qwen2", "medium", 2, 256, OFF, "float32", "off"),
    ("qwen2", "medium", 2, 256, OFF, "float32", "auto"),
    ("qwen2", "medium", 2, 384, OFF, "float32", "lean"),
    ("qwen2", "medium", 1, 640, OFF, "bfloat16", "auto"),
    ("qwen2", "large", 1, 320, ON, "float32", "off"),
    ("qwen2", "large", 1, 320, OFF, "float32", "auto"),
    ("llama", "small", 2, 384, OFF, "float32", "off"),
    ("llama", "small", 1, 640, ON, "float32", "off"),
    ("llama", "small", 4, 192, OFF, "float32", "auto"),
    ("llama", "small", 1, 512, OFF, "bfloat16", "auto"),
    ("llama", "medium", 1, 640, OFF, "float32", "auto"),
    ("llama", "medium", 2, 320, OFF, "float32", "off"),
    ("llama", "medium", 1, 512, ON, "bfloat16", "off"),
    ("llama", "medium", 1, 512, OFF, "bfloat16", "off"),
    ("llama", "medium", 2, 256, OFF, "float32", "lean"),
    ("llama", "large", 1, 320, OFF, "float32", "off"),
    ("llama", "large", 1, 288, OFF, "float32", "auto"),
    ("llama", "large", 1, 384, OFF, "bfloat16", "auto"),
    ("gpt_neox", "small", 1, 512, OFF, "float32", "off"),
    ("gpt_neox", "small", 2, 384, OFF, "bfloat16", "off"),
    ("gpt_neox", "medium", 2, 320, ON, "float32", "off"),
    ("gpt_neox", "large", 1, 288, OFF, "float32", "off"),
]
QUICK = [0, 1, 12, 21]
STEPS = 2
NEAR = 0.10


def recorded() -> list[int]:
    """Bytes that each point of ``POINTS`` took when it was measured last: the table in RESULTS.md."""
    table = (Path(__file__).parent / "RESULTS.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (?:qwen2|llama|gpt_neox)\*? \| (?:[^|]+\|){5} \d+ \| (\d+) \|", table, re.M)
    if len(found) != len(POINTS):
        raise SystemExit(f"RESULTS.md has {len(found)} measured points, not {len(POINTS)}")
    return [int(text) * 1_000_000 for text in found]


def model_config(family: str, size: str) -> Any:
    """A configuration of one family and size."""
    from transformers import AutoConfig

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    values = dict(zip(names, SIZES[size], strict=True))
    if family == "gpt_neox":
        del values["num_key_value_heads"]
    return AutoConfig.for_model(family, **values, max_position_embeddings=2048, bos_token_id=None, eos_token_id=0, pad_token_id=0)


def parameters(point: tuple[Any, ...], folder: str) -> Any:
    """The resolved config of one point."""
    from mac_lora_helpers.config import resolve

    _, _, rows, tokens, checkpointing, dtype, path = point
    values = {"max_seq_length": tokens, "per_device_train_batch_size": rows, "gradient_accumulation_steps": 1, "max_steps": STEPS}
    values |= {"preset": "local", "gradient_checkpointing": checkpointing, "dtype": dtype, "fast_path": path, "out_dir": folder}
    return resolve(values, env={})


def predict(found: dict[str, Any], device: str) -> dict[str, Any]:
    """The measured point with its prediction."""
    from mac_lora_helpers import training

    point = found["point"]
    forecast = training.forecast(parameters(point, "unused"), model_config(*point[:2]), None, device, 10**12)
    if forecast.path != found["path"]:
        raise SystemExit(f"{point}: predicted on the {forecast.path} path, trained on the {found['path']} one")
    return {**found, "predicted": forecast.total_bytes, "ratio": forecast.total_bytes / found["measured"], "parts": forecast.parts}


def measure(point: tuple[Any, ...], device: str, folder: str) -> dict[str, Any]:
    """Measured bytes of one point; in a process of its own."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mac_lora_helpers import training
    from mac_lora_helpers.artifacts import RunDir
    from mac_lora_helpers.config import EMBEDDED_DIR
    from mac_lora_helpers.environment import Choice
    from mac_lora_helpers.training import memory, sft  # noqa: F401  (libraries are no part of the measurement)

    family, size, rows, tokens, _, dtype, _ = point
    config = parameters(point, folder)
    run = RunDir(folder)
    run.write_json("manifest", {"fingerprint": "random rows"})
    shape = model_config(family, size)
    memory.settle()
    baseline = memory.used("cpu")
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype))
    model.memory_baseline = baseline
    ids = torch.randint(0, shape.vocab_size, (rows * STEPS, tokens)).tolist()
    made = {"train": Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])}
    names = {"run": run, "config": config, "model": model, "tokens": made, "device": Choice(device, "benchmark")}
    names |= {"tokenizer": AutoTokenizer.from_pretrained(EMBEDDED_DIR / "model"), "ui": SimpleNamespace(LiveLoss=lambda: None)}
    trainer = training.run_cells(names, "adapter", "trainer")["trainer"]
    trainer.train()
    return {"point": list(point), "measured": trainer.meter.peak, "path": "fast" if trainer.fast.applied else "plain"}


def run_point(point: tuple[Any, ...], device: str) -> dict[str, Any]:
    """``measure`` in a fresh process, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--device", device, "--point", json.dumps([*point, folder])]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{point}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def line(found: dict[str, Any]) -> str:
    """One row of the table."""
    family, size, rows, tokens, checkpointing, dtype, path = found["point"]
    what = (
        f"{family}{'*' if family in HELD_OUT else ''} | {size} | {rows} × {tokens} | {'on' if checkpointing else 'off'} | {dtype} | {path}"
    )
    return f"| {what} | {found['predicted'] / 1e6:.0f} | {found['measured'] / 1e6:.0f} | {found['ratio'] - 1:+.1%} |"


def summary(found: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """What the table says in four numbers, and the conditions."""
    import torch

    from mac_lora_helpers.training.saving import versions

    held_out = [item for item in found if item["point"][0] in HELD_OUT]
    share = lambda items: round(sum(abs(item["ratio"] - 1) <= NEAR for item in items) / len(items), 3) if items else None  # noqa: E731
    return {
        "points": len(found),
        "within_10_percent": share(found),
        "within_10_percent_held_out": share(held_out),
        "worst_under": round(min(item["ratio"] for item in found) - 1, 3),
        "worst_over": round(max(item["ratio"] for item in found) - 1, 3),
        "conditions": {
            "device": device,
            "platform": platform.platform(),
            "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
            "steps": STEPS,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "versions": versions(),
        },
    }


def main() -> None:
    """Runs the points one after the other and prints table and summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four small points, under two minutes")
    parser.add_argument("--device", choices=["cpu", "mps", "cuda"], default="cpu")
    parser.add_argument("--keep", metavar="FILE", help="measurements go here as they come; those that are there are not made again")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        *point, folder = json.loads(options.point)
        print(json.dumps(measure(tuple(point), options.device, folder)))
        return
    print("| family (* held out) | size | rows × tokens | checkpointing | dtype | fast_path | predicted MB | measured MB | difference |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    found = []
    for measured in measurements([POINTS[number] for number in QUICK] if options.quick else POINTS, options):
        found.append(predict(measured, options.device))
        print(line(found[-1]), flush=True)
    print(json.dumps(summary(found, options.device)))


def measurements(points: list[tuple[Any, ...]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each point's measurement, from the file if it is there."""
    kept = Path(options.keep) if options.keep else None
    known = [json.loads(text) for text in kept.read_text().splitlines()] if kept and kept.is_file() else []
    for point in points:
        found = next((item for item in known if item["point"] == list(point)), None)
        if found is None:
            found = run_point(point, options.device)
            if kept:
                with kept.open("a") as stream:
                    stream.write(json.dumps(found) + "\n")
        yield found


if __name__ == "__main__":
    main()
