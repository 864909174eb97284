"""The tokenizer: loaded, checked, and what it is as a fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.problems import brief
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import portable

#: Tokens that families set aside for padding, in the order they are tried when no pad token is set.
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<|pad|>")

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json", "tokenization.py")


def load_tokenizer(config: Config) -> Any:
    """The model's fast tokenizer, padding on the right, with a pad token.

    Raises:
        InputError: there is none, it is damaged, or it is not a fast one.
    """
    from transformers import AutoTokenizer

    path = config.model_path
    if config.trust_remote_code:
        print(f"trust_remote_code is on: Python code that comes with {portable(config.model_id)} may run on this machine.")
    if Path(path).is_dir() and not any((Path(path) / name).exists() for name in _FILES):  # transformers would make up an empty one
        raise InputError(
            "the model folder has no tokenizer.json",
            where=f"parameter model_id={portable(config.model_id)}",
            fix="copy the tokenizer's files into the folder, or use another model_id",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise _readable(error, config) from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "the tokenizer is not a fast one, so tokens cannot be traced to the text",
            where=f"parameter model_id={config.model_id}",
            fix="use a model with a tokenizer.json",
        )
    if len(tokenizer) == 0:
        raise InputError("the tokenizer has no tokens", where=f"parameter model_id={config.model_id}", fix="use a complete model folder")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _pad_token(tokenizer, config)
    return tokenizer


def _pad_token(tokenizer: Any, config: Config) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in _PAD_TOKENS:
        if token in vocabulary and token != tokenizer.eos_token:
            return token
    if tokenizer.eos_token is None:
        raise InputError(
            "the tokenizer has neither a pad nor an EOS token", where=f"parameter model_id={config.model_id}", fix="use another model"
        )
    return tokenizer.eos_token


def _readable(error: Exception, config: Config) -> InputError:
    text, where = f"{type(error).__name__} {error}", f"parameter model_id={config.model_id}"
    if Path(config.model_path).is_dir():
        what = f"the model folder's tokenizer is damaged: {brief(error, 160)}"
        return InputError(portable(what), where=where, fix="copy the tokenizer's files into the folder again, or use another model_id")
    if "trust_remote_code" in text:
        return InputError(
            "the model brings its own Python code", where=where, fix="read that code; then trust_remote_code=true, or another model"
        )
    if "gated" in text.lower():
        return InputError(
            f"{config.model_id} is gated", where=where, fix=f"accept its terms on https://huggingface.co/{config.model_id}; hf auth login"
        )
    return InputError(
        f"no tokenizer for {config.model_id} on this machine, and none could be had from the Hub: {portable(brief(error, 160))}",
        where=where,
        fix="check the spelling and the network, or give a model folder, or model_id=embedded",
    )


def backend(tokenizer: Any) -> Any:
    """The Rust tokenizer, with no truncation or padding left over from an earlier call."""
    rust = tokenizer.backend_tokenizer
    rust.no_truncation()
    rust.no_padding()
    return rust


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what the tokenizer is: its own serialization, and its special tokens."""
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(backend(tokenizer).to_str().encode() + json.dumps(ids).encode()).hexdigest()


def added_tokens(tokenizer: Any) -> dict[int, str]:
    """Id → text of every added token; each is cut out of the text before anything else is tokenized."""
    return {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}


def stop_ids(tokenizer: Any, model_path: str) -> set[int]:
    """Ids that end generation: the tokenizer's EOS, and the model's generation config if there is one."""
    found = {tokenizer.eos_token_id} - {None}
    path = Path(model_path) / "generation_config.json"
    try:
        eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    except (ValueError, OSError, AttributeError):
        eos = None
    return found | set(eos if isinstance(eos, list) else [eos]) - {None}
