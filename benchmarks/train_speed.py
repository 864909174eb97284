"""Speed and peak memory of a training step: TRL's plain recipe against the fast path, in one run.

Random weights are built in memory from a configuration (the full shape is Qwen2.5-0.5B's), so nothing is downloaded. Every
case trains a real trainer (notebook 03's cells); its optimizer steps take the variants in turn, so that whatever
else the machine does hits all of them alike; the rates of bare products are measured between rounds. Peak memory comes from one fresh
process a variant. All of it with dropout 0, except the case ``recipe``, which has the reference recipe's 0.05.

    python benchmarks/train_speed.py --quick          # under two minutes, a smaller shape
    python benchmarks/train_speed.py                  # the true shape, some ten minutes on two quiet cores
    python benchmarks/train_speed.py --device cuda    # peak memory is then PyTorch's own count
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from gemm_rates import gemm_rates  # noqa: E402

SHAPES = {
    "full": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
    },
    "quick": {
        "vocab_size": 32000,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 2048,
    },
}
#: Variants: (dtype, what the fast path computes again; None: the plain recipe).
VARIANTS = {
    "plain": ("float32", None),
    "fast": ("float32", "nothing"),
    "fast, saving memory": ("float32", "mlp"),
    "fast, bf16 base": ("bfloat16", "nothing"),
    "one row a pass": ("float32", "nothing"),
}
CASES = {"all tokens": 1.0, "assistant only": 0.5, "recipe": 1.0, "short rows": 1.0}
#: The case ``short rows``: eight rows of so many tokens a step, together as far as ``--length`` goes, and one at a time.
SHORT = 100
BARS = {
    ("all tokens", "fast"): (1.75, 1.0),
    ("all tokens", "fast, saving memory"): (1.5, 0.85),
    ("assistant only", "fast"): (2.2, None),
    ("all tokens", "fast, bf16 base"): (3.3, 0.6),
    ("short rows", "fast"): (1.25, None),
}


def model_config(shape: str) -> Any:
    """A Qwen2 configuration of one of the shapes."""
    from transformers import AutoConfig

    sizes = {"tie_word_embeddings": True, "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    return AutoConfig.for_model("qwen2", **SHAPES[shape], **sizes)


def make_rows(count: int, length: int, vocabulary: int, share: float) -> Any:
    """Random rows; labels on every token, or on the second half of every stretch of 128 (turns of question and answer)."""
    import random

    from datasets import Dataset

    source, made = random.Random(0), []
    for _ in range(count):
        ids = [source.randrange(vocabulary) for _ in range(length)]
        labels = [token if share == 1 or (place % 128) >= 128 * (1 - share) else -100 for place, token in enumerate(ids)]
        made.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(made)


def make_trainer(options: argparse.Namespace, case: str, dtype: str, steps: int, folder: str) -> Any:
    """The recipe's trainer over random weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mac_lora_helpers import training
    from mac_lora_helpers.artifacts import RunDir
    from mac_lora_helpers.config import EMBEDDED_DIR, resolve
    from mac_lora_helpers.environment import Choice

    short = case == "short rows"
    values = {"preset": "local", "max_seq_length": options.length, "max_steps": steps, "gradient_accumulation_steps": 8 if short else 1}
    values |= {
        "fast_path": "off",
        "lora_dropout": 0.05 if case == "recipe" else 0,
        "out_dir": folder,
        "logging_steps": 1,
        "save_steps": 10_000_000,
    }
    config = resolve({**values, "gradient_checkpointing": True, "dtype": dtype}, env={})
    run = RunDir(folder)
    run.write_json("manifest", {"fingerprint": "random rows"})
    torch.manual_seed(0)
    shape = model_config(options.shape)
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype))
    model.memory_baseline = 0
    tokens = {"train": make_rows(16 if short else 4, SHORT if short else options.length, shape.vocab_size, CASES[case])}
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR / "model")
    names = {"run": run, "config": config, "model": model, "tokens": tokens, "tokenizer": tokenizer}
    names |= {"device": Choice(options.device, "benchmark"), "ui": SimpleNamespace(LiveLoss=lambda: None)}
    return training.run_cells(names, "adapter", "trainer")["trainer"]


def switch(trainer: Any, variant: str) -> None:
    """The trainer's next steps take this variant."""
    from mac_lora_helpers.training import fast

    again = VARIANTS[variant][1]
    fast.undo(trainer)
    if again is not None:
        report = fast.make_fast(trainer, recompute=again, compare=False)
        assert report.applied, report.reason
    vars(trainer.passes).pop("split", None)
    if variant == "one row a pass":
        trainer.passes.split = lambda lengths, at_least=1: [[row] for row in range(len(lengths))]


def child_time(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every step by variant, in turn; and the rates of bare products between rounds."""
    from transformers import TrainerCallback

    variants, case = options.variants.split("|"), options.case
    seconds: dict[str, list[list[float]]] = {name: [] for name in variants}
    rates: list[list[list[float]]] = []

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turn = state.global_step % len(variants)
            if turn == 0:
                rates.append(gemm_rates(SHAPES[options.shape], options.length, options.device, lambda: clocks(options)))
            switch(trainer, variants[turn])
            self.start = clocks(options)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            taken = [end - start for end, start in zip(clocks(options), self.start, strict=True)]
            seconds[variants[(state.global_step - 1) % len(variants)]].append(taken)

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, case, VARIANTS[variants[0]][0], len(variants) * (options.rounds + 1), folder)
        trainer.add_callback(Turns())
        trainer.train()
    timed = {name: values[1:] for name, values in seconds.items()}  # the first round warms up
    return {
        "seconds": timed,
        **{
            f"{name}_flops": [statistics.median(column) for column in zip(*(each[place] for each in rates[1:]), strict=True)]
            for place, name in enumerate(("gemm", "own_gemm"))
        },
        "load": os.getloadavg()[0],
    }


def child_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of one variant in this process, and its first step's loss and gradient norm."""
    import resource

    import torch

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, options.case, VARIANTS[options.variants][0], 2, folder)
        switch(trainer, options.variants)
        trainer.train()
        first = trainer.run_log.rows[0]
        path = getattr(trainer.model.get_base_model(), "_fast_path", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"fast_steps": path.steps if path else 0, "peak_bytes": peak, "loss": first["loss"], "grad_norm": first["grad_norm"]}


def clocks(options: argparse.Namespace) -> list[float]:
    """Wall clock, and this process's CPU time by thread, after all queued work is done.

    CPU time is what a step costs when something else takes the cores away meanwhile; it is only meaningful with one
    thread, because waiting threads spin.
    """
    import torch

    if options.device != "cpu":
        getattr(torch, options.device).synchronize()
    return [time.perf_counter(), time.process_time() / options.threads]


def step_flops(shape: dict[str, int], length: int, share: float) -> float:
    """Multiplications and additions of one fast step that keeps everything, adapters of rank 16 on q, k, v, o.

    Forward and input gradient of each frozen product; three products for each adapter matrix; causal attention with two
    products forward and five backward over half the square; the head twice, at positions with a label.
    """
    width, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    key = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    attention, mlp = 2 * width * (width + key), 3 * width * inner
    adapters = 16 * (4 * width + 2 * width + 2 * key)
    last = 1 if share > 0.9 else share
    frozen = layers * attention + (layers - 1 + last) * mlp
    skipped = 2 * width * (width + 2 * key)
    dense = length * (4 * frozen + 6 * layers * adapters - skipped)
    return dense + layers * 7 * length**2 * width + 4 * length * share * shape["vocab_size"] * width


def spawn(options: argparse.Namespace, child: str, case: str, variants: list[str]) -> dict[str, Any]:
    """Runs a child of this script and reads its last line."""
    command = [sys.executable, __file__, "--child", child, "--case", case, "--variants", "|".join(variants)]
    command += ["--shape", options.shape, "--length", str(options.length), "--rounds", str(options.rounds), "--device", options.device]
    done = subprocess.run([*command, "--threads", str(options.threads)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All cases: timings by case, memory and first step by case and variant."""
    float32 = ["plain", "fast", "fast, saving memory"]
    timing = {"all tokens": float32, "assistant only": ["plain", "fast"], "recipe": ["plain", "fast"]}
    timing["short rows"] = ["one row a pass", "fast"]
    result: dict[str, Any] = {"time": {}, "memory": {}}
    for case, variants in timing.items():
        result["time"][case] = spawn(options, "time", case, variants)
        if case not in ("recipe", "short rows"):
            result["memory"][case] = {name: spawn(options, "memory", case, [name]) for name in variants}
    if options.bf16:
        result["time"]["bf16"] = spawn(options, "time", "all tokens", ["fast, bf16 base"])
        result["memory"]["all tokens"]["fast, bf16 base"] = spawn(options, "memory", "all tokens", ["fast, bf16 base"])
        result["time"]["all tokens"]["seconds"] |= result["time"].pop("bf16")["seconds"]
    return result


def summarize(options: argparse.Namespace, result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each case and variant, with ratios to the first one."""
    rows = []
    for case, timed in result["time"].items():
        medians = {name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in timed["seconds"].items()}
        plain = next(iter(medians.values()))
        for name, (seconds, cpu_seconds) in medians.items():
            memory, base = (result["memory"].get(case, {}).get(which) for which in (name, "plain"))
            row = {"case": case, "variant": name, "seconds": round(seconds, 4), "speedup": round(plain[0] / seconds, 3)}
            row |= {"cpu_seconds": round(cpu_seconds, 4), "cpu_speedup": round(plain[1] / cpu_seconds, 3)}
            if memory:
                row |= {"peak_mb": round(memory["peak_bytes"] / 1e6), "peak_ratio": round(memory["peak_bytes"] / base["peak_bytes"], 3)}
                row |= {key: memory[key] for key in ("loss", "grad_norm")}
                row |= {f"{key}_difference": abs(memory[key] / base[key] - 1) for key in ("loss", "grad_norm")}
            if name == "fast" and case != "short rows":
                work = step_flops(SHAPES[options.shape], options.length, CASES[case])
                row["gemm_share"] = round(work / seconds / timed["gemm_flops"][0], 3)
                row["cpu_gemm_share"] = round(work / cpu_seconds / timed["gemm_flops"][1], 3)
                row["own_share"] = round(work / seconds / timed["own_gemm_flops"][0], 3)
            rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], threads: int) -> None:
    """Prints the table; with one thread also by CPU time."""
    columns = {"case": 15, "variant": 20, "seconds": 8, "speedup": 8, "gemm_share": 11, "own_share": 10, "peak_mb": 8, "peak_ratio": 11}
    if threads == 1:
        columns |= {"cpu_seconds": 12, "cpu_speedup": 12, "cpu_gemm_share": 15}
    columns |= {"loss": 10, "grad_norm": 10, "loss_difference": 16, "grad_norm_difference": 21}
    print("".join(f"{name:>{width}}" if place > 1 else f"{name:{width}}" for place, (name, width) in enumerate(columns.items())) + "  bar")
    for row in rows:
        bar = BARS.get((row["case"], row["variant"]))
        want = "" if not bar else f">= {bar[0]}x" + (f" at <= {bar[1]}x" if bar[1] else "")
        cells = [row.get(name, "") for name in columns]
        texts = [
            f"{cell:.3g}" if isinstance(cell, float) and cell < 0.001 else f"{cell:.6g}" if isinstance(cell, float) else str(cell)
            for cell in cells
        ]
        print(
            "".join(
                f"{text:>{width}}" if place > 1 else f"{text:{width}}"
                for place, (text, width) in enumerate(zip(texts, columns.values(), strict=True))
            ),
            want,
        )


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import version

    names = ("torch", "transformers", "trl", "peft")
    return {
        "chip": chip(options.device),
        "bf16_instructions": bool(bf16_flags()),
        "threads": options.threads,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "shape": {**SHAPES[options.shape], "tokens": options.length, "rows": 1},
        "rounds": options.rounds,
        "device": options.device,
    }


def chip(device: str) -> str:
    """The processor's or the GPU's name."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if platform.system() == "Darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    wanted = ("model name", "cpu family", "model\t")
    return ", ".join(dict.fromkeys(" ".join(line.split()) for line in lines if line.startswith(wanted)))


def bf16_flags() -> list[str]:
    """Instructions for bfloat16 products that this CPU reports (Linux)."""
    path = Path("/proc/cpuinfo")
    words = path.read_text().split() if path.exists() else []
    return [flag for flag in ("avx512_bf16", "amx_bf16", "bf16") if flag in words]


def parse() -> argparse.Namespace:
    """Command-line options; the child ones are this script's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller shape, three rounds")
    parser.add_argument("--rounds", type=int, help="timed rounds after one that warms up")
    parser.add_argument("--length", type=int, help="tokens in the row")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="also a bfloat16 base; default: if the chip can")
    for name in ("--child", "--case", "--variants", "--shape"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shape = options.shape or ("quick" if options.quick else "full")
    options.length = options.length or (256 if options.quick else 512)
    options.rounds = options.rounds or (3 if options.quick else 5)
    if options.bf16 is None:
        options.bf16 = options.device == "cuda" or bool(bf16_flags())
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    return options


def main() -> None:
    """Measures, prints the table and one JSON line."""
    options = parse()
    if options.child:
        import warnings

        warnings.simplefilter("ignore")
        print(json.dumps({"time": child_time, "memory": child_memory}[options.child](options)))
        return
    about = conditions(options)
    rows = summarize(options, measured := measure(options))
    show(rows, options.threads)
    if not options.bf16:
        print("bf16 base: not measured, this chip has no bfloat16 instructions")
    after = {"load_after": {case: round(timed["load"], 2) for case, timed in measured["time"].items()}}
    for name in ("gemm_flops", "own_gemm_flops"):
        after[name] = {case: round(timed[name][0] / 1e9) * 10**9 for case, timed in measured["time"].items()}
    print(json.dumps({"benchmark": "train_speed", "rows": rows, "conditions": {**about, **after}}))


if __name__ == "__main__":
    main()
