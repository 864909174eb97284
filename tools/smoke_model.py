"""Tokenizer and model of the embedded default: Qwen2's shape, trained from scratch."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD, START, END = SPECIAL
VOCAB_SIZE = 1280
MAX_LENGTH = 512
ROPE_THETA = 10000.0
TOKENS_PER_STEP = 4096
WARMUP_STEPS = 60
# The answers matter; the questions are learnt a little, so that training on whole
# conversations starts from a sensible loss too.
PROMPT_WEIGHT = 0.1

CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)

Example = tuple[list[int], list[float]]


def qwen2_backend() -> Tokenizer:
    """An empty BPE tokenizer with Qwen2's own normalizer and pre-tokenizer.

    AutoTokenizer puts these in place of whatever tokenizer.json holds, so any
    other choice would give different ids after reloading.
    """
    backend = Tokenizer(BPE())
    backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def train_tokenizer(conversations: list[list[dict]], template: str = CHAT_TEMPLATE):
    """Learn the merges from the conversations and wrap them as Qwen2Tokenizer."""
    backend = qwen2_backend()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (f"{m['role']}\n{m['content']}" for turns in conversations for m in turns)
    backend.train_from_iterator(texts, trainer)
    bpe = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(merge) for merge in bpe["merges"]],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def encode(tokenizer, messages: list[dict]) -> Example:
    """Ids of one conversation and the weight of each id in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    for message in messages:
        head = tokenizer.encode(f"{START}{message['role']}\n")
        body = tokenizer.encode(f"{message['content']}{END}")
        tail = tokenizer.encode("\n")
        ids += head + body + tail
        own = 1.0 if message["role"] == "assistant" else PROMPT_WEIGHT
        weights += [0.0] * len(head) + [own] * len(body) + [0.0] * len(tail)
    return ids, weights


def batches(examples: list[Example], rng: random.Random) -> list[list[Example]]:
    """One epoch: rows of like length together, so that little is padding."""
    shuffled = rng.sample(examples, len(examples))
    grouped = []
    for begin in range(0, len(shuffled), 2000):
        window = sorted(shuffled[begin : begin + 2000], key=lambda row: len(row[0]))
        while window:
            count = max(1, TOKENS_PER_STEP // len(window[-1][0]))
            grouped.append(window[-count:])
            del window[-count:]
    rng.shuffle(grouped)
    return grouped


def tensors(batch: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right: under causal attention no real token ever sees the padding."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in batch])
    return ids, weights


def weighted_loss(model, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss under the given weights."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    kept = weights[:, 1:].flatten()
    return (losses * kept).sum() / kept.sum()


def new_model(tokenizer, seed: int) -> Qwen2ForCausalLM:
    """About 1.8 million parameters: grouped-query attention and a tied head, like the family."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def optimizer_for(model, steps: int, peak_rate: float):
    """AdamW and its schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rate_at(s, steps))
    return optimizer, schedule


def train(model, tokenizer, conversations: list[list[dict]], steps: int, peak_rate: float, seed: int) -> None:
    """Train in fp32, in place."""
    rng = random.Random(f"batches-{seed}")
    model.train()
    optimizer, schedule = optimizer_for(model, steps, peak_rate)
    examples = [encode(tokenizer, messages) for messages in conversations]
    queue: list[list[Example]] = []
    began = time.monotonic()
    for step in range(steps):
        queue = queue or batches(examples, rng)
        loss = weighted_loss(model, *tensors(queue.pop(), tokenizer.pad_token_id))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - began
            print(f"step {step} loss {loss.item():.4f} {seconds:.0f} s", flush=True)
    model.eval()


def write_json(path: Path, values: dict) -> None:
    """Sorted and indented, so that a rebuilt file can be compared line by line."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def tidy(folder: Path) -> None:
    """Add the older RoPE key, which other engines read, and drop where things came from."""
    for name, added in (("config.json", {"rope_theta": ROPE_THETA}), ("tokenizer_config.json", {})):
        values = json.loads((folder / name).read_text(encoding="utf-8")) | added
        for key in ("_name_or_path", "name_or_path", "is_local", "local_files_only"):
            values.pop(key, None)
        write_json(folder / name, values)


def write_model(folder: Path, model, tokenizer) -> None:
    """Write weights, configurations and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private
    tokenizer.save_pretrained(folder)
    tidy(folder)
