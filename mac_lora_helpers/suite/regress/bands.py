"""A band: how far a figure may be from its baseline, and why so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["exact", "relative", "at_least", "at_most", "ratio", "same", "never"]
#: What ``width`` means by kind; kinds that are not here have none.
WIDTHS = {
    "relative": "share of the baseline, to both sides",
    "at_least": "how much worse (lower) than the baseline is let pass, in the metric's unit",
    "at_most": "how much worse (higher) than the baseline is let pass, in the metric's unit",
    "ratio": "times the baseline's ratio that is let pass",
    "same": "share of the other case's figure, to both sides",
}


class Band(BaseModel):
    """One metric's band.

    ``kind``: ``exact``; ``relative``; ``at_least`` and ``at_most`` (one-sided, for quality); ``ratio`` (to another metric
    ``of`` the same run, for time and memory); ``same`` (as in another ``case`` of the same run, no baseline); ``never``
    (a ``value`` that must not be there, no baseline). ``width``: see ``WIDTHS``. ``floor``: smallest scale that a relative
    width is taken of. ``limit``: a bar that holds whatever the baseline says. ``reason``: why the band is so wide and no wider.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    metric: str
    kind: Kind
    width: float | None = Field(None, ge=0)
    floor: float = Field(0.0, ge=0)
    limit: float | None = None
    of: str | None = None
    case: str | None = None
    value: bool | str | float | None = None
    reason: str = Field(min_length=8)

    @model_validator(mode="after")
    def _whole(self) -> Band:
        if (self.kind in WIDTHS) != (self.width is not None):
            raise ValueError(f"{self.kind} {'needs a width: ' + WIDTHS[self.kind] if self.kind in WIDTHS else 'has no width'}")
        if (self.kind == "ratio") != (self.of is not None):
            raise ValueError("'of' (the metric to divide by) belongs to ratio, and to ratio alone")
        if self.kind == "same" and self.case is None:
            raise ValueError("same needs a case")
        if self.case is not None and self.kind not in ("same", "ratio"):
            raise ValueError("'case' belongs to same and ratio")
        if self.limit is not None and self.kind not in ("at_least", "at_most"):
            raise ValueError("'limit' belongs to at_least and at_most")
        return self

    @property
    def has_baseline(self) -> bool:
        return self.kind not in ("same", "never")


@dataclass(frozen=True)
class Verdict:
    """``low`` and ``high``: the band's ends where it is an interval; ``told``: the band in words."""

    passed: bool
    told: str
    low: float | None = None
    high: float | None = None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def compare(band: Band, got: Any, baseline: Any) -> Verdict:
    """Whether a figure is within its band.

    Args:
        got: the figure; None where the run has none. A ratio is divided already.
        baseline: its baseline; for ``same`` the other case's figure. None: there was no such figure either.
    """
    if band.kind == "never":
        return Verdict(got != band.value or type(got) is not type(band.value), f"never {band.value!r}")
    if band.kind == "exact" or got is None or baseline is None:
        return Verdict(got == baseline and isinstance(got, bool) == isinstance(baseline, bool), "equal" if baseline is not None else "none")
    if not (is_number(got) and is_number(baseline)):
        return Verdict(False, "a finite number")
    low, high = _ends(band, baseline)
    passed = (low is None or got >= low) and (high is None or got <= high)
    return Verdict(passed, _told(band, low, high), low, high)


def _ends(band: Band, baseline: float) -> tuple[float | None, float | None]:
    width = band.width or 0.0
    if band.kind in ("relative", "same"):
        room = width * max(abs(baseline), band.floor)
        return baseline - room, baseline + room
    if band.kind == "ratio":
        return None, baseline * width
    if band.kind == "at_least":
        low = baseline - width
        return (low if band.limit is None else max(low, band.limit)), None
    high = baseline + width
    return None, (high if band.limit is None else min(high, band.limit))


def _told(band: Band, low: float | None, high: float | None) -> str:
    if band.kind == "same":
        return f"as in {band.case}, {band.width:.2g} of it more or less"
    if low is not None and high is not None:
        return f"{number(low)} … {number(high)}"
    ratio = f" × {band.of}" if band.of else ""
    return (f"≥ {number(low)}" if low is not None else f"≤ {number(high)}") + ratio


def number(value: Any) -> str:
    """A figure for people: six significant digits, long texts cut."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= 20 else f"{text[:8]}…{text[-6:]}"
