"""Words for people: sizes, durations, shares, the nearest known name, characters that would otherwise not be seen."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


def size(count: float | None) -> str:
    """Bytes in decimal units: ``7.4 MB``."""
    if count is None:
        return "unknown"
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def binary_size(count: float | None) -> str:
    """Bytes in the unit in which memory is sold: ``16.0 GiB``, ``812 MiB``."""
    if count is None:
        return "unknown"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``0.42 s``, ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds is None:
        return "unknown"
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """A share as people write it: ``37 %``; below one per cent with a digit behind the point."""
    return f"{100 * share:.1f} %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def near(name: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """``did you mean …?`` with the nearest known name, or ``otherwise`` where none is near."""
    match = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f"did you mean {match[0]}?" if match else otherwise


def visible(text: str) -> str:
    """The text with its control characters shown as escapes: a terminal obeys ESC, and nobody sees a zero-width character.

    Line breaks and tabs stay.
    """
    return "".join(_shown(character) for character in text) if not text.isprintable() else text


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\n\t\u200d\u200c"
    return character.encode("unicode_escape").decode() if hidden else character
