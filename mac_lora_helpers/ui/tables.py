"""Small tables that show as HTML in JupyterLab and as aligned text on a terminal.

All cell text is escaped: data of the user's is shown, never rendered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mac_lora_helpers.text import size, visible
from mac_lora_helpers.ui.parts import TEXT, escape

#: Marks carry a word as well as a colour, so that they can be told apart without seeing colour.
MARKS = {
    "ok": ("✓ ok", "#0f7b5f"),
    "passed": ("✓ passed", "#0f7b5f"),
    "warn": ("! warn", "#b36b00"),
    "not checked": ("– not checked", "#b36b00"),
    "fail": ("✗ fail", "#c43c1a"),
    "failed": ("✗ failed", "#c43c1a"),
}
_CELL = "text-align:left;vertical-align:top;padding:3px 10px;white-space:pre-wrap;max-width:44em;overflow-wrap:break-word"
#: Values up to this length are not broken over lines.
_SHORT = 14


class Marked(str):
    """Text of a cell with some pieces marked: ``pieces`` are (text, whether it is plain)."""

    pieces: Sequence[tuple[str, bool]]

    @classmethod
    def of(cls, pieces: Sequence[tuple[str, bool]]) -> Marked:
        """The joined text, remembering what to mark."""
        marked = cls("".join(text for text, _ in pieces))
        marked.pieces = pieces
        return marked

    def html(self) -> str:
        """Escaped; the marked pieces are bold as well as coloured, for readers who cannot tell the colours."""
        mark = "<mark style='background:rgba(0,114,178,.28);color:inherit;font-weight:600'>{}</mark>"
        return "".join(escape(text) if plain else mark.format(escape(text)) for text, plain in self.pieces)


class Table:
    """Rows under column heads.

    Args:
        columns: the heads.
        rows: one sequence of values per row; statuses such as ``ok`` or ``fail`` are marked.
        title: shown above.
        note: one sentence shown below.
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "", note: str = "") -> None:
        self.columns = list(columns)
        self.rows = [[_text(value) for value in row] for row in rows]
        self.title, self.note = title, note

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], title: str = "", note: str = "") -> Table:
        """A table of dictionaries with the same keys; the keys are the heads."""
        columns = list(rows[0]) if rows else []
        return cls(columns, [[row[name] for name in columns] for row in rows], title, note)

    def __repr__(self) -> str:
        lines = [[visible(MARKS.get(value, (value, ""))[0]).replace("\n", " ⏎ ") for value in row] for row in self.rows]
        widths = [min(60, max(map(len, column))) for column in zip(self.columns, *lines, strict=True)]
        head, *rest = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in [self.columns, *lines])
        return visible("\n".join(part for part in [self.title, head, "-" * len(head), *(rest or ["none"]), self.note] if part))

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col" style="{_CELL}">{escape(name)}</th>' for name in self.columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in self.rows or [["none"]])
        caption = f"<caption style='text-align:left;font-weight:600;padding:4px 0'>{escape(self.title)}</caption>" if self.title else ""
        note = f"<div {TEXT} style='padding:4px 0'>{escape(self.note)}</div>" if self.note else ""
        table = f"<table style='border-collapse:collapse'>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<div {TEXT} style='overflow-x:auto'>{table}</div>{note}"


def _cell(value: str) -> str:
    if isinstance(value, Marked):
        return f'<td style="{_CELL}">{value.html()}</td>'
    if value in MARKS:
        text, colour = MARKS[value]
        badge = f"background:{colour};color:#fff;border-radius:4px;padding:1px 6px;white-space:nowrap"
        return f'<td style="{_CELL}"><span style="{badge}">{text}</span></td>'
    style = _CELL.replace("pre-wrap", "nowrap") if len(value) <= _SHORT and "\n" not in value else _CELL
    return f'<td style="{style}">{escape(value)}</td>'


def _text(value: Any) -> str:
    if isinstance(value, Marked):
        return value
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return ", ".join(sorted(map(_text, value)))
    return str(value)


def checks_table(checks: Iterable[Any]) -> Table:
    """Findings with a status: anything with ``name``, ``status``, ``detail`` and ``fix``."""
    return Table(["check", "status", "finding", "to do"], [(c.name, c.status, c.detail, c.fix) for c in checks])


def answers_table(answers: Sequence[Mapping[str, Any]], limit: int = 8) -> Table:
    """Base and tuned answers side by side; what the base does not say is marked, and whether the expected answer was given is said."""
    from mac_lora_helpers.evaluation import mark_difference

    rows = []
    for answer in answers[:limit]:
        hit = "=" if answer["expected"] is not None and answer["tuned"].strip() == str(answer["expected"]).strip() else "≠"
        tuned = Marked.of(mark_difference(answer["tuned"], answer["base"]))
        rows.append((answer["prompt"], answer["base"], tuned, hit, answer["expected"]))
    note = f"{min(limit, len(answers))} of {len(answers)} held-out examples. = tuned answer equals the expected one, ≠ it differs."
    return Table(["question", "base", "tuned", "", "expected"], rows, note=f"{note} Marked: what the base does not say.")


def files_table(files: Iterable[Mapping[str, Any]], title: str = "") -> Table:
    """Files with their size and the start of their digest."""
    rows = [(f["path"], size(f["bytes"]), f["sha256"][:12]) for f in files]
    return Table(["file", "size", "sha256 starts"], rows, title)


#: Key of ``train_metrics.json`` → what it means.
TRAINING = {
    "steps": "optimizer steps done",
    "first_loss": "mean loss of the first steps (nats per trained token)",
    "last_loss": "mean loss of the last steps",
    "curve": "what the loss on the validation rows did",
    "saved_step": "the step whose adapter is saved",
    "valid_loss_base": "loss on validation rows, adapter off",
    "valid_loss_tuned": "loss on validation rows, adapter on",
    "trainable_parameters": "numbers in the adapter; all others are frozen",
    "tokens": "tokens read, padding apart",
    "tokens_per_second": "over the whole training",
    "seconds": "time in training",
}

#: Key of the audit → what a learner would say.
AUDIT = {
    "loss_fell": "the loss on rows it trained on is lower with the adapter than without",
    "finite": "every number of the saved adapter is finite",
    "lora_b_nonzero": "every adapted layer was trained (lora_B starts at zero)",
    "logits_changed": "the adapter, read back from disk, changes what the model says",
    "saved_equals_trained": "the adapter on disk gives the logits of the trained model",
    "best_is_saved": "the adapter on disk has the lowest validation loss that was measured",
    "length_as_asked": "no row was longer than max_seq_length, and the trainer used that length",
    "dtype_as_asked": "the base model was in the number format asked for",
    "batches_equal_data": "every batch held tokens and labels of notebook 02, unchanged",
}


def training_table(metrics: Mapping[str, Any]) -> Table:
    """The figures of ``train_metrics.json``, predicted beside measured memory last."""
    rows = [(name, metrics[name], meaning) for name, meaning in TRAINING.items() if metrics.get(name) is not None]
    predicted, measured = metrics["predicted_memory_bytes"], metrics["peak_memory_bytes"]
    rows += [
        ("memory predicted", size(predicted), "peak, from the model's shape alone")
        if predicted
        else ("memory predicted", "not counted", metrics.get("not_predicted") or ""),
        ("memory measured", size(measured), "peak, during the run"),
    ]
    return Table(["what", "value", "meaning"], rows)


def audit_table(audit: Mapping[str, bool | None]) -> Table:
    """The audit's checks in words; ``None`` was not judged, for example after very few steps."""
    words = {True: "passed", False: "failed", None: "not checked"}
    rows = [(AUDIT.get(name, name), words[held], name) for name, held in audit.items()]
    return Table(["what success looks like", "result", "check"], rows)
