"""Small tables that show as HTML in JupyterLab and as aligned text on a terminal.

All cell text is escaped: data of the user's is shown, never rendered.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Marks carry a word as well as a colour, so that they can be told apart without seeing colour.
MARKS = {
    "ok": ("✓ ok", "#0f7b5f"),
    "passed": ("✓ passed", "#0f7b5f"),
    "warn": ("! warn", "#b36b00"),
    "not checked": ("– not checked", "#b36b00"),
    "fail": ("✗ fail", "#c43c1a"),
    "failed": ("✗ failed", "#c43c1a"),
}
_CELL = "text-align:left;vertical-align:top;padding:3px 10px;white-space:pre-wrap;max-width:44em;overflow-wrap:anywhere"


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

    def __repr__(self) -> str:
        lines = [[MARKS.get(value, (value, ""))[0].replace("\n", " ⏎ ") for value in row] for row in self.rows]
        widths = [min(60, max(len(row[i]) for row in [self.columns, *lines])) for i in range(len(self.columns))]
        rendered = ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in lines]
        head = "  ".join(name.ljust(width) for name, width in zip(self.columns, widths, strict=True)).rstrip()
        return "\n".join(part for part in [self.title, head, "-" * len(head), *rendered, self.note] if part)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col" style="{_CELL}">{html.escape(name)}</th>' for name in self.columns)
        body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in self.rows)
        caption = (
            f"<caption style='text-align:left;font-weight:600;padding:4px 0'>{html.escape(self.title)}</caption>" if self.title else ""
        )
        note = f"<div style='padding:4px 0'>{html.escape(self.note)}</div>" if self.note else ""
        return f"<table style='border-collapse:collapse'>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _cell(value: str) -> str:
    if value in MARKS:
        text, colour = MARKS[value]
        badge = f"background:{colour};color:#fff;border-radius:4px;padding:1px 6px;white-space:nowrap"
        return f'<td style="{_CELL}"><span style="{badge}">{text}</span></td>'
    return f'<td style="{_CELL}">{html.escape(value)}</td>'


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def size(count: float) -> str:
    """Bytes as people write them, decimal units: ``7.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def config_table(config: Any, names: Iterable[str]) -> Table:
    """The parameters of a stage: value, where it came from, what it means."""
    fields = type(config).model_fields
    rows = [(name, str(getattr(config, name)) or "(empty)", config.source_of(name), fields[name].description) for name in names]
    return Table(["parameter", "value", "from", "meaning"], rows)


def checks_table(checks: Iterable[Any]) -> Table:
    """Findings with a status: anything with ``name``, ``status``, ``detail`` and ``fix``."""
    return Table(["check", "status", "finding", "to do"], [(c.name, c.status, c.detail, c.fix) for c in checks])


def passed_table(rows: Iterable[tuple[str, bool | None, str]], title: str = "") -> Table:
    """What success looks like: (statement, whether it held or None, the evidence)."""
    words = {True: "passed", False: "failed", None: "not checked"}
    return Table(["what success looks like", "result", "evidence"], [(name, words[held], why) for name, held, why in rows], title)


def answers_table(answers: Sequence[Mapping[str, Any]], limit: int = 8) -> Table:
    """Base and tuned answers side by side; a tuned answer that equals the expected one is marked."""
    rows = []
    for answer in answers[:limit]:
        hit = "=" if answer["expected"] is not None and answer["tuned"].strip() == str(answer["expected"]).strip() else "≠"
        rows.append((answer["prompt"], answer["base"], answer["tuned"], hit, answer["expected"]))
    note = f"{min(limit, len(answers))} of {len(answers)} held-out examples. = tuned answer equals the expected one, ≠ it differs."
    return Table(["question", "base", "tuned", "", "expected"], rows, note=note)


def files_table(files: Iterable[Mapping[str, Any]], title: str = "") -> Table:
    """Files with their size and the start of their digest."""
    rows = [(f["path"], size(f["bytes"]), f["sha256"][:12]) for f in files]
    return Table(["file", "size", "sha256 starts"], rows, title)
