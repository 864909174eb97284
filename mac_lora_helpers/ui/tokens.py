"""A conversation as coloured tokens: what is trained, what is context, what is a special token."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

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
        return f"{self.title}\n{text}\n[…] = trained"

    def _repr_html_(self) -> str:
        spans = "".join(_span(piece) for piece in self.pieces)
        used = [kind for kind in _STYLES if any(piece.kind == kind for piece in self.pieces)]
        legend = " ".join(f"<span style='{_STYLES[kind]};padding:1px 5px;margin-right:8px'>{_MEANING[kind]}</span>" for kind in used)
        body = f"<div style='font-family:monospace;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere'>{spans}</div>"
        return f"<div><div style='font-weight:600'>{html.escape(self.title)}</div>{body}<div style='padding-top:6px'>{legend}</div></div>"


def _span(piece: Any) -> str:
    text = html.escape(piece.text).replace("\r", "␍").replace("\t", "⇥\t").replace("\n", "⏎\n")
    return f"<span title='id {int(piece.id)}' style='{_STYLES[piece.kind]};margin-right:1px'>{text or '∅'}</span>"
