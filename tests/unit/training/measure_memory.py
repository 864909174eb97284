"""Trains two steps of a random model in a process of its own and prints predicted and measured peak memory as JSON.

Argument: a JSON object with ``family``, ``shape`` (the configuration's values), ``rows``, ``tokens``, ``out_dir`` and parameters.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]


def main():
    import nbformat  # noqa: F401  (libraries are no part of the measurement)
    import torch
    from tiny import tiny_tokenizer
    from training_rows import dataset, rows
    from transformers import AutoConfig, AutoModelForCausalLM

    import mac_lora_helpers.training.sft  # noqa: F401
    from mac_lora_helpers import training
    from mac_lora_helpers.artifacts import RunDir
    from mac_lora_helpers.config import resolve
    from mac_lora_helpers.training import memory

    spec = json.loads(sys.argv[1])
    family, shape, count, length = (spec.pop(name) for name in ("family", "shape", "rows", "tokens"))
    batch = {"max_seq_length": length, "per_device_train_batch_size": count, "gradient_accumulation_steps": 1, "max_steps": 2}
    config = resolve({"preset": "local", **batch, **spec}, env={})
    run = RunDir(config.out_dir)
    run.write_json("manifest", {"fingerprint": "none"})
    memory.settle()
    baseline = memory.used("cpu")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), dtype=getattr(torch, config.dtype))
    model.memory_baseline = baseline
    made = dataset(rows(2 * count, shortest=length, longest=length, vocabulary=min(shape["vocab_size"], 5000)))
    names = {"run": run, "config": config, "model": model, "tokens": {"train": made}, "tokenizer": tiny_tokenizer()}
    trainer = training.run_cells({**names, "device": SimpleNamespace(name="cpu")}, "adapter", "trainer")["trainer"]
    trainer.train()
    print(json.dumps({"predicted": trainer.forecast.total_bytes, "measured": trainer.meter.peak, "parts": trainer.forecast.parts}))


if __name__ == "__main__":
    main()
