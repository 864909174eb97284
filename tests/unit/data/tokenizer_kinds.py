"""Tokenizers of the kinds that matter, trained on a few sentences: Qwen2, Llama 3, Llama 2, GPT-2."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    "Hello there, how are you? I am fine, thanks.\n\nWhat is the capital of France?\nThe capital of France is Paris.",
    'user assistant system human model tool {"name": "x", "arguments": {}} ### Instruction:\n\n### Response:\n\n',
    "The quick brown fox jumps over the lazy dog 0123456789. naïve café Zürich 你好 世界 🙂",
] * 4

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: No end token after a turn, no special tokens at all, and white space where tokens like to merge.
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ':\n\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n\n' }}{% endif %}"
)
#: The answer stands behind a space that inference has written already: "Answer: " + "Paris" against " Paris".
SPACE = (
    "{% for m in messages %}{{ 'Question: ' if m['role'] == 'user' else 'Answer: ' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}"
)
#: Mistral's way: no header in front of an answer.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
#: Marks its answers itself.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Rewrites history: an answer that has become history loses its last word's mark.
REWRITES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ ' (latest)' }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Marks the last question, and so rewrites each one once the next is asked (Mistral puts the system prompt there).
LAST_USER = (
    "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'user' %}{{ '(now) ' if m == users[-1] else '(was) ' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Writes the header only around answers, never as a prompt.
NO_PROMPT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


def trl_template(name: str) -> str:
    """A stock template as TRL ships it."""
    origin = importlib.util.find_spec("trl").origin
    return (Path(origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


#: kind → (pre-tokenizer pattern, special tokens, BOS, EOS, family templates of TRL)
KINDS = {
    "qwen2": (QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|begin_of_text|>", "<|eot_id|>"),
    "gpt2": (None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|endoftext|>"),
    "llama2": ("metaspace", ["<s>", "</s>", "<unk>"], "<s>", "</s>"),
    "ascii": ("metaspace", ["<s>", "</s>", "<unk>"], "<s>", "</s>"),  # without bytes to fall back on
}


@lru_cache
def _trained(kind: str) -> str:
    """The Rust tokenizer of a kind, serialized."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    pattern, specials, bos, _ = KINDS[kind]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if pattern == "metaspace":
        rust = Tokenizer(models.BPE(byte_fallback=kind == "llama2", unk_token="<unk>", fuse_unk=True))
        rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        rust.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
        )
        alphabet = [chr(code) for code in range(32, 127)] + ["▁", "\n"]
        specials = [*specials, *(f"<0x{byte:02X}>" for byte in range(256) if kind == "llama2")]
    else:
        rust = Tokenizer(models.BPE())
        rust.normalizer = normalizers.NFC() if kind == "qwen2" else None
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
        rust.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
        rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    rust.train_from_iterator(CORPUS, trainer)
    rust.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in KINDS[kind][1]])
    if bos and kind.startswith("llama"):
        rust.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, rust.token_to_id(bos))])
    elif kind == "gpt2":
        rust.post_processor = processors.ByteLevel(trim_offsets=True)
    return rust.to_str()


def tokenizer_of(kind: str, template: str | None = CHATML):
    """A fast tokenizer of a kind with a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    _, specials, bos, eos = KINDS[kind]
    special = {"bos_token": bos, "eos_token": eos, "pad_token": specials[0]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(kind)), **special)
    if "<unk>" in specials:
        tokenizer.unk_token = "<unk>"
    tokenizer.chat_template = template
    return tokenizer


#: What a template writes as a token: <|…|>, <｜…｜>, <name>, [INST]; thinking and tool tags are plain text to most models.
TOKENS = re.compile(r"<[|｜][^<>\n]{1,40}[|｜]>|<[a-z_]+(?:\|)?>|\[/?INST\]|</?s>")
TAGS = {"<think>", "</think>", "<tool_call>", "<tools>"}


def stock_tokenizer(folder: Path, name: str) -> Path:
    """A Qwen2 kind of tokenizer with a stock template of TRL and the special tokens that it writes."""
    template = trl_template(name)
    tokenizer = tokenizer_of("qwen2", template)
    tokens = sorted(set(TOKENS.findall(template)) - TAGS)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens, "bos_token": "<bos>"})
    tokenizer.save_pretrained(folder)
    return folder


def stock_names() -> list[str]:
    """The stock templates that TRL ships."""
    folder = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
    return sorted(path.stem for path in folder.glob("*.jinja") if not path.stem.endswith("_training"))


def write_kind(folder: Path, kind: str, template: str | None = CHATML) -> Path:
    """The tokenizer in a folder, as a model folder would have it."""
    tokenizer_of(kind, template).save_pretrained(folder)
    return folder
