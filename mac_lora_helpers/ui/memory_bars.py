"""Predicted memory by part beside what was measured, and beside what was free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mac_lora_helpers.ui.figures import BLUE, GREEN, GREY, ORANGE, RED, styled
from mac_lora_helpers.ui.picture import Picture

#: Parts of the prediction, joined as a reader tells them apart: name, keys, colour, hatching for grey print.
_GROUPS = (
    ("base model", ("weights",), BLUE, ""),
    ("adapter, gradients, optimizer", ("adapter", "gradients", "optimizer"), ORANGE, "//"),
    ("activations, one layer's backward pass", ("activations", "layer"), GREEN, ""),
    ("loss over the vocabulary", ("logits",), RED, "\\\\"),
    ("allowances", ("allocator", "runtime"), "#cccccc", ".."),
)


@styled
def memory_figure(metrics: Mapping[str, Any]) -> Picture:
    """A stacked bar of the prediction above a bar of the measurement.

    Args:
        metrics: the content of ``train_metrics.json``.
    """
    predicted, measured = metrics["predicted_memory_bytes"] or 0, metrics["peak_memory_bytes"]
    unit, scale = ("GB", 1e9) if max(predicted, measured) >= 1e9 else ("MB", 1e6)
    figure = Picture(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    start = 0.0
    for name, keys, colour, hatch in _GROUPS:
        size = sum(metrics["predicted_memory_parts"].get(key, 0) for key in keys) / scale
        axes.barh("predicted", size, left=start, color=colour, hatch=hatch, edgecolor="white", label=name, height=0.6)
        start += size
    axes.barh("measured", measured / scale, color=GREY, height=0.6)
    for name, value in (("predicted", predicted), ("measured", measured)):
        axes.annotate(f" {value / scale:.3g} {unit}" if value else " not counted", (value / scale, name), va="center")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    told = f"measured is {measured / predicted:.0%} of predicted" if predicted else "measured; this model's could not be predicted"
    axes.set(title=f"Peak memory: {told}", xlabel=f"peak memory of the training ({unit})")
    if predicted:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, fontsize=9)
    figure.alt = f"Peak memory of the training: predicted {predicted / scale:.3g} {unit}, measured {measured / scale:.3g} {unit}"
    return figure
