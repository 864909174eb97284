"""One parameter as a field with its help, its bounds, a mark when it differs from the preset, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from mac_lora_helpers.config import Config, parameter_info, preset_values
from mac_lora_helpers.ui.forms.recipe import differs, origin
from mac_lora_helpers.ui.parts import button, note, row

_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}


class Field:
    """A parameter of the config as a widget; a value that does not fit is refused and the last good one stays.

    Args:
        config: written to at once.
        name: of the parameter.
        on_change: called after the config has changed.
    """

    def __init__(self, config: Config, name: str, on_change: Callable[[str], None]) -> None:
        import ipywidgets as widgets

        self.config, self.name, self.on_change = config, name, on_change
        self.info = parameter_info(name)
        self.help = " · ".join(part for part in (self.info["help"], bounds_text(self.info)) if part)
        self.widget = field_widget(self.info, getattr(config, name))
        self.widget.layout = widgets.Layout(width="min(30em, 100%)", flex="0 1 auto")
        self.widget.style.description_width, self.widget.tooltip = "15em", self.help
        self.reset = button(f"reset {name}", f"back to the preset's value of {name}", self._take_back)
        self.message = widgets.HTML(layout=widgets.Layout(flex="1 1 18em", min_width="0"))
        self.row = row(self.widget, self.reset, self.message)
        self._own_change = False
        self.widget.observe(self._write, names="value")
        self.show()

    def show(self, refused: str = "") -> None:
        """The config's value, and what is to be said of it."""
        value = getattr(self.config, self.name)
        self._own_change = True
        try:
            self.widget.value = value
        finally:
            self._own_change = False
        changed = self.name != "preset" and differs(self.config, self.name)
        self.reset.layout.display = "" if changed else "none"
        tone = "refused" if refused else "changed" if changed else "plain"
        self.message.value = note(refused or self._words(changed), tone, live=True)

    def _words(self, changed: bool) -> str:
        if not changed:
            return self.help
        base = plain(preset_values(self.config.preset)[self.name])
        return f"● changed, {origin(self.config, self.name)}; preset {self.config.preset}: {base} · {self.help}"

    def _write(self, change: dict[str, Any]) -> None:
        if self._own_change:
            return
        kept = getattr(self.config, self.name)
        try:
            setattr(self.config, self.name, change["new"])
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            self.show(f"✗ {plain(change['new'])} refused: {said[:1].lower()}{said[1:]}; kept {plain(kept)}")
            return
        self.on_change(self.name)

    def _take_back(self) -> None:
        self.config.take_preset(self.config.preset, [self.name])
        self.on_change(self.name)


def field_widget(info: dict[str, Any], value: Any) -> Any:
    """Widget kinds whose accessible name is their description (sliders and toggle buttons have none)."""
    import ipywidgets as widgets

    name = info["name"]
    if info["choices"]:
        return widgets.Dropdown(options=[(plain(choice), choice) for choice in info["choices"]], value=value, description=name)
    if info["type"] == "boolean":
        return widgets.Checkbox(value=value, description=name, indent=True)
    if info["type"] == "integer":
        return widgets.IntText(value=value, description=name)
    if info["type"] == "number":
        return widgets.FloatText(value=value, description=name)
    return widgets.Text(value=value, description=name, continuous_update=False)


def bounds_text(info: dict[str, Any]) -> str:
    """The bounds in words: ``at least 1, at most 512``."""
    bounds = info["bounds"]
    return ", ".join(
        f"{words} {bounds[key]:,{'.0f' if bounds[key] == int(bounds[key]) else 'g'}}" for key, words in _BOUNDS.items() if key in bounds
    )


def plain(value: Any) -> str:
    """A value as it is written on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value) or "(empty)"
