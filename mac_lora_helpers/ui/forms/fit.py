"""The form of notebook 03: the memory and the time follow each change as a bar against this machine."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.ui.forms.form import ConfigForm
from mac_lora_helpers.ui.idle import Idle
from mac_lora_helpers.ui.parts import headless, note
from mac_lora_helpers.ui.tables import size

#: Parts of the prediction that a learner tells apart → (their names in the forecast, colour, hatching).
_SHARES = {
    "base model": (("weights",), "#0072b2"),
    "adapter and optimizer": (("adapter", "gradients", "optimizer"), "#e69f00"),
    "activations and loss": (("activations", "logits", "layer"), "#009e73"),
}
_OTHER, _OTHER_COLOUR = "allowances", "#999999"


def fit_form(
    config: Config, names: Iterable[str], fit: Callable[..., Any], ahead: Callable[..., Iterator[None]] | None = None, **known: Any
) -> FitForm | None:
    """The form with a bar that says whether the training fits here, or ``None`` in a headless run.

    Args:
        config: the resolved parameters; written to.
        names: parameters to show.
        fit: called as ``fit(config, **known)`` after every change; gives ``parts total_bytes available_bytes fits steps
            step_seconds total_seconds advice``.
        ahead: called likewise; its steps are taken while the kernel has nothing else to do, so that the next answer is there.
        known: what else both take, for example the rows' lengths.
    """
    return None if headless() else FitForm(config, names, fit, known, ahead)


class FitForm(ConfigForm):
    """A config form with ``bar`` (an HTML widget) above its fields and the last ``fit``."""

    def __init__(self, config: Config, names: Iterable[str], fit: Callable[..., Any], known: Mapping[str, Any], ahead: Any = None) -> None:
        import ipywidgets as widgets

        self._ask, self._known, self.fit = fit, dict(known), None
        self._idle = Idle(lambda: ahead(self.config.model_copy(), **self._known)) if ahead else None
        self.bar = widgets.HTML(layout=widgets.Layout(width="min(60em, 100%)"))
        super().__init__(config, names, top=self.bar, on_change=self._measure)
        self._measure()

    def _measure(self) -> None:
        # In the kernel's main thread on purpose: beside a cell that loads a model, two would turn torch's defaults under each other.
        self.bar.value = bar(self.fit) + note("counting …")
        try:
            self.fit = self._ask(self.config, **self._known)
        except UserError as error:
            self.bar.value = bar(self.fit) + note(
                f"✗ not predicted for these values: {error.what}; to do: {error.fix}", "refused", live=True
            )
            return
        self.bar.value = bar(self.fit)
        if self._idle:
            self._idle.begin()

    def static_html(self) -> str:
        """The bar, then the values."""
        return bar(self.fit) + super().static_html()

    def static_text(self) -> str:
        """The bar's words, then the values."""
        return "\n".join([*words(self.fit), super().static_text()])


def bar(fit: Any) -> str:
    """The prediction as a bar up to what is free here, with the same in words; empty before there is one."""
    if fit is None:
        return ""
    scale = 100 / max(fit.total_bytes, fit.available_bytes, 1)
    shares = [(name, count, colour) for name, count, colour in _shares(fit.parts) if count]
    pieces = "".join(f"<span style='width:{scale * count:.2f}%;background:{colour}'></span>" for _, count, colour in shares)
    pieces = pieces.replace("<span style='", "<span style='display:block;height:100%;flex:none;min-width:2px;")
    place = f"left:calc({scale * fit.available_bytes:.2f}% - 3px)"
    edge = f"<span style='position:absolute;top:-3px;bottom:-3px;{place};border-left:3px solid currentColor'></span>"
    frame = "position:relative;display:flex;height:22px;margin:6px 0;box-sizing:border-box;outline:1px solid currentColor"
    hatch = "" if fit.fits else "outline:2px dashed #d55e00;"
    first, *more = words(fit)
    picture = f"<div role='img' aria-label='{html.escape(first)}' style='{frame};{hatch}'>{pieces}{edge}</div>"
    legend = "".join(_legend(name, count, colour) for name, count, colour in shares)
    tone = "font-weight:600" if fit.fits else "font-weight:600;background:rgba(213,94,0,.22);border-left:3px solid #d55e00;padding:1px 6px"
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in more)
    return (
        f"<div style='line-height:1.45;white-space:normal'><div role='status' style='{tone}'>{html.escape(first)}</div>"
        f"{picture}<div>{legend}</div>{lines}</div>"
    )


def words(fit: Any) -> list[str]:
    """The prediction in sentences: whether it fits, the time, and what to turn down."""
    if fit is None:
        return []
    verdict = "✓ fits" if fit.fits else "✗ does not fit"
    first = f"{verdict}: needs about {size(fit.total_bytes)} of the {size(fit.available_bytes)} that a training may take here now"
    reason = getattr(fit, "checkpointing_reason", "")
    chosen = [f"gradient checkpointing {'on' if fit.gradient_checkpointing else 'off'}: {reason}"] if reason else []
    advice = [fit.advice] if isinstance(fit.advice, str) else list(fit.advice or [])
    return [first, time_text(fit.steps, fit.step_seconds, fit.total_seconds), *chosen, *(f"to do: {line}" for line in advice if line)]


def time_text(steps: int | None, step_seconds: float | None, total_seconds: float | None) -> str:
    """The predicted time in words."""
    if step_seconds is None or total_seconds is None:
        return f"time: known after the first steps on this machine{f' ({steps:,} steps)' if steps else ''}"
    return f"time: about {duration(total_seconds)}" + (f" ({steps:,} steps of {step_seconds:.2g} s)" if steps else "")


def duration(seconds: float) -> str:
    """Seconds as people say them: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shares(parts: Mapping[str, int]) -> list[tuple[str, int, str]]:
    named = {part for names, _ in _SHARES.values() for part in names}
    shares = [(name, sum(parts.get(part, 0) for part in names), colour) for name, (names, colour) in _SHARES.items()]
    return [*shares, (_OTHER, sum(count for part, count in parts.items() if part not in named), _OTHER_COLOUR)]


def _legend(name: str, count: int, colour: str) -> str:
    patch = f"display:inline-block;width:.8em;height:.8em;background:{colour};margin-right:5px"
    return f"<span style='margin-right:16px;white-space:nowrap'><span style='{patch}'></span>{html.escape(name)} {size(count)}</span>"
