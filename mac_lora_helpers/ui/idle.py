"""Work for the time in which the kernel waits: between cells and between clicks, in the kernel's own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

#: Seconds that must pass after ``begin``, and between two steps: quick changes in a row come first.
PAUSE, BREATH = 0.25, 0.005


class Idle:
    """Takes the steps of some work while nothing else runs; beginning again drops what was left.

    Args:
        work: makes the work; each ``next`` is one step, short enough that a click may wait for it.
    """

    def __init__(self, work: Callable[[], Iterator[None]]) -> None:
        self._work = work
        self._handle: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether there is something left to do."""
        return self._handle is not None

    def begin(self) -> None:
        """From the start; does nothing where no event loop runs (a script), or beside the thread that runs the cells."""
        self.stop()
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        steps = iter(self._work())

        def step() -> None:
            # An answer that is not there in time is given later: nobody has asked for this one yet.
            try:
                next(steps)
            except Exception:
                self._handle = None
            else:
                self._handle = loop.call_later(BREATH, step)

        self._handle = loop.call_later(PAUSE, step)

    def stop(self) -> None:
        """Drops what is left."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
