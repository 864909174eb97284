"""Small tokenizers of the kinds that the families have, trained on the spot."""

from __future__ import annotations

from typing import Any

from tiny import CHATML, CORPUS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from trained_run import SENTENCES

TEXTS = [*CORPUS, *SENTENCES, "the answer is the question", "Be brief. The answer is 3."] * 2
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
QWEN_DEFAULT = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + CHATML


def byte_level(
    pattern: str | None, specials: list[str], ignore_merges: bool = False, digits: bool = False, normalize: bool = False
) -> Tokenizer:
    """Byte-level BPE; without a pattern GPT-2's own."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.normalizer = normalizers.NFC() if normalize else None
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return backend


def sentence_piece(legacy: bool) -> Tokenizer:
    """BPE with byte fallback in the form that a SentencePiece model has: every pair that yields a piece is a merge.

    Args:
        legacy: Llama 2's normalizer (a space in front of every section); else Mistral's Metaspace, only at the start.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = [piece for piece, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *[p for p in learned if len(p) > 1],
        *[p for p in learned if len(p) == 1],
    ]
    known = set(learned)
    merges = [(p[:cut], p[cut:]) for p in learned if len(p) > 1 for cut in range(1, len(p)) if p[:cut] in known and p[cut:] in known]
    backend = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return backend


def with_bos(backend: Tokenizer, bos: str) -> Tokenizer:
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    return backend


def family_tokenizer(kind: str):
    """A tokenizer of one kind, as transformers' fast class with its chat template."""
    from transformers import PreTrainedTokenizerFast

    if kind == "llama3":
        specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
        backend, names = with_bos(byte_level(LLAMA3, specials, ignore_merges=True), specials[0]), (specials[0], "<|eot_id|>", "<|pad|>")
        template = LLAMA3_TEMPLATE
    elif kind in ("llama2", "mistral"):
        backend, names, template = with_bos(sentence_piece(kind == "llama2"), "<s>"), ("<s>", "</s>", "<unk>"), INST_TEMPLATE
    elif kind == "tekken":
        backend = with_bos(byte_level(TEKKEN, ["<unk>", "<s>", "</s>", "<pad>"], ignore_merges=True), "<s>")
        names, template = ("<s>", "</s>", "<pad>"), INST_TEMPLATE
    else:
        backend = byte_level(None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], digits=kind == "smollm")
        names, template = (None, "<|im_end|>", "<|endoftext|>"), CHATML
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=names[0], eos_token=names[1], pad_token=names[2])
    tokenizer.chat_template = template
    return tokenizer
