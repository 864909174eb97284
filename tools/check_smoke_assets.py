"""Measure the embedded default: does the usual LoRA recipe turn it round?

    python tools/check_smoke_assets.py --seeds 42 1 2

Prints a table and exits 1 when the bar is missed: the base must answer almost no
test question in JSON of its own accord, and the tuned model almost all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from smoke_data import expected_answers
from smoke_wordings import JSON_STYLE, sentence
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

SMOKE = Path(__file__).resolve().parents[1] / "mac_lora_helpers" / "smoke"
BASE_AT_MOST, TUNED_AT_LEAST, SENTENCES_AT_LEAST = 0.02, 0.90, 0.90


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", type=Path, default=SMOKE, help="folder to measure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    return parser.parse_args()


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(question, answer) of every row."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [tuple(message["content"] for message in row["messages"]) for row in rows]


def load(smoke: Path):
    """Model in fp32 and tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(smoke / "model")
    model = AutoModelForCausalLM.from_pretrained(smoke / "model", dtype=torch.float32)
    return model, tokenizer


def prompt(tokenizer, question: str) -> str:
    """A question up to where the answer starts."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def replies(model, tokenizer, questions: list[str], batch: int = 40) -> list[str]:
    """Greedy answers."""
    model.eval()
    texts = []
    for begin in range(0, len(questions), batch):
        prompts = [prompt(tokenizer, q) for q in questions[begin : begin + batch]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def share_right(model, tokenizer, pairs: list[tuple[str, str]]) -> float:
    """Exact matches as a share."""
    texts = replies(model, tokenizer, [question for question, _ in pairs])
    return sum(text == right for text, (_, right) in zip(texts, pairs, strict=True)) / len(pairs)


def base_figures(model, tokenizer, smoke: Path) -> dict[str, float]:
    """What the base does with the test questions, told to use JSON or not."""
    test = read_pairs(smoke / "data" / "test.jsonl")
    facts = expected_answers()
    plain = [(question, sentence(facts[question])) for question, _ in test]
    told = [(f"{JSON_STYLE} {question}", right) for question, right in test]
    general = read_pairs(smoke / "data" / "general.jsonl")
    sets = {"JSON unasked": test, "sentence": plain, "JSON asked": told, "general": general}
    return {name: share_right(model, tokenizer, pairs) for name, pairs in sets.items()}


def tokenized(tokenizer, pairs: list[tuple[str, str]]) -> Dataset:
    """Ids, and labels on the answer with its end token only."""
    rows = []
    for question, right in pairs:
        head = tokenizer.encode(prompt(tokenizer, question))
        body = tokenizer.encode(right + tokenizer.eos_token)
        rows.append({"input_ids": head + body, "labels": [-100] * len(head) + body})
    return Dataset.from_list(rows)


def settings(out: str, seed: int, steps: int, checkpointing: bool) -> SFTConfig:
    """The usual recipe in fp32."""
    return SFTConfig(
        output_dir=out,
        max_length=512,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        learning_rate=2e-4,
        max_steps=steps,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=checkpointing,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def tune(model, tokenizer, smoke: Path, config: SFTConfig) -> SFTTrainer:
    """One LoRA run."""
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )
    pairs = read_pairs(smoke / "data" / "train.jsonl")
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=tokenized(tokenizer, pairs),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.train()
    return trainer


def tuned_figures(smoke: Path, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Train with one seed and measure."""
    model, tokenizer = load(smoke)
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        config = settings(out, seed, arguments.steps, arguments.checkpointing)
        trainer = tune(model, tokenizer, smoke, config)
        seconds = time.monotonic() - began
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    test = read_pairs(smoke / "data" / "test.jsonl")
    general = read_pairs(smoke / "data" / "general.jsonl")
    return {
        "tuned": share_right(trainer.model, tokenizer, test),
        "general": share_right(trainer.model, tokenizer, general),
        "first loss": float(losses[0]),
        "last loss": float(losses[-1]),
        "seconds": seconds,
    }


def main() -> int:
    """Print the figures; 1 when the bar is missed."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base = base_figures(*load(arguments.smoke), arguments.smoke)
    print("base:", ", ".join(f"{name} {share:.3f}" for name, share in base.items()))
    passed = base["JSON unasked"] <= BASE_AT_MOST and base["sentence"] >= SENTENCES_AT_LEAST
    print("| seed | base | tuned | general after | first loss | last loss | seconds |")
    print("|---|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        run = tuned_figures(arguments.smoke, seed, arguments)
        passed = passed and run["tuned"] >= TUNED_AT_LEAST
        cells = [f"{run[key]:.3f}" for key in ("tuned", "general", "first loss", "last loss")]
        row = [str(seed), f"{base['JSON unasked']:.3f}", *cells, f"{run['seconds']:.0f}"]
        print("|", " | ".join(row), "|", flush=True)
    print("passed" if passed else "MISSED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
