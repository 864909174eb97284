"""What this machine taught: measured against predicted memory, and how much work a second it does; kept for the next forecast.

One small JSON file in the user's cache folder holds the last few runs by device, dtype and path. It names no model, no data
and no folder. A file that cannot be read or written is no reason to stop: it is said once and left alone.
``MAC_LORA_CACHE`` names another folder; ``off`` keeps nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import UserError
from mac_lora_helpers.files import atomic_file

NAME = "calibration.json"
#: Runs kept for each device, dtype and path.
LAST = 8
#: Predicted peaks below this teach nothing: the allowances are most of them.
SMALLEST = 500_000_000
#: Measured against predicted that is believed; beyond it something else was measured.
BELIEVED = (0.5, 2.0)


@dataclass(frozen=True)
class Calibration:
    """What earlier runs on this machine say.

    Attributes:
        memory: measured / predicted peak, the median; None without runs.
        speed: floating-point operations a second in training, the median; None without runs.
        runs: how many of either.
    """

    memory: float | None = None
    speed: float | None = None
    runs: int = 0

    def text(self) -> str:
        """For people; empty without runs."""
        if not self.runs:
            return ""
        times = f"{self.runs} earlier run{'s' if self.runs > 1 else ''} on this machine"
        memory = f"needed {self.memory:.0%} of the predicted memory" if self.memory else "were too small to tell more of the memory"
        return f"{times} {memory}{'; the time is theirs' if self.speed else ''}"


def folder() -> Path | None:
    """Where it is kept; None when switched off."""
    chosen = os.environ.get("MAC_LORA_CACHE", "")
    if chosen:
        return None if chosen == "off" else Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/mac-lora-helpers"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mac-lora-helpers"


def recall(device: str, dtype: str, path: str) -> Calibration:
    """What is known for this device, dtype and path (plain or fast)."""
    runs = _read().get(_key(device, dtype, path), [])
    ratios = [run["memory"] for run in runs if _plausible(run.get("memory"), *BELIEVED)]
    speeds = [run["speed"] for run in runs if _plausible(run.get("speed"), 1e3, 1e18)]
    middle = lambda values: statistics.median(values) if values else None  # noqa: E731
    return Calibration(middle(ratios), middle(speeds), max(len(ratios), len(speeds)))


def keep(device: str, dtype: str, path: str, predicted: int, measured: int, flops: float, seconds: float) -> None:
    """Adds one finished run.

    Args:
        predicted, measured: peak bytes.
        flops, seconds: work and time of the whole training.
    """
    place = folder()
    if place is None:
        return
    run: dict[str, float] = {}
    if predicted >= SMALLEST and BELIEVED[0] <= measured / predicted <= BELIEVED[1]:
        run["memory"] = round(measured / predicted, 4)
    if seconds > 0 and flops > 0:
        run["speed"] = float(f"{flops / seconds:.4g}")
    known = _read()
    key = _key(device, dtype, path)
    known[key] = [*known.get(key, []), run][-LAST:]
    try:
        with atomic_file(place / NAME) as temporary:
            temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, UserError):
        _warn("cannot be written")


def _key(device: str, dtype: str, path: str) -> str:
    return f"{device} {dtype} {path}"


def _read() -> dict[str, list[dict[str, Any]]]:
    place = folder()
    if place is None or not (place / NAME).is_file():
        return {}
    try:
        found = json.loads((place / NAME).read_text(encoding="utf-8"))
        return {str(key): [run for run in runs if isinstance(run, dict)] for key, runs in found.items() if isinstance(runs, list)}
    except (OSError, ValueError, AttributeError) as error:
        _warn(f"cannot be read ({type(error).__name__})")
        return {}


def _plausible(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


_told: set[str] = set()


def _warn(what: str) -> None:
    """Once a process."""
    if what not in _told:
        _told.add(what)
        print(f"This machine's own calibration {what}; the forecast goes without it. Delete {NAME} in its cache folder to begin anew.")
