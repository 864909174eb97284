"""The form of notebook 03: a bar shows what memory the training needs, and follows each change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.text import size
from mac_lora_helpers.ui.form import ConfigForm
from mac_lora_helpers.ui.parts import TEXT, escape, headless, note
from mac_lora_helpers.ui.settings import settings_table
from mac_lora_helpers.ui.tables import Table

#: Parts of the forecast that a learner tells apart → (their names in it, colour).
_SHARES = {
    "base model": (("weights",), "#0072b2"),
    "adapter and optimizer": (("adapter", "gradients", "optimizer"), "#e69f00"),
    "activations and loss": (("activations", "logits", "layer"), "#009e73"),
}


def training_form(config: Config, run: RunDir) -> TrainingForm | Table:
    """The training's parameters with a bar of the memory that they need; in a headless run a table of them.

    Args:
        config: the resolved parameters; written to.
        run: holds the tokens of notebook 02, whose lengths the forecast counts with.
    """
    names = ["out_dir", *config.names("training")]
    if headless():
        return settings_table(config, names)
    from mac_lora_helpers import data
    from mac_lora_helpers.training.batches import lengths_of

    return TrainingForm(config, names, lengths_of(data.load_tokens(run)[1]["train"]))


class TrainingForm(ConfigForm):
    """A config form with ``bar`` (an HTML widget) above its fields and the last ``forecast``.

    Args:
        config: the resolved parameters; written to.
        names: parameters to show.
        lengths: the rows' lengths in tokens; None: every row is as long as ``max_seq_length``.
    """

    def __init__(self, config: Config, names: Sequence[str], lengths: Sequence[int] | None = None) -> None:
        import ipywidgets as widgets

        self._lengths, self.forecast = lengths, None
        self.bar = widgets.HTML(layout=widgets.Layout(width="min(60em, 100%)"))
        super().__init__(config, names, top=self.bar, on_change=self._measure)
        self._measure()

    def _measure(self) -> None:
        # In the kernel's main thread on purpose: beside a cell that loads a model, two would turn torch's defaults under each other.
        from mac_lora_helpers import training

        self.bar.value = bar(self.forecast) + note("counting …")
        self.forecast = training.forecast(self.config, lengths=self._lengths)
        self.bar.value = bar(self.forecast)

    def static_html(self) -> str:
        """The bar, then the values."""
        return bar(self.forecast) + super().static_html()

    def static_text(self) -> str:
        """The bar's words, then the values."""
        return "\n".join([*words(self.forecast), super().static_text()])


def bar(forecast: Any) -> str:
    """The prediction as a bar up to what is free here, with the same in words; empty before there is one."""
    if forecast is None:
        return ""
    if not forecast.parts:
        return note(" · ".join(words(forecast)), "changed", live=True)
    scale = 100 / max(forecast.total_bytes, forecast.available_bytes, 1)
    parts = [(name, count, colour) for name, count, colour in shares(forecast.parts) if count]
    block = "display:block;height:100%;flex:none;min-width:2px"
    pieces = "".join(f"<span style='{block};width:{scale * count:.2f}%;background:{colour}'></span>" for _, count, colour in parts)
    place = f"left:calc({scale * forecast.available_bytes:.2f}% - 3px)"
    edge = f"<span style='position:absolute;top:-3px;bottom:-3px;{place};border-left:3px solid currentColor'></span>"
    frame = "position:relative;display:flex;height:22px;margin:6px 0;box-sizing:border-box;outline:1px solid currentColor"
    warning = "" if forecast.fits else "outline:2px dashed #d55e00"
    first, *more = words(forecast)
    picture = f"<div role='img' aria-label='{escape(first)}' style='{frame};{warning}'>{pieces}{edge}</div>"
    legend = "".join(_legend(name, count, colour) for name, count, colour in parts)
    tone = "" if forecast.fits else "background:rgba(213,94,0,.22);border-left:3px solid #d55e00;padding:1px 6px"
    lines = "".join(f"<div>{escape(line)}</div>" for line in more)
    return (
        f"<div {TEXT} style='line-height:1.45;white-space:normal'><div role='status' style='font-weight:600;{tone}'>{escape(first)}</div>"
        f"{picture}<div>{legend}</div>{lines}</div>"
    )


def words(forecast: Any) -> list[str]:
    """The prediction in sentences: whether it fits, checkpointing, and what to turn down."""
    if forecast is None:
        return []
    chosen = f"gradient checkpointing {'on' if forecast.gradient_checkpointing else 'off'}: {forecast.checkpointing_reason}"
    if not forecast.parts:
        return [f"memory not counted: {forecast.reason}", chosen]
    verdict = "✓ fits" if forecast.fits else "✗ does not fit"
    first = f"{verdict}: needs about {size(forecast.total_bytes)} of the {size(forecast.available_bytes)} that a training may take here now"
    return [first, chosen, *([f"to do: {forecast.advice}"] if forecast.advice else [])]


def shares(parts: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """The forecast's parts as a learner tells them apart: name, bytes, colour."""
    named = [(name, sum(parts.get(part, 0) for part in keys), colour) for name, (keys, colour) in _SHARES.items()]
    return [*named, ("allowances", sum(parts.values()) - sum(count for _, count, _ in named), "#999999")]


def _legend(name: str, count: int, colour: str) -> str:
    patch = f"display:inline-block;width:.8em;height:.8em;background:{colour};margin-right:5px"
    return f"<span style='margin-right:16px;white-space:nowrap'><span style='{patch}'></span>{escape(name)} {size(count)}</span>"
