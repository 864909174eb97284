"""A conversation as coloured tokens: what is trained, what is context, what is a special token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mac_lora_helpers.text import visible
from mac_lora_helpers.ui.parts import TEXT, Shown, button, column, escape, headless, note, row

#: Translucent backgrounds read on light and dark themes; trained tokens are underlined as well, for readers who cannot tell the colours.
_STYLES = {
    "trained": "background:rgba(0,114,178,.28);border-bottom:2px solid #0072b2",
    "context": "background:rgba(128,128,128,.13);border-bottom:2px solid transparent",
    "special": "background:rgba(230,159,0,.25);border-bottom:2px dotted #b36b00",
}
_MEANING = {
    "trained": "trained: the loss counts it",
    "context": "context: read, not trained",
    "special": "special token, not trained",
}


class TokenView:
    """Shows token pieces; each has ``text``, ``kind`` (trained, context, special) and ``id``.

    Args:
        pieces: the tokens of one row, in order.
        title: shown above, for example the split and the row's number.
    """

    def __init__(self, pieces: Sequence[Any], title: str = "") -> None:
        self.pieces, self.title = list(pieces), title

    def __repr__(self) -> str:
        text = "".join(f"[{p.text}]" if p.kind == "trained" else p.text for p in self.pieces)
        return visible(f"{self.title}\n{text}\n[…] = trained")

    def _repr_html_(self) -> str:
        spans = "".join(_span(piece) for piece in self.pieces)
        used = [kind for kind in _STYLES if any(piece.kind == kind for piece in self.pieces)]
        patch = "padding:1px 5px;margin-right:8px;display:inline-block"
        legend = " ".join(f"<span style='{_STYLES[kind]};{patch}'>{_MEANING[kind]}</span>" for kind in used)
        body = f"<div style='font-family:monospace;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere'>{spans}</div>"
        title = f"<div style='font-weight:600'>{escape(self.title)}</div>"
        return f"<div {TEXT}>{title}{body}<div style='padding-top:6px'>{legend}</div></div>"


def token_browser(encoded: Any, tokenizer: Any, split: str = "train") -> TokenBrowser | TokenView:
    """Rows of notebook 02 to step through, or in a headless run the first one.

    Args:
        encoded: what ``data.encode`` made.
        tokenizer: the one it was made with.
        split: the one to begin with.
    """
    return _view(encoded, tokenizer, split, 0) if headless() else TokenBrowser(encoded, tokenizer, split)


def _view(encoded: Any, tokenizer: Any, split: str, number: int) -> TokenView:
    from mac_lora_helpers.data import token_view

    return TokenView(token_view(encoded, tokenizer, split, number), title=f"{split}, row {number}")


class TokenBrowser(Shown):
    """A split, a row number, previous and next; the arrow keys in the number step as well."""

    def __init__(self, encoded: Any, tokenizer: Any, split: str = "train") -> None:
        import ipywidgets as widgets

        self._view = lambda split, number: _view(encoded, tokenizer, split, number)
        self.counts = {name: len(rows) for name, rows in encoded.splits.items() if len(rows)}
        small = {"style": {"description_width": "auto"}, "layout": widgets.Layout(width="11em", flex="0 0 auto")}
        self.split = widgets.Dropdown(options=list(self.counts), value=split, description="split", **small)
        self.number = widgets.BoundedIntText(value=0, min=0, description="row", **small)
        self.previous = button("◀ previous", "the row before", lambda: self._step(-1))
        self.next = button("next ▶", "the row after", lambda: self._step(1))
        self.status, self.shown = widgets.HTML(), widgets.HTML(layout=widgets.Layout(width="100%"))
        self.widget = column(row(self.split, self.number, self.previous, self.next, self.status), self.shown)
        self.split.observe(lambda _: self._choose_split(), names="value")
        self.number.observe(lambda _: self._show(), names="value")
        self._choose_split()

    def _choose_split(self) -> None:
        self.number.max = self.counts[self.split.value] - 1
        if self.number.value:
            self.number.value = 0
        else:
            self._show()

    def _step(self, by: int) -> None:
        self.number.value = min(max(self.number.value + by, 0), self.number.max)

    def _show(self) -> None:
        self.previous.disabled, self.next.disabled = self.number.value == 0, self.number.value == self.number.max
        self.status.value = note(f"of 0 to {self.number.max:,}")
        self.view = self._view(self.split.value, self.number.value)
        self.shown.value = self.view._repr_html_()

    def static_html(self) -> str:
        """The row on show."""
        return self.view._repr_html_()

    def static_text(self) -> str:
        """The row on show."""
        return repr(self.view)


def _span(piece: Any) -> str:
    text = escape(piece.text.replace("\r", "␍")).replace("\t", "⇥\t").replace("\n", "⏎\n")
    return f"<span title='id {int(piece.id)}' style='{_STYLES[piece.kind]};margin-right:1px'>{text or '∅'}</span>"
