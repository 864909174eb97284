"""What was made, for people: coloured tokens, lengths, a summary."""

from __future__ import annotations

from typing import Any, NamedTuple

from mac_lora_helpers.data.encoding import Encoded
from mac_lora_helpers.data.tokens import IGNORE


class TokenPiece(NamedTuple):
    """One token: its text, whether it is 'trained', 'context' or 'special' (and not trained), its id.

    A character of several tokens stands with the last of them; the earlier ones have no text.
    """

    text: str
    kind: str
    id: int


def token_view(encoded: Encoded, tokenizer: Any, split: str, index: int) -> list[TokenPiece]:
    """One row as training sees it, token by token; the texts joined are the decoded row."""
    row = encoded.splits[split][index]
    return pieces(tokenizer, row["input_ids"], row["labels"])


def pieces(tokenizer: Any, ids: list[int], labels: list[int]) -> list[TokenPiece]:
    """Ids and labels as pieces of text."""
    from tokenizers.decoders import DecodeStream

    special = set(tokenizer.all_special_ids) | {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    stream = DecodeStream(skip_special_tokens=False)
    result = []
    for token, label in zip(ids, labels, strict=True):
        text = stream.step(tokenizer.backend_tokenizer, token) or ""
        kind = "trained" if label != IGNORE else "special" if token in special else "context"
        result.append(TokenPiece(text, kind, token))
    return result


def lengths(encoded: Encoded) -> dict[str, list[int]]:
    """Tokens of each row, by split."""
    return {name: values.tolist() for name, values in encoded.lengths.items()}


def summary(encoded: Encoded) -> list[tuple[str, str, str]]:
    """(name, value, meaning) rows: sizes, masking, what the limit did, then the lints."""
    total, supervised = encoded.tokens["total"], encoded.tokens["supervised"]
    sizes = ", ".join(f"{name} {len(values):,}" for name, values in encoded.lengths.items())
    cut = encoded.truncation
    rows = [
        ("rows", sizes, "rows of tokens in each split"),
        ("tokens", f"{total:,}", f"the longest row has {cut['longest']:,}; the limit is {encoded.max_seq_length:,}"),
        ("trained tokens", f"{supervised:,} ({supervised / max(total, 1):.0%})", f"tokens with a label: loss on {encoded.loss_on}"),
        ("template", encoded.template_name, f"answers found by: {encoded.masking}"),
        ("rows cut", f"{cut['rows_cut']:,}", f"rows that lost their end; max_seq_length={cut['longest']} would cut none"),
        ("answers cut", f"{cut['answers_cut']:,}", f"answers of which only the beginning is left; {cut['longest_first']} would cut none"),
        ("answers left out", f"{cut['answers_lost']:,}", "whole answers behind the limit"),
        ("EOS lost", f"{cut['eos_lost']:,}", "answers without their end token: too many, and the model never stops"),
        ("rows dropped", f"{cut['dropped']:,}", "rows without room for an answer"),
    ]
    rows += [("note", "", note) for note in encoded.notes]
    return rows + [(lint.name, f"{lint.count:,}" if lint.count else "yes", f"{lint.what}; to do: {lint.fix}") for lint in encoded.lints]
