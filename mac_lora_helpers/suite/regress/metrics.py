"""The figures that can be compared: their names, what they say, and how they are read from a run directory."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import ARTIFACTS

#: Files whose keys can be named: dotted name → (path below the run directory, number of the notebook that makes it).
FILES: dict[str, tuple[str, int]] = {
    re.sub(r"\.jsonl?$", "", path).replace("/", "."): (path, number)
    for path, number in ARTIFACTS.values()
    if path.endswith((".json", ".jsonl")) and path != "run.json"
} | {"adapter.adapter_config": ("adapter/adapter_config.json", 3)}

#: Every metric by name, with what it says. ``[…]`` picks the entry of that name, or by number, from a list.
KNOWN: dict[str, str] = {
    "environment.verdict.where": "where notebook 01 says the training can run",
    "environment.device.name": "the device that was chosen",
    "environment.dtype.name": "the number format that was chosen",
    "data.manifest.format": "shape of the rows that was found",
    "data.manifest.rows.accepted": "rows that can be used",
    "data.manifest.rows.rejected": "rows that cannot",
    "data.manifest.splits.train": "rows to train on",
    "data.manifest.splits.valid": "rows for the loss during training",
    "data.manifest.splits.test": "rows for the evaluation",
    "data.manifest.tokens.total": "tokens of all splits",
    "data.manifest.tokens.supervised": "tokens that are trained: the loss mask",
    "data.manifest.truncation.rows_cut": "rows cut at max_seq_length",
    "data.manifest.truncation.answers_cut": "answers that lost a part",
    "data.manifest.truncation.eos_lost": "answers that lost their end token",
    "data.manifest.template.name": "the chat template's family",
    "data.manifest.template.masking": "how the answers were found",
    "data.manifest.fingerprint_parts.template.False": "digest of the chat template",
    "data.manifest.fingerprint": "digest of tokens, rows, template, tokenizer and masking",
    "data.end_tokens": "distinct last trained tokens of the training rows: one, if every answer ends with the end token",
    "train_config.config.seed": "the seed that was used",
    "adapter.adapter_config.r": "rank of the saved adapter",
    "adapter.adapter_config.lora_alpha": "scale of the saved adapter",
    "adapter.adapter_config.lora_dropout": "dropout of the saved adapter",
    "train_metrics.steps": "optimizer steps",
    "train_metrics.tokens": "tokens that went through training",
    "train_metrics.supervised_tokens": "tokens that the training learned from",
    "train_metrics.trainable_parameters": "numbers that were trained: rank, targets and layers",
    "train_metrics.dtype": "number format of the base model",
    "train_metrics.first_loss": "loss at the start, nats per token",
    "train_metrics.last_loss": "loss at the end, nats per token",
    "train_metrics.train_loss_tuned": "loss on rows that were trained on, dropout off",
    "train_metrics.valid_loss_tuned": "loss on rows that were not trained on, dropout off",
    "train_metrics.peak_memory_bytes": "peak memory of the training",
    "train_metrics.predicted_memory_bytes": "the forecast's peak",
    "train_metrics.resumed_from_step": "checkpoint that was gone on from",
    "train_metrics.fast_path.on": "whether the fast path was taken",
    "train_metrics.seconds": "wall-clock seconds of the training",
    "train_metrics.audit.finite": "audit: every saved value is finite",
    "train_metrics.audit.lora_b_nonzero": "audit: every adapted layer was trained",
    "train_metrics.audit.logits_changed": "audit: the adapter changes the logits",
    "train_metrics.audit.saved_equals_trained": "audit: the saved adapter is the trained one",
    "train_metrics.audit.loss_fell": "audit: the loss fell",
    "train_metrics.audit.batches_equal_data": "audit: the batches are notebook 02's rows",
    "train_log[0].loss": "loss of the first step: base model, tokens, labels and order of rows",
    "train_log[0].grad_norm": "gradient of the first step: LoRA's initial matrices too",
    "train_log[0].learning_rate": "learning rate of the first step",
    "train_log[1].loss": "loss of the second line of the log: dropout, scale and optimizer too",
    "eval.metrics.examples": "questions that were answered",
    "eval.metrics.loss_examples": "rows that the losses were counted on",
    "eval.metrics.base.loss": "loss of the base model on held-out rows",
    "eval.metrics.base.tokens": "held-out tokens that count",
    "eval.metrics.base.exact_match": "share of questions that the base model answers word for word",
    "eval.metrics.tuned.loss": "loss of the tuned model on held-out rows",
    "eval.metrics.tuned.exact_match": "share of questions that the tuned model answers word for word",
    "eval.metrics.tuned.valid_json": "share of answers that are JSON",
    "eval.metrics.tuned.stop_rate": "share of answers that end by themselves",
    "eval.metrics.general.tuned.loss": "loss of the tuned model on conversations that were not trained",
    "eval.prompts": "digest of the questions that were asked",
    "eval.seen": "evaluated rows that stand in the training split",
    "export.gguf_template": "digest of the chat template in the GGUF files",
    "export.equivalence[adapter (PEFT)].passed": "the adapter, read back",
    "export.equivalence[merged].passed": "the merged model says what the adapter says",
    "export.equivalence[merged].max_logprob_difference": "largest log-probability difference of the merged model",
    **{
        f"export.equivalence[GGUF {kind}].passed": f"the {kind} file says in llama.cpp what the adapter says"
        for kind in "F32 F16 BF16 Q8_0 Q5_1 Q5_0 Q4_1 Q4_0".split()
    },
    "export.equivalence[LoRA GGUF].passed": "the adapter's GGUF says it on the base's",
    "export.equivalence[MLX adapter].passed": "the MLX adapter says it, where MLX is installed",
    "export.equivalence[merged in mlx-lm].passed": "the merged folder says it in MLX, where MLX is installed",
    "export.equivalence.control.passed": "the untuned base put to the same check",
    "export.equivalence.control.loss": "loss of the untuned base on the answers of the check",
    "export.push.dry_run": "nothing was sent",
    "cost.cpu_seconds": "processor seconds of the case, its notebooks included",
    "cost.reference_seconds": "processor seconds of a fixed piece of work, measured just before the case",
}

#: Metrics worked out from a file that is no JSON of figures: name → (that file, number of the notebook that makes it).
_DERIVED = {
    "data.end_tokens": ("data/tokens/train.arrow", 2),
    "eval.prompts": ("eval/samples.jsonl", 4),
    "eval.seen": ("eval/samples.jsonl", 4),
    "export.gguf_template": ("export/gguf", 5),
}
_SELECTOR = re.compile(r"\.?([^.\[\]]+)|\[([^\]]+)\]")


def made_by(name: str) -> int:
    """Number of the notebook whose artefact a metric is read from; 0: the regression run itself."""
    if name in _DERIVED:
        return _DERIVED[name][1]
    return FILES[file_of(name)][1] if file_of(name) else 0


def file_of(name: str) -> str:
    """The key of ``FILES`` that a metric's name begins with; empty for measured and derived ones."""
    fits = [key for key in FILES if re.match(re.escape(key) + r"(?=[.\[])", name)]
    return max(fits, key=len, default="")


def place_of(name: str) -> str:
    """The artefact to look at, below the run directory."""
    if name in _DERIVED:
        return _DERIVED[name][0]
    return FILES[file_of(name)][0] if file_of(name) else ""


def read_metric(run: Path, name: str, cost: dict[str, float] | None = None) -> Any:
    """A metric's value; None where the run has no such file or no such key in it, a word where it is not finite."""
    if name.startswith("cost."):
        return (cost or {}).get(name.removeprefix("cost."))
    derived = {"data.end_tokens": _end_tokens, "eval.prompts": _prompts, "eval.seen": _seen, "export.gguf_template": _gguf_template}
    try:
        if name in derived:
            return derived[name](run)
        key = file_of(name)
        value = _walk(_load(run / FILES[key][0]), name[len(key) :])
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _load(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else json.loads(text)


def _walk(value: Any, keys: str) -> Any:
    for key, entry in _SELECTOR.findall(keys):
        value = value[key] if key else _entry(value, entry)
    return value


def _entry(value: Any, entry: str) -> Any:
    if isinstance(value, dict):  # the document's own list of named things
        value = next(item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict) and "name" in item[0])
    if re.fullmatch(r"-?\d+", entry):
        return value[int(entry)]
    return next((item for item in value if item.get("name") == entry), {}) or {"passed": None, "max_logprob_difference": None}


def _end_tokens(run: Path) -> int:
    """Read without the project's own loader, which refuses what it did not make."""
    from datasets import Dataset

    last: Counter[int] = Counter()
    for row in Dataset.from_file(str(run / "data/tokens/train.arrow")):
        trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        last.update(trained[-1:])
    return len(last)


def _prompts(run: Path) -> str:
    rows = _load(run / "eval/samples.jsonl")
    return hashlib.sha256(json.dumps([row["prompt"] for row in rows], ensure_ascii=False).encode()).hexdigest()


def _seen(run: Path) -> int:
    """Question and answer together: two rows may ask the same and answer differently."""
    trained = {_pair(row) for row in _load(run / "data/train.jsonl")}
    return sum((row["prompt"].strip(), row["expected"].strip()) in trained for row in _load(run / "eval/samples.jsonl"))


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    if "messages" not in row:
        return row["text"].strip(), ""
    users = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return users[-1].strip() if users else "", row["messages"][-1]["content"].strip()


def _gguf_template(run: Path) -> str | None:
    from gguf import GGUFReader

    templates = set()
    for file in sorted((run / "export/gguf").glob("*.gguf")):
        reader = GGUFReader(file)
        if reader.get_field("tokenizer.ggml.tokens"):  # an adapter's file has no tokenizer
            field = reader.get_field("tokenizer.chat_template")
            templates.add(str(field.contents()) if field else "")
    return hashlib.sha256(json.dumps(sorted(templates)).encode()).hexdigest() if templates else None
