"""A figure that brings its own words: alternative text in the browser, the same words on a terminal."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from matplotlib.figure import Figure

#: In JupyterLab's dark theme a white figure glares: lightness is turned round, hues stay where they are. The attribute is
#: JupyterLab's own; elsewhere the rule finds nothing.
_DARK = "<style>[data-jp-theme-light='false'] img.mlh-figure{filter:invert(.89) hue-rotate(180deg)}</style>"

#: Narrower than this many pixels its letters could not be read: in a narrow window the figure is scrolled instead.
_READABLE = 640


class Picture(Figure):
    """A figure of its own (not pyplot's): shown once where it is the cell's value, never left open.

    Attributes:
        alt: the picture in words, for readers who cannot see it and for terminals; its titles where nothing else was said.
    """

    alt: str = ""

    @property
    def words(self) -> str:
        """``alt``, or the titles."""
        titles = [self.get_suptitle(), *(axes.get_title(loc="left") or axes.get_title() for axes in self.axes)]
        return self.alt or ": ".join(dict.fromkeys(title for title in titles if title))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=96)
        return buffer.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The picture drawn once; as HTML because JupyterLab gives a plain PNG no alternative text."""
        content, words = base64.b64encode(self._repr_png_()).decode(), html.escape(self.words)
        width = round(96 * self.get_figwidth())
        size = f"width:100%;max-width:{width}px;min-width:{min(width, _READABLE)}px;height:auto"
        image = f"<img class='mlh-figure' alt='{words}' src='data:image/png;base64,{content}' style='{size}'>"
        return {"text/html": f"{_DARK}<div style='overflow-x:auto'>{image}</div>", "image/png": content, "text/plain": self.words}

    def __repr__(self) -> str:
        return self.words
