"""Ctrl-C and SIGTERM during a training: the step is finished and saved first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mac_lora_helpers.errors import UserError
from mac_lora_helpers.training import processes


class TrainingInterrupted(UserError):
    """Ctrl-C or a signal: a checkpoint was written, running again goes on from it."""


@contextlib.contextmanager
def watching(stop: Callable[[str], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM calls ``stop`` with its name; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: Any) -> None:
        if processes.count() == 1:  # of several, each gets the terminal's signal and the launcher's copy of it
            signal.signal(number, before[number] if callable(before[number]) else signal.SIG_DFL)
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(f"{name}: the current step is finished and saved, then the training stops (again: at once).")
        stop(name)

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
