"""The form over a notebook's parameters: grouped fields, presets, and the config as text to take along."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mac_lora_helpers.config import PRESETS, Config, parameter_info, preset_values
from mac_lora_helpers.ui.forms import recipe
from mac_lora_helpers.ui.forms.fields import Field
from mac_lora_helpers.ui.parts import Shown, button, column, heading, headless, note, row, text_area

_HEAD = (
    "Change a value here, then run the cells below this one (menu Run, Run Selected Cell and All Below). "
    "Run All starts again from the parameters cell."
)


def config_form(config: Config, names: Iterable[str]) -> ConfigForm | None:
    """A form over some parameters, or ``None`` in a headless run.

    A change is written to ``config`` at once; a value that does not fit is refused in place and the config keeps the
    last good one. The form never waits for anybody: later cells read ``config``.
    """
    return None if headless() else ConfigForm(config, names)


class ConfigForm(Shown):
    """The form; ``fields`` by parameter name, ``command``, ``yaml`` and ``effective`` are what it says of the whole.

    Args:
        config: the resolved parameters; written to.
        names: parameters to show, in order; they are grouped as in the config.
        top: a widget to show above the fields.
        on_change: called after every change of the config.
    """

    def __init__(self, config: Config, names: Iterable[str], top: Any = None, on_change: Callable[[], None] | None = None) -> None:
        import ipywidgets as widgets

        self.config, self.names, self._changed_hook = config, list(names), on_change
        self.fields = {name: Field(config, name, self._changed) for name in self.names}
        self.presets = {name: _preset_button(self, name) for name in PRESETS}
        self.status = widgets.HTML(layout=widgets.Layout(flex="1 1 18em", min_width="0"))
        self.command, self.yaml = text_area("command", 3), text_area("papermill YAML", 6)
        self.effective = widgets.HTML(layout=widgets.Layout(overflow="auto", max_width="100%"))
        self.more = _toggle(self.command, self.yaml, self.effective)
        head = [widgets.HTML(note(_HEAD)), row(*self.presets.values(), self.status)]
        self.widget = column(*head, *([top] if top else []), *self._groups(), self.more)
        self._show_whole()

    def _groups(self) -> list[Any]:
        groups: dict[str, list[Any]] = {}
        for name, field in self.fields.items():
            groups.setdefault(parameter_info(name)["group"], []).append(field.row)
        return [column(heading(group), *rows) for group, rows in groups.items()]

    def fill(self, preset: str) -> None:
        """Every field takes the preset's value; ``preset`` itself changes where it is one of the fields."""
        if "preset" in self.names:
            self.config.take_preset(preset, self.names)
        else:
            self._fill_values(preset)
        self._changed("")

    def _fill_values(self, preset: str) -> None:
        """The run's preset was chosen in an earlier notebook: only the fields' values change."""
        self.config.take_preset(self.config.preset, self.names)
        wanted = preset_values(preset)
        for name in self.names:
            if getattr(self.config, name) != wanted[name]:
                setattr(self.config, name, wanted[name])

    def _changed(self, name: str) -> None:
        if name == "preset":
            self.config.take_preset(self.config.preset, [n for n in self.names if n != "preset"])
        for field in self.fields.values():
            field.show()
        self._show_whole()
        if self._changed_hook:
            self._changed_hook()

    def _show_whole(self) -> None:
        count = sum(recipe.differs(self.config, name) for name in self.names if name != "preset")
        words = f"preset {self.config.preset}; " + (
            f"● {count} of {len(self.names)} values differ from it" if count else "no value differs from it"
        )
        self.status.value = note(words, "changed" if count else "plain", live=True)
        self.command.value, self.yaml.value = recipe.command(self.config), recipe.papermill_yaml(self.config)
        self.effective.value = recipe.effective_table(self.config)._repr_html_()

    def static_html(self) -> str:
        """The fields' values as a table."""
        return recipe.effective_table(self.config, self.names)._repr_html_()

    def static_text(self) -> str:
        """The fields' values as aligned text."""
        return repr(recipe.effective_table(self.config, self.names))


def _preset_button(form: ConfigForm, preset: str) -> Any:
    return button(f"fill with {preset}", f"every field here takes the value of preset {preset}", lambda: form.fill(preset))


def _toggle(*parts: Any) -> Any:
    """Parts behind a checkbox: a long table is not in the way of the next cell."""
    import ipywidgets as widgets

    box = column(*parts, display="none")
    show = widgets.Checkbox(
        value=False, description="show as command, as YAML and as a table", indent=False, layout=widgets.Layout(width="auto")
    )

    def switch(change: dict[str, Any]) -> None:
        box.layout.display = "" if change["new"] else "none"

    show.observe(switch, names="value")
    return column(show, box, margin="8px 0 0 0")
