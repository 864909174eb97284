"""What was made, for people: one table at a glance, coloured tokens, lengths."""

from __future__ import annotations

from typing import Any, NamedTuple

from mac_lora_helpers.data.encoding import Encoded
from mac_lora_helpers.data.splitting import Splits
from mac_lora_helpers.data.tokens import IGNORE
from mac_lora_helpers.data.validation import Found

Rows = list[tuple[str, str, str]]


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


def token_counts(encoded: Encoded) -> tuple[dict[str, int], dict[str, int]]:
    """(trained tokens, all tokens) per split."""
    import numpy as np

    trained = {}
    for name, rows in encoded.splits.items():
        chunks = rows.data.column("labels").chunks if len(rows) else []
        trained[name] = sum(int(np.count_nonzero(chunk.flatten().to_numpy() != IGNORE)) for chunk in chunks)
    return trained, {name: int(values.sum()) for name, values in encoded.lengths.items()}


def split_rows(splits: Splits) -> list[tuple[str, int, str]]:
    """(split, rows, how its first row begins), then the notes on unusual sizes."""
    rows = [(name, len(examples), _beginning(examples[0].to_dict()) if len(examples) else "") for name, examples in splits.items()]
    return rows + [("note", "", note) for note in splits.notes]


def _beginning(row: dict[str, Any], limit: int = 100) -> str:
    texts = [str(message.get("content") or "") for message in row.get("messages", [])] or [row.get("text", "")]
    text = " → ".join(texts[:2])
    return text if len(text) <= limit else text[:limit] + "…"


def found_rows(found: Found) -> Rows:
    """(what, value, meaning): what was read, recognized, not used and refused."""
    recognized = [("recognized", f"{count:,}", how) for how, count in found.recognized.items()]
    fixes = {problem.kind: problem for problem in found.problems}
    told = [(kind, f"{count:,}", f"{fixes[kind].what}; to do: {fixes[kind].fix}") for kind, count in found.counts.items()]
    return [
        ("source", found.source.name, "where the rows come from"),
        ("shape", found.shape, found.shape_reason.split(";")[0]),
        ("rows read", f"{found.read:,}", "rows in the source"),
        *recognized[:8],
        ("rows accepted", f"{len(found.rows):,}", "rows that passed every check"),
        ("rows rejected", f"{found.rejected:,}", "rows with a problem, and rows marked as bad"),
        *told,
    ]


def summary(encoded: Encoded) -> Rows:
    """(what, value, meaning): sizes, masking, what the template lost, what the limit did, proposals, then the lints."""
    total, supervised = encoded.tokens["total"], encoded.tokens["supervised"]
    sizes = ", ".join(f"{name} {len(values):,}" for name, values in encoded.lengths.items())
    cut = encoded.truncation
    lost = [
        ("lost by the template", f"{count:,}", f"rows whose {what} the chat template does not write")
        for what, count in encoded.lost.items()
    ]
    rows = [
        ("rows", sizes, "rows of tokens in each split"),
        ("tokens", f"{total:,}", f"the longest row has {cut['longest']:,}; the limit is {encoded.max_seq_length:,}"),
        ("trained tokens", f"{supervised:,} ({supervised / max(total, 1):.0%})", f"tokens with a label: loss on {encoded.loss_on}"),
        ("template", encoded.template_name, f"answers found by: {encoded.masking}"),
        *(lost or ([] if encoded.shape == "text" else [("lost by the template", "0", "all that the rows say is written")])),
    ]
    if encoded.shape == "text":
        rows.append(("windows", f"{cut['rows_split']:,}", "texts longer than the limit, read in several rows one after the other"))
    else:
        rows += [
            ("rows cut", f"{cut['rows_cut']:,}", f"rows that lost their end; max_seq_length={cut['longest']} would cut none"),
            (
                "answers cut",
                f"{cut['answers_cut']:,}",
                f"answers of which only the beginning is left; {cut['longest_first']} would cut none",
            ),
            ("answers left out", f"{cut['answers_lost']:,}", "whole answers behind the limit"),
            ("EOS lost", f"{cut['eos_lost']:,}", "answers without their end token: too many, and the model never stops"),
        ]
    rows.append(("rows dropped", f"{cut['dropped']:,}", "rows without room for an answer"))
    rows += [("note", "", note) for note in encoded.notes] + [("proposal", "", text) for text in encoded.proposals]
    return rows + [(lint.name, f"{lint.count:,}" if lint.count else "yes", f"{lint.what}; to do: {lint.fix}") for lint in encoded.lints]


def overview(found: Found, encoded: Encoded | None = None, splits: Splits | None = None) -> Rows:
    """One table at a glance: read, recognized, not used, lost, trained."""
    if encoded or not splits:
        return found_rows(found) + (summary(encoded) if encoded else [])
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in splits.items())
    return [*found_rows(found), ("rows", sizes, "conversations or texts in each split"), *(("note", "", note) for note in splits.notes)]


def overview_json(found: Found, encoded: Encoded | None, rows: Rows) -> dict[str, Any]:
    """The same for a program."""
    many = ("recognized", "note", "proposal", "lost by the template")
    lists = {name: [meaning for what, _, meaning in rows if what == name] for name in ("note", "proposal")}
    return {
        **{what: value for what, value, _ in rows if what not in many},
        "recognized": found.recognized,
        "ignored": found.ignored,
        "lost": encoded.lost if encoded else {},
        "notes": lists["note"],
        "proposals": lists["proposal"],
    }
