"""Small pieces that every form is made of: what a browser shows, and what stays readable without one."""

from __future__ import annotations

import html
import os
from typing import Any

from mac_lora_helpers.text import visible

#: Attribute of whatever shows text: JupyterLab takes "$5 for tea and $10" for a formula where this does not forbid it.
TEXT = 'class="mathjax_ignore tex2jax_ignore"'

#: Translucent grounds with the theme's own text colour read on light and dark; each carries a sign or a word as well.
_TONES = {
    "plain": "opacity:.8",
    "changed": "background:rgba(230,159,0,.22);border-left:3px solid #b36b00;padding:1px 6px",
    "refused": "background:rgba(213,94,0,.22);border-left:3px solid #d55e00;padding:1px 6px",
}


def headless() -> bool:
    """Whether nobody is there to fill in a form: papermill, ``mac-lora run``."""
    return os.environ.get("MAC_LORA_HEADLESS") == "1"


class Shown:
    """A widget with a static form of itself, which a notebook keeps when it is looked at without a kernel.

    Attributes:
        widget: the ipywidgets widget.
    """

    widget: Any

    def static_html(self) -> str:
        """What a page without widgets shows."""
        raise NotImplementedError

    def static_text(self) -> str:
        """What a terminal shows."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {**self.widget._repr_mimebundle_(), "text/html": self.static_html(), "text/plain": self.static_text()}


def note(text: str, tone: str = "plain", live: bool = False) -> str:
    """One line beside a field, escaped; ``live`` lines are read out when they change."""
    role = " role='status'" if live else ""
    return f"<div {TEXT}{role} style='line-height:1.35;white-space:pre-line;{_TONES[tone]}'>{escape(text)}</div>"


def escape(text: str) -> str:
    """Text as HTML shows it: markup as text, control characters as what they are."""
    return html.escape(visible(text))


def heading(text: str) -> Any:
    """The head of a group of fields."""
    import ipywidgets as widgets

    line = f"<div role='heading' aria-level='4' style='font-weight:600;line-height:1.4;margin-top:8px'>{html.escape(text)}</div>"
    return widgets.HTML(line)


def row(*children: Any, **layout: str) -> Any:
    """Widgets side by side; in a narrow window one under the other."""
    import ipywidgets as widgets

    wrapped = {"flex_flow": "row wrap", "align_items": "center", "overflow": "visible", **layout}
    return widgets.HBox(list(children), layout=widgets.Layout(**wrapped))


def column(*children: Any, **layout: str) -> Any:
    """Widgets one under the other, as wide as there is room."""
    import ipywidgets as widgets

    return widgets.VBox(list(children), layout=widgets.Layout(**{"width": "100%", "overflow": "visible", **layout}))


def button(text: str, tooltip: str, on_click: Any, style: str = "") -> Any:
    """A button as wide as its text, which is its accessible name."""
    import ipywidgets as widgets

    made = widgets.Button(description=text, tooltip=tooltip, button_style=style, layout=widgets.Layout(width="auto", flex="0 0 auto"))
    made.on_click(lambda _: on_click())
    return made
