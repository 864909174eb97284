"""The tokenizer: loaded, checked, and what it is as a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.problems import brief
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.model import small_file
from mac_lora_helpers.redaction import portable

#: Tokens that families set aside for padding, in the order they are tried when no pad token is set.
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<|pad|>")

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json", "tokenization.py")


def load_tokenizer(config: Config, here_only: bool = False) -> Any:
    """The model's fast tokenizer, ready for training: see ``prepare_tokenizer``.

    Args:
        here_only: take it from a folder or the cache, or fail; ask no Hub.

    Raises:
        InputError: there is none, it is damaged, or it is not a fast one.
    """
    from transformers import AutoTokenizer

    with tokenizer_errors(config):
        tokenizer = AutoTokenizer.from_pretrained(config.model_path, trust_remote_code=config.trust_remote_code, local_files_only=here_only)
    return prepare_tokenizer(tokenizer, config)


@contextmanager
def tokenizer_errors(config: Config) -> Iterator[None]:
    """What ``AutoTokenizer.from_pretrained`` raises, in the user's terms."""
    if config.trust_remote_code:
        print(f"trust_remote_code is on: Python code that comes with {portable(config.model_id)} may run on this machine.")
    folder = Path(config.model_path)
    if folder.is_dir() and not any((folder / name).exists() for name in _FILES):  # transformers would make up an empty one
        raise InputError(
            "the model folder has no tokenizer.json",
            where=f"parameter model_id={portable(config.model_id)}",
            fix="copy the tokenizer's files into the folder, or use another model_id",
        )
    try:
        yield
    except Exception as error:
        raise _readable(error, config) from error


def prepare_tokenizer(tokenizer: Any, config: Config) -> Any:
    """The tokenizer with padding on the right, a pad token that is not the EOS if there is one, and its template's arguments.

    Raises:
        InputError: it is not a fast one, or empty.
    """
    where = f"parameter model_id={config.model_id}"
    if not getattr(tokenizer, "is_fast", False):
        fix = "use a model with a tokenizer.json"
        raise InputError("the tokenizer is not a fast one, so tokens cannot be traced to the text", where=where, fix=fix)
    if len(tokenizer) == 0:
        raise InputError("the tokenizer has no tokens", where=where, fix="use a complete model folder")
    tokenizer.padding_side = "right"
    tokenizer.chat_template_arguments = template_arguments(config)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _pad_token(tokenizer, config)
    return tokenizer


def template_arguments(config: Config) -> dict[str, Any]:
    """What the chat template is called with besides the messages: ``chat_template_kwargs`` and ``enable_thinking``.

    Raises:
        InputError: the arguments are no JSON object.
    """
    try:
        arguments = json.loads(config.chat_template_kwargs or "{}")
    except ValueError as error:
        arguments = error
    if not isinstance(arguments, dict) or {"messages", "tools", "add_generation_prompt", "chat_template", "conversations"} & set(arguments):
        raise InputError(
            f"the template's arguments are not a JSON object of its own names: {brief(config.chat_template_kwargs, 80)}",
            where="parameter chat_template_kwargs",
            fix='write them as {"enable_thinking": false}; messages and tools come from the rows',
        )
    return arguments | ({} if config.enable_thinking == "auto" else {"enable_thinking": config.enable_thinking})


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


def stop_ids(tokenizer: Any, config: Config) -> set[int]:
    """Ids at which generation ends by itself: the tokenizer's EOS, and those of the model's own files, from folder, cache or Hub."""
    found = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        eos = (small_file(config, name) or {}).get("eos_token_id")
        found |= set(eos if isinstance(eos, list) else [eos])
    return found - {None}


def positions(config: Config) -> int:
    """Tokens that the model has positions for; 0 if it does not say."""
    found = small_file(config, "config.json") or {}
    inner = found.get("text_config") if isinstance(found.get("text_config"), dict) else {}
    values = (where.get(key) for where in (found, inner) for key in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((value for value in values if isinstance(value, int) and value > 0), 0)
