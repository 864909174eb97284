"""Data stage against the bare tokenizer: conversations a second, peak memory, batch shapes, padding.

    python benchmarks/data_throughput.py [--quick] [--rows 200000]

One JSON Lines file of synthetic conversations is loaded, checked, split and turned into tokens with
labels, in a process of its own; the other side is the fast tokenizer alone on the same rendered
texts, in batches of 1,000, without reading, checking, rendering or labels. The sides alternate on the
first rows of the file; each round's ratio is to the bare rounds before and after it, and the median
counts. Then our side takes the whole file, for its peak memory. Then the batch shapes of 500 rows at 512 tokens, beside what random order
with padding to the longest row of a batch would show. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SYLLABLES = (
    "ba be bi bo bu ca ce co da de di do fa fi fo ga go ha he ho ka ki la le li lo ma me mi mo na ne ni no pa pe pi po "
    "ra re ri ro sa se si so ta te ti to va ve vi vo za zo ing er al ent ion st tr pr"
).split()
TEMPLATE_NAME = "qwen2_5"
#: Rows of one alternating round.
ROUND_ROWS = 4_000


def words(count: int) -> list[str]:
    """Invented words; a few stand for most of the text, as in a language."""
    rng = random.Random(7)
    return list(dict.fromkeys("".join(rng.choices(SYLLABLES, k=rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(count)))


class Talk:
    """Ultrachat-like conversations: one to four exchanges, answers far longer than questions."""

    def __init__(self, seed: int = 1, answer_words: int = 140) -> None:
        self.answer_words = answer_words
        self.rng, self.words = random.Random(seed), words(40_000)
        weights = [1 / (rank + 2.7) for rank in range(len(self.words))]
        self.stock = self.rng.choices(self.words, weights, k=400_000)

    def text(self, mean: float) -> str:
        """Sentences and paragraphs of log-normal length, around ``mean`` words."""
        count = max(3, int(self.rng.lognormvariate(0, 0.5) * mean))
        start = self.rng.randrange(len(self.stock) - 2000)
        taken = self.stock[start : start + min(count, 2000)]
        sentences = [" ".join(taken[i : i + 12]).capitalize() + "." for i in range(0, len(taken), 12)]
        return "".join(sentence + ("\n\n" if i % 5 == 4 else " ") for i, sentence in enumerate(sentences)).strip()

    def row(self) -> dict:
        """One conversation."""
        messages = []
        for _ in range(self.rng.choice((1, 2, 2, 3, 4))):
            messages.append({"role": "user", "content": self.text(self.answer_words / 6)})
            messages.append({"role": "assistant", "content": self.text(self.answer_words)})
        return {"messages": messages}


def make_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte-level BPE tokenizer with Qwen2's pre-tokenizer and Qwen2.5's chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    rust = Tokenizer(models.BPE())
    rust.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    rust.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    talk = Talk(seed=2)
    rust.train_from_iterator((message["content"] for _ in range(500) for message in talk.row()["messages"]), trainer)
    rust.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = chat_template()
    tokenizer.save_pretrained(folder)


def chat_template() -> str:
    """Qwen2.5's own template, as TRL ships it."""
    import importlib.util

    folder = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
    return (folder / f"{TEMPLATE_NAME}.jinja").read_text(encoding="utf-8")


def prepare(folder: Path, rows: int, answer_words: int = 140) -> None:
    """The tokenizer, the data file and the rendered texts."""
    from transformers import AutoTokenizer
    from transformers.utils.chat_template_utils import render_jinja_template

    make_tokenizer(folder / "model", 8_000)
    template, talk = AutoTokenizer.from_pretrained(folder / "model").chat_template, Talk(answer_words=answer_words)
    with (folder / "data.jsonl").open("w") as data, (folder / "part.jsonl").open("w") as part, (folder / "texts.jsonl").open("w") as texts:
        for start in range(0, rows, 500):
            batch = [talk.row() for _ in range(500)]
            data.writelines(json.dumps(row) + "\n" for row in batch)
            if start >= ROUND_ROWS:
                continue
            part.writelines(json.dumps(row) + "\n" for row in batch)
            rendered, _ = render_jinja_template([row["messages"] for row in batch], chat_template=template)
            texts.writelines(json.dumps(text) + "\n" for text in rendered)


def batches(path: Path, size: int = 1000) -> Iterator[list[str]]:
    """Rendered texts, read outside the timed part."""
    batch: list[str] = []
    with path.open() as stream:
        for line in stream:
            batch.append(json.loads(line))
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def side_bare(folder: Path) -> dict:
    """Seconds that the tokenizer alone takes, as called by users and as the Rust call without offsets."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer("warm up")
    seconds = cpu = rust = rows = tokens = 0
    for index, batch in enumerate(batches(folder / "texts.jsonl")):
        begin, spent = time.perf_counter(), time.process_time()
        ids = tokenizer(batch, add_special_tokens=False)["input_ids"]
        seconds, cpu = seconds + time.perf_counter() - begin, cpu + time.process_time() - spent
        rows, tokens = rows + len(batch), tokens + sum(map(len, ids))
        if index % 4 == 0:
            begin = time.perf_counter()
            ids = [item.ids for item in tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
            rust += (time.perf_counter() - begin) / len(batch)
    speed = (index // 4 + 1) / rust
    return {"seconds": seconds, "cpu": cpu, "rows": rows, "tokens": tokens, "rust_rows_per_second": speed}


def side_ours(folder: Path, file: str) -> dict:
    """Seconds of load, validate, split and encode, and this process's peak memory."""
    from mac_lora_helpers import data
    from mac_lora_helpers.config import resolve

    config = resolve({"model_id": str(folder / "model"), "data_files": str(folder / file), "max_seq_length": 4096}, env={})
    tokenizer = data.load_tokenizer(config)
    import datasets  # noqa: F401 - imported here so that its start-up is not timed

    begin, spent = time.perf_counter(), time.process_time()
    source = data.load(config)
    found = data.validate(source, config)
    checked = time.perf_counter()
    encoded = data.encode(data.split(found, config), tokenizer, config)
    end, cpu = time.perf_counter(), time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": end - begin, "cpu": cpu, "validate": checked - begin, "encode": end - checked,
        "rows": len(found.rows), "peak_bytes": peak, "tokens": encoded.tokens["total"],
        "masking": encoded.masking, "template": encoded.template_name,
    }  # fmt: skip


def side_shapes(folder: Path) -> dict:
    """Shapes and padding of 500 rows at 512 tokens: passes of eight rows a step, and the plain recipe's, for batch sizes 1, 2 and 4."""
    import numpy as np

    from mac_lora_helpers import data
    from mac_lora_helpers.config import resolve
    from mac_lora_helpers.training.batches import plan_passes

    lines = (folder / "data.jsonl").open().readlines()[:500]
    (folder / "five.jsonl").write_text("".join(lines))
    values = {"model_id": str(folder / "model"), "data_files": str(folder / "five.jsonl"), "max_seq_length": 512, "max_damaged_share": 1}
    config = resolve(values, env={})
    encoded = data.encode(data.split(data.validate(data.load(config), config), config), data.load_tokenizer(config), config)
    lengths = [length for part in data.lengths(encoded).values() for length in part]
    plain = plain_lengths(folder, 512)
    result = {}
    for size in (1, 2, 4):
        passes = plan_passes(lengths, 8 * size, 512 * size, seed=42)
        shapes, padding = passes.shapes(passes.order(np.random.default_rng([42, 0])))
        order = np.random.default_rng(42).permutation(len(plain))
        parts = [[plain[row] for row in order[start : start + size]] for start in range(0, len(plain), size)]
        area = sum(len(part) * max(part) for part in parts)
        result[f"batch_{size}"] = {
            "shapes": len(shapes), "padding": round(padding, 4),
            "plain_shapes": len({(len(part), max(part)) for part in parts}), "plain_padding": round(1 - sum(plain) / area, 4),
        }  # fmt: skip
    return {"rows": len(lengths), "mean_length": statistics.mean(lengths), "plain_mean_length": statistics.mean(plain), **result}


def epoch_of(lengths: list[int], batches: list[list[int]], buckets: tuple = ()) -> tuple[int, float]:
    """(distinct shapes, share of padding) of an epoch: each batch as wide as its longest row, or as the next bucket."""
    longest = [max(lengths[index] for index in batch) for batch in batches]
    widths = [next((bucket for bucket in buckets if bucket >= width), width) for width in longest]
    shapes = {(len(batch), width) for batch, width in zip(batches, widths, strict=True)}
    area = sum(len(batch) * width for batch, width in zip(batches, widths, strict=True))
    return len(shapes), round(1 - sum(lengths) / area, 4)


def plain_lengths(folder: Path, limit: int) -> list[int]:
    """Row lengths under the plain recipe: rendered, tokenized, cut at the limit."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = next(batches(folder / "texts.jsonl", 500))
    return [min(len(ids), limit) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def rounds(folder: Path, repeats: int) -> tuple[list[dict], list[dict]]:
    """Bare, ours, bare, ours, …, bare."""
    bare, ours = [child("bare", folder)], []
    for _ in range(repeats):
        ours.append(child("ours", folder, "--file", "part.jsonl"))
        bare.append(child("bare", folder))
    return bare, ours


def ratios(bare: list[dict], ours: list[dict], key: str) -> list[float]:
    """Each round's throughput against the mean of the bare rounds around it."""
    cost = [side[key] / side["rows"] for side in bare]
    return [(cost[i] + cost[i + 1]) / 2 / (side[key] / side["rows"]) for i, side in enumerate(ours)]


def child(side: str, folder: Path, *more: str) -> dict:
    """Runs one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def conditions(rows: int, repeats: int) -> dict:
    """Versions, threads and sizes."""
    names = ("transformers", "tokenizers", "datasets", "pyarrow")
    return {
        "rows": rows, "repeats": repeats, "cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine(),
        "system": platform.system(), "versions": {name: importlib.metadata.version(name) for name in names},
    }  # fmt: skip


def report(bare: list[dict], ours: list[dict], whole: dict, shapes: dict, rows: int) -> None:
    """The table and the JSON line."""
    rates = {
        "bare tokenizer": statistics.median(side["rows"] / side["seconds"] for side in bare),
        "bare tokenizer, Rust call without offsets": statistics.median(side["rust_rows_per_second"] for side in bare),
        "load + validate + split + encode": statistics.median(side["rows"] / side["seconds"] for side in ours),
        f"the same, all {rows:,} rows": whole["rows"] / whole["seconds"],
    }
    tokens = whole["tokens"] / whole["rows"]
    print(f"{'side':<44}{'rows/s':>10}{'tokens/s':>12}")
    for name, value in rates.items():
        print(f"{name:<44}{value:>10,.0f}{value * tokens:>12,.0f}")
    ratio, cpu = ratios(bare, ours, "seconds"), ratios(bare, ours, "cpu")
    print(f"\nratio to the bare tokenizer {statistics.median(ratio):.2f} (rounds {', '.join(f'{value:.2f}' for value in ratio)};")
    print(f"in CPU time {statistics.median(cpu):.2f}); peak memory with {rows:,} rows {whole['peak_bytes'] / 1e9:.2f} GB\n")
    print(f"{'500 rows at 512 tokens':<24}{'shapes':>8}{'padding':>10}{'plain shapes':>14}{'plain padding':>15}")
    for size in (1, 2, 4):
        line = shapes[f"batch_{size}"]
        print(f"batch size {size:<13}{line['shapes']:>8}{line['padding']:>10.1%}{line['plain_shapes']:>14}{line['plain_padding']:>15.1%}")
    result = {
        "ratio": round(statistics.median(ratio), 3),
        "ratio_rounds": [round(value, 3) for value in ratio],
        "ratio_cpu": round(statistics.median(cpu), 3),
        "peak_bytes": whole["peak_bytes"],
        "rows_per_second": {name: round(value) for name, value in rates.items()},
        "tokens_per_row": round(tokens),
        "masking": whole["masking"],
        "shapes": shapes,
        "conditions": conditions(rows, len(ours)),
    }
    print(json.dumps(result))


def main() -> None:
    """Prepares the data, alternates the sides, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 rows, three rounds, under two minutes")
    parser.add_argument("--rows", type=int, default=0, help="conversations (200,000)")
    parser.add_argument("--answer-words", type=int, default=140, help="mean words of an answer; a question has a sixth of it")
    parser.add_argument("--side", choices=("bare", "ours", "shapes"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = {"bare": side_bare, "ours": side_ours, "shapes": side_shapes}[options.side]
        print(json.dumps(side(options.folder, *([options.file] if options.side == "ours" else []))))
        return
    rows, repeats = options.rows or (2_000 if options.quick else 200_000), 3 if options.quick else 7
    with tempfile.TemporaryDirectory(prefix="data-throughput-") as name:
        folder = Path(name)
        prepare(folder, rows, options.answer_words)
        bare, ours = rounds(folder, repeats)
        report(bare, ours, child("ours", folder, "--file", "data.jsonl"), child("shapes", folder), rows)


if __name__ == "__main__":
    main()
