"""02: sources, validation, splits, tokens with labels, and what to look at before training.

The steps, in order: ``load`` → ``validate`` → ``split`` → ``load_tokenizer`` → ``encode`` → ``save``.
Later stages call ``load_tokens``, which refuses tokens that are not the manifest's.
"""

from mac_lora_helpers.data.encoding import Encoded, encode
from mac_lora_helpers.data.hub import load
from mac_lora_helpers.data.lints import Lint
from mac_lora_helpers.data.manifest import load_tokens, save
from mac_lora_helpers.data.problems import DataError, Problem
from mac_lora_helpers.data.report import (
    TokenPiece,
    found_rows,
    lengths,
    overview,
    overview_json,
    split_rows,
    summary,
    token_counts,
    token_view,
)
from mac_lora_helpers.data.sources import Source
from mac_lora_helpers.data.splitting import Splits, split
from mac_lora_helpers.data.store import Example
from mac_lora_helpers.data.template import render_prompt, template_call
from mac_lora_helpers.data.tokenizer import load_tokenizer, prepare_tokenizer, tokenizer_errors
from mac_lora_helpers.data.validation import Found, validate

__all__ = [
    "DataError",
    "Encoded",
    "Example",
    "Found",
    "Lint",
    "Problem",
    "Source",
    "Splits",
    "TokenPiece",
    "encode",
    "found_rows",
    "lengths",
    "load",
    "load_tokenizer",
    "load_tokens",
    "overview",
    "overview_json",
    "prepare_tokenizer",
    "render_prompt",
    "save",
    "split",
    "split_rows",
    "summary",
    "template_call",
    "token_counts",
    "token_view",
    "tokenizer_errors",
    "validate",
]
