"""One line that says how far long work is; short work shows nothing."""

from __future__ import annotations

import time
from typing import Any


class Progress:
    """Called with (what, how many); shows one output that is updated in place.

    Args:
        quiet_seconds: work that ends sooner shows nothing.
        every_seconds: shortest time between two updates.
    """

    def __init__(self, quiet_seconds: float = 3.0, every_seconds: float = 1.0) -> None:
        self.begin, self.every = time.monotonic(), every_seconds
        self._next = self.begin + quiet_seconds
        self._handle: Any = None

    def __call__(self, what: str, count: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self.every
        line = Line(f"{what}: {count:,} in {now - self.begin:.0f} s")
        if self._handle is None:
            from IPython.display import display

            self._handle = display(line, display_id=True)
        else:
            self._handle.update(line)


class Line(str):
    """Text that a notebook shows without quotes."""

    def __repr__(self) -> str:
        return str(self)
