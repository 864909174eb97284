"""Plain rows and counts for tables and figures."""

from __future__ import annotations

from typing import Any

from mac_lora_helpers.data.encoding import Encoded
from mac_lora_helpers.data.splitting import Splits
from mac_lora_helpers.data.tokens import IGNORE


def split_rows(splits: Splits) -> list[tuple[str, int, str]]:
    """(split, rows, how its first row begins), then the notes on unusual sizes."""
    rows = [(name, len(examples), _beginning(examples[0].to_dict()) if len(examples) else "") for name, examples in splits.items()]
    return rows + [("note", "", note) for note in splits.notes]


def _beginning(row: dict[str, Any], limit: int = 100) -> str:
    texts = [str(message.get("content") or "") for message in row.get("messages", [])] or [row.get("text", "")]
    text = " → ".join(texts[:2])
    return text if len(text) <= limit else text[:limit] + "…"


def token_counts(encoded: Encoded) -> tuple[dict[str, int], dict[str, int]]:
    """(trained tokens, all tokens) per split."""
    import numpy as np

    trained = {}
    for name, rows in encoded.splits.items():
        chunks = rows.data.column("labels").chunks if len(rows) else []
        trained[name] = sum(int(np.count_nonzero(chunk.flatten().to_numpy() != IGNORE)) for chunk in chunks)
    return trained, {name: int(values.sum()) for name, values in encoded.lengths.items()}
