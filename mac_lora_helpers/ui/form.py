"""A form made from the config: it starts from the parameters and writes back to them."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from mac_lora_helpers.config import Config, parameter_info

_LAYOUT = {"width": "34em"}
_DESCRIPTION = {"description_width": "16em"}


def config_form(config: Config, names: Iterable[str]) -> Any:
    """A form over some parameters, or ``None`` in a headless run.

    A change is written to ``config`` at once; a value that does not fit is refused in place and the
    config keeps the last good one. The form never waits for anybody: later cells read ``config``.
    """
    if os.environ.get("MAC_LORA_HEADLESS") == "1":
        return None
    import ipywidgets as widgets

    rows = [_row(config, name) for name in names]
    head = widgets.HTML("<b>Turn the parameters here</b> (or in the cell above), then run the cells below.")
    return widgets.VBox([head, *rows])


def _row(config: Config, name: str) -> Any:
    import ipywidgets as widgets

    info = parameter_info(name)
    field = _widget(info, getattr(config, name))
    field.layout, field.style, field.tooltip = widgets.Layout(**_LAYOUT), _DESCRIPTION, info["help"]
    message = widgets.HTML(_help(info["help"]))

    def write(change: dict[str, Any]) -> None:
        try:
            setattr(config, name, change["new"])
            message.value = _help(info["help"] + (" · changed" if change["new"] != info["default"] else ""))
        except ValidationError as error:
            kept = getattr(config, name)
            message.value = f"<span style='color:#c43c1a'>✗ {html.escape(error.errors()[0]['msg'])}; kept {html.escape(str(kept))}</span>"

    field.observe(write, names="value")
    return widgets.HBox([field, message])


def _widget(info: dict[str, Any], value: Any) -> Any:
    """Widget kinds whose accessible name is their description (sliders and toggle buttons have none)."""
    import ipywidgets as widgets

    if info["choices"]:
        return widgets.Dropdown(options=info["choices"], value=value, description=info["name"])
    if info["type"] == "boolean":
        return widgets.Checkbox(value=value, description=info["name"], indent=True)
    if info["type"] == "integer":
        return widgets.IntText(value=value, description=info["name"])
    if info["type"] == "number":
        return widgets.FloatText(value=value, description=info["name"])
    return widgets.Text(value=value, description=info["name"], continuous_update=False)


def _help(text: str) -> str:
    return f"<span style='opacity:.75'>{html.escape(text)}</span>"
