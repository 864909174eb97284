"""A bfloat16 base against a float32 base on the embedded task: the loss on unseen rows at the end, over several seeds.

One training's end scatters by rounding alone, so float32 is also trained a second way (TRL's own path), as the yardstick: what
separates the two float32 columns is what one seed cannot tell.

    python benchmarks/bfloat16_quality.py                        # five seeds; slow where bfloat16 is emulated
    python benchmarks/bfloat16_quality.py --seeds 42 --steps 20  # a look
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: Column → parameters.
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float32, plain path": {"dtype": "float32", "fast_path": "off"},
    "bfloat16": {"dtype": "bfloat16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the preset's)")
    arguments = parser.parse_args()
    os.environ["MAC_LORA_HEADLESS"] = "1"
    table = [{way: final_loss(seed, arguments.steps, **values) for way, values in WAYS.items()} for seed in arguments.seeds]
    print("| seed | " + " | ".join(WAYS) + " | bfloat16 against float32 |\n|---|" + "---|" * (len(WAYS) + 1))
    for seed, losses in zip(arguments.seeds, table, strict=True):
        print(f"| {seed} | " + " | ".join(f"{loss:.6f}" for loss in losses.values()) + f" | {_apart(losses):+.2%} |")
    means = {way: sum(losses[way] for losses in table) / len(table) for way in WAYS}
    print("| mean | " + " | ".join(f"{mean:.6f}" for mean in means.values()) + f" | {_apart(means):+.2%} |")
    print(json.dumps({"seeds": arguments.seeds, "means": means, "apart": _apart(means), "threads": os.environ.get("OMP_NUM_THREADS")}))


def final_loss(seed: int, steps: int | None, **values: Any) -> float:
    """Trains the embedded task once; nats per token on the rows held out for validation, without dropout."""
    from mac_lora_helpers import data, training
    from mac_lora_helpers.artifacts import RunDir
    from mac_lora_helpers.config import resolve

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        more = {"max_steps": steps} if steps else {}
        config = resolve({"preset": "smoke", "device": "cpu", "seed": seed, "out_dir": folder, **more, **values}, env={})
        run, source = RunDir(Path(folder)), data.load(config)
        found = data.validate(source, config)
        splits = data.split(found, config)
        data.save(run, source, found, splits, data.encode(splits, data.load_tokenizer(config), config), config)
        metrics = training.run_training(run, config)
    print(f"seed {seed}, {', '.join(map(str, values.values()))}: {metrics['valid_loss_tuned']:.6f}", file=sys.stderr, flush=True)
    return metrics["valid_loss_tuned"]


def _apart(losses: dict[str, float]) -> float:
    return losses["bfloat16"] / losses["float32"] - 1


if __name__ == "__main__":
    main()
