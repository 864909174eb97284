"""A form over parameters: it writes to the config at once, keeps what is typed for the next run, and waits for nobody."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import CONSENT, PRESETS, Config, parameter_info, preset_values, why_refused
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.ui.parts import TEXT, Shown, button, column, escape, heading, headless, note, row
from mac_lora_helpers.ui.settings import SOURCES, allowed, command, differs, origin, plain, settings_table
from mac_lora_helpers.ui.tables import Table

_HEAD = (
    "Change a value, then run the cells below (menu Run, Run Selected Cell and All Below) or all of them: "
    "what you type here is kept in the run directory until you drop it."
)
_PATHS = ("out_dir", "model_id", "data_files", "adapter_dir")
_COPY = "getSelection().selectAllChildren(this.nextElementSibling); document.execCommand('copy'); this.textContent = 'Copied'"


def config_form(config: Config, names: Iterable[str]) -> ConfigForm | Table:
    """A form over some parameters; in a headless run a table of them.

    A value that does not fit is refused in place and the last good one stays. Later cells read ``config``.
    """
    return settings_table(config, names) if headless() else ConfigForm(config, names)


class ConfigForm(Shown):
    """The form: a field for each parameter, and the command that does the same.

    Args:
        config: the resolved parameters; written to.
        names: parameters to show; they are grouped as in the config.
        top: a widget to show above the fields.
        on_change: called after every change of the config.
    """

    def __init__(self, config: Config, names: Iterable[str], top: Any = None, on_change: Callable[[], None] | None = None) -> None:
        import ipywidgets as widgets

        self.config, self.names, self._on_change = config, list(names), on_change
        self.fields = {name: Field(self, name) for name in self.names}
        self.status = widgets.HTML(layout=widgets.Layout(flex="1 1 18em", min_width="0"))
        self.drop = button("drop what was typed", "every field here goes back to what holds without the form", self.drop_typed)
        self.command = widgets.HTML()
        groups: dict[str, list[Any]] = {}
        for name, field in self.fields.items():
            groups.setdefault(parameter_info(name)["group"], []).append(field.row)
        head = [widgets.HTML(note(_HEAD)), row(self.status, self.drop), *([top] if top else [])]
        self.widget = column(*head, *(column(heading(group), *rows) for group, rows in groups.items()), self.command)
        self.show()

    def set(self, name: str, value: Any) -> str:
        """Writes a value and keeps it for the next run.

        Returns:
            Why it could not be kept; empty if it was.
        """
        if name == "out_dir":
            RunDir(value)
        self.config.take_preset(value) if name == "preset" else setattr(self.config, name, value)
        return self._draft(lambda draft: draft.keep(name, getattr(self.config, name)))

    def release(self, *names: str) -> None:
        """The named parameters go back to what holds without the form."""
        said = self._draft(lambda draft: draft.drop(*names))
        for name in names:
            self.config.release(name)
        self.changed(said)

    def drop_typed(self) -> None:
        """All that was typed here goes; the preset first, as the others follow it."""
        self.release(*sorted((name for name in self.names if self.typed(name)), key=lambda name: name != "preset"))

    def _draft(self, change: Callable[[Any], Any]) -> str:
        try:
            if self.config.draft:
                change(self.config.draft)
        except UserError as error:
            return f"✗ it counts here, but is not kept for the next run: {error.what}"
        return ""

    def typed(self, name: str) -> bool:
        """Whether the value was typed into a form."""
        return self.config.source_of(name) in ("form", "draft")

    def changed(self, said: str = "") -> None:
        """Shows the config after a change; ``said`` is what else there is to say."""
        self.show(said)
        if self._on_change:
            self._on_change()

    def show(self, said: str = "") -> None:
        """Every field and the whole, as the config is."""
        for field in self.fields.values():
            field.show()
        typed = [name for name in self.names if self.typed(name)]
        words = f"preset {self.config.preset}; " + (f"● typed here: {', '.join(typed)}" if typed else "nothing was typed here")
        self.status.value = note(said or words, "refused" if said else "changed" if typed else "plain", live=True)
        self.drop.layout.display = "" if typed else "none"
        self.command.value = _command(command(self.config))

    def static_html(self) -> str:
        """The fields' values as a table."""
        return settings_table(self.config, self.names)._repr_html_()

    def static_text(self) -> str:
        """The fields' values as aligned text."""
        return repr(settings_table(self.config, self.names))


class Field:
    """A parameter as a widget, with what is to be said of it and the way back.

    Args:
        form: its config is written to.
        name: of the parameter.
    """

    def __init__(self, form: ConfigForm, name: str) -> None:
        import ipywidgets as widgets

        self.form, self.config, self.name = form, form.config, name
        self.help = " · ".join(part for part in (parameter_info(name)["help"], _limits(name)) if part)
        self.widget = _widget(name, getattr(self.config, name))
        self.widget.layout = widgets.Layout(width="min(46em, 100%)" if name in _PATHS else "min(30em, 100%)", flex="0 1 auto")
        self.widget.style.description_width, self.widget.tooltip = "15em", self.help
        self.reset = button(f"reset {name}", f"{name} goes back to what holds without the form", lambda: form.release(name))
        self.message = widgets.HTML(layout=widgets.Layout(flex="1 1 18em", min_width="0"))
        self.row = row(self.widget, self.reset, self.message)
        self._showing = False
        self.widget.observe(self._write, names="value")

    def show(self, refused: str = "") -> None:
        """The config's value, and what is to be said of it."""
        self._showing = True
        try:
            self.widget.value = getattr(self.config, self.name)
        finally:
            self._showing = False
        asked = self.config.asked(self.name)
        self.reset.layout.display = "" if self.form.typed(self.name) else "none"
        self.message.value = note(refused or self._words(asked), "refused" if refused else "changed" if asked else "plain", live=True)

    def _words(self, asked: bool) -> str:
        if self.name != "preset":
            return f"● {self._origin()} · {self.help}" if asked else self.help
        others = {preset: self.config.preset_changes(preset) for preset in PRESETS if preset != self.config.preset}
        told = [f"{preset} would change {_changes(changes)}" for preset, changes in others.items()]
        return "\n".join([self.help, *told, "what you set yourself stays as it is"])

    def _origin(self) -> str:
        """Where the value came from, what the preset has, and what becomes of it in the next run."""
        base = f"; preset {self.config.preset}: {plain(preset_values(self.config.preset)[self.name])}"
        words = origin(self.config, self.name) + (base if differs(self.config, self.name) else "")
        if self.form.typed(self.name) and self.config.given(self.name):
            words += f"; at Run All the value {SOURCES[self.config.given(self.name)]} counts again"
        elif self.name in CONSENT:
            words += "; it counts for this run only, and is asked for anew in the next"
        elif self.name == "out_dir" and self.config.source_of(self.name) == "form":
            words += "; counts from Run All on"
        return words

    def _write(self, change: dict[str, Any]) -> None:
        if self._showing:
            return
        before = plain(getattr(self.config, self.name))
        try:
            said = self.form.set(self.name, change["new"])
        except (ValidationError, UserError) as error:
            why = error.what if isinstance(error, UserError) else why_refused(error)
            limits = allowed(self.name) or self.help
            self.show(f"✗ {portable(plain(change['new']))} refused: {why} ({limits}); kept {before}")
            return
        self.form.changed(said)


def _widget(name: str, value: Any) -> Any:
    """Kinds of widgets whose accessible name is their description (sliders and toggle buttons have none)."""
    import ipywidgets as widgets

    info = parameter_info(name)
    if info["choices"]:
        return widgets.Dropdown(options=[(plain(choice), choice) for choice in info["choices"]], value=value, description=name)
    if info["type"] == "boolean":
        return widgets.Checkbox(value=value, description=name, indent=True)
    if info["type"] in ("integer", "number"):
        return (widgets.IntText if info["type"] == "integer" else widgets.FloatText)(value=value, description=name)
    return widgets.Text(value=value, description=name, continuous_update=False)


def _limits(name: str) -> str:
    """What one must know to fill the field in: where relative names start, or the bounds."""
    if name in _PATHS:
        return f"relative names start in {portable(str(Path.cwd()))}"
    return "" if parameter_info(name)["choices"] else allowed(name)


def _changes(changes: dict[str, Any]) -> str:
    """``lora_r to 16, prompt to 'Who?'``"""
    return ", ".join(f"{name} to {shlex.quote(plain(value))}" for name, value in changes.items()) or "nothing"


def _command(text: str) -> str:
    """The command, and a button that copies it."""
    copy = f'<button type="button" class="jupyter-button lm-Widget" style="width:auto" onclick="{_COPY}">Copy the command</button>'
    code = f"<code style='white-space:pre-wrap;overflow-wrap:anywhere'>{escape(text)}</code>"
    return f"<div {TEXT} style='line-height:1.5;margin-top:8px'>{copy} {code}</div>"
