"""The tokenizer as GGUF metadata: tokens, types, merges or scores, special ids, pre-tokenizer kind, chat template.

Everything is read off the loaded tokenizer's backend, not off ``tokenizer.json``: transformers may replace parts of
the file when it loads it, and training saw what was loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.errors import InputError

#: llama.cpp's names for pre-tokenizers of byte-level BPE, by the regular expressions that define them.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_PATTERNS = {
    rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}|{_TAIL}": "qwen2",
    rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}": "llama-bpe",
    rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to tokenize as the tokenizer does.

    Args:
        model: ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece BPE with byte fallback).
        pre: pre-tokenizer kind. tokens, types: one per row of the embedding.
        merges: pairs joined by a space, byte-level only. scores: one per token, SentencePiece only.
        special: bos, eos, unknown and padding ids. add: whether bos, eos and a space are put in front (or behind).
        template: the chat template's source, or None.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    special: dict[str, int]
    add: dict[str, bool]
    template: str | None


def read_vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """Reads a loaded tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a ``tokenizers`` backend.
        rows: rows of the embedding; those beyond the tokenizer become unused padding tokens.

    Raises:
        InputError: a kind of tokenizer that has no counterpart in llama.cpp that we know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unsupported("the tokenizer has no `tokenizers` backend", "tokenizer")
    state = json.loads(backend.to_str())
    if state["model"]["type"] != "BPE":
        raise _unsupported(f"{state['model']['type']} tokenizers are not written here", "tokenizer model")
    tokens, types = _tokens(tokenizer, state, rows)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else (tokenizer.chat_template or {}).get("default")
    add = _added(tokenizer, template)
    common = {"tokens": tokens, "types": types, "special": _special(tokenizer), "template": template}
    if state["model"].get("byte_fallback"):
        add["space_prefix"] = _space_prefix(state, tokenizer, template)
        return Vocabulary(model="llama", pre="default", merges=[], scores=_scores(state, tokens), add=add, **common)
    return Vocabulary(model="gpt2", pre=_pre_tokenizer(state), merges=_merges(state), scores=[], add=add, **common)


def _tokens(tokenizer: Any, state: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Token texts and types; gaps and rows beyond the tokenizer are unused."""
    vocabulary, added = state["model"]["vocab"], {item["id"]: item for item in state["added_tokens"]}
    size = max([*vocabulary.values(), *added]) + 1
    if size > rows:
        raise InputError(
            f"the tokenizer has {size} tokens, the embedding {rows} rows", where="model", fix="use the tokenizer of this model"
        )
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [UNUSED] * rows
    for text, index in vocabulary.items():
        tokens[index], types[index] = text, NORMAL
        if state["model"].get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            types[index] = BYTE
    for index, item in added.items():
        tokens[index], types[index] = item["content"], CONTROL if item["special"] else USER_DEFINED
    if tokenizer.unk_token_id is not None and state["model"].get("byte_fallback"):
        types[tokenizer.unk_token_id] = UNKNOWN
    return tokens, types


def _merges(state: dict[str, Any]) -> list[str]:
    return [item if isinstance(item, str) else " ".join(item) for item in state["model"]["merges"]]


def _scores(state: dict[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece scores out of merge ranks: the piece that is merged earlier scores higher.

    A BPE of SentencePiece scores its pieces by minus their rank, and the `tokenizers` form of it lists every pair
    that yields a piece at that piece's rank: so the first rank of a piece gives its place back.
    """
    ranks: dict[str, int] = {}
    for rank, item in enumerate(_merges(state)):
        left, _, right = item.partition(" ")
        ranks.setdefault(left + right, rank)
    return [-float(ranks[text]) if text in ranks else 0.0 if len(text) > 1 and text.startswith("<") else -1e6 for text in tokens]


def _special(tokenizer: Any) -> dict[str, int]:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unk_token_id", "pad": "pad_token_id"}
    return {short: value for short, name in names.items() if (value := getattr(tokenizer, name, None)) is not None}


def _added(tokenizer: Any, template: str | None) -> dict[str, bool]:
    """Whether llama.cpp must put bos in front and eos behind, so that chats come out as training saw them.

    A chat template writes its own bos; where it does not, none was trained on, whatever plain text would get.
    """
    ids = tokenizer("a").input_ids
    bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    if template and bos:
        bos = begins_with_bos(tokenizer)
    return {"bos": bos, "eos": tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]}


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether a rendered chat starts with the bos token's text."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def _space_prefix(state: dict[str, Any], tokenizer: Any, template: str | None) -> bool:
    """llama.cpp's space in front of text and after every special token.

    ``first`` puts it only at the very start: chats that begin with a special token then have none.
    """
    pre, normalizer = state.get("pre_tokenizer") or {}, state.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" for step in steps):
        return True
    scheme = pre.get("prepend_scheme", "never") if pre.get("type") == "Metaspace" else "never"
    return scheme == "always" or (scheme == "first" and not (template and begins_with_bos(tokenizer)))


def _pre_tokenizer(state: dict[str, Any]) -> str:
    """llama.cpp's name of a byte-level pre-tokenizer."""
    normalizer, pre = state.get("normalizer"), state.get("pre_tokenizer") or {}
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise _unsupported(f"llama.cpp has no counterpart to the normalizer {normalizer.get('type')}", "tokenizer normalizer")
    steps = pre.get("pretokenizers", [pre])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise _unsupported("the tokenizer's last step is not plain byte-level", "pre-tokenizer")
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        return "smollm"
    pattern = (steps[0].get("pattern") or {}).get("Regex")
    if (
        kinds == ["Split", "ByteLevel"]
        and steps[0].get("behavior") == "Isolated"
        and not last.get("use_regex", True)
        and pattern in _PATTERNS
    ):
        return _PATTERNS[pattern]
    raise _unsupported("the pre-tokenizer is none of those known here (Qwen2, Llama 3, Tekken, GPT-2, SmolLM)", "pre-tokenizer")


def _unsupported(what: str, where: str) -> InputError:
    return InputError(what, where=where, fix=OFFICIAL)


#: What to do with a model that is not written here.
OFFICIAL = (
    "use llama.cpp's own converter in an environment of its own: git clone https://github.com/ggml-org/llama.cpp, "
    "then python llama.cpp/convert_hf_to_gguf.py export/merged --outtype f16 --outfile model-F16.gguf"
)
