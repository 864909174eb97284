"""Colours that stand beside each other differ in lightness, and text is dark enough to read."""

import itertools

import pytest

from mac_lora_helpers.ui import figures


def luminance(colour: str) -> float:
    """Relative luminance (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    "colour", [figures.RED_TEXT, *[value for key, value in figures._STYLE.items() if "color" in key and "grid" not in key]]
)
def test_text_is_readable(colour):
    if colour not in ("white", "#444444"):
        assert contrast(colour, "#ffffff") >= 4.5


@pytest.mark.parametrize(
    "group", [(figures.BLUE, figures.PALE), (figures.BLUE, figures.GREEN, figures.ORANGE)], ids=["base and tuned", "splits"]
)
def test_neighbours_differ_in_lightness(group):
    for one, other in itertools.combinations(group, 2):
        assert contrast(one, other) >= 1.3


def test_bars_of_base_and_tuned_are_told_apart():
    scores = {"loss": 1.0, "perplexity": 2.7, "exact_match": 0.5, "valid_json": None, "token_f1": 0.5, "stop_rate": 1.0}
    figure = figures.comparison_figure({"examples": 4, "base": scores, "tuned": scores})
    from matplotlib.colors import to_hex

    base, tuned = (to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches)
    assert contrast(base, tuned) >= 1.5
    assert min(contrast(base, "#ffffff"), contrast(tuned, "#ffffff")) >= 3
