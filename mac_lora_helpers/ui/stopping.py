"""A Stop button for long cells, and a sentence instead of a traceback when one is stopped.

A click has to be heard while the cell runs. JupyterLab sends widget messages to a *subshell*, a thread beside the one that
runs cells, where the kernel has one (ipykernel 7). Elsewhere the click is only heard afterwards, and does nothing then;
interrupting the kernel works everywhere.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from mac_lora_helpers.errors import UserError
from mac_lora_helpers.ui.parts import button, column, headless, note, row

#: Shorter work shows no button.
QUIET_SECONDS = 2.0


class Stopped(UserError):
    """Somebody stopped a cell; says what was kept and how to go on."""


@contextlib.contextmanager
def stoppable(what: str, kept: str = "nothing was written", quiet_seconds: float = QUIET_SECONDS) -> Iterator[None]:
    """While the block runs it can be stopped: by a button that appears below, or by interrupting the kernel.

    Args:
        what: what runs, for example ``the training``.
        kept: what is there after a stop, one clause.
        quiet_seconds: work that ends sooner shows no button.

    Raises:
        Stopped: in place of a KeyboardInterrupt. Errors of the block's own pass through. Headless runs are left as they are.
    """
    if headless():
        yield
        return
    stop = _StopButton(what)
    timer = threading.Timer(quiet_seconds, stop.appear)
    timer.daemon = True
    try:
        timer.start()
        yield
    except KeyboardInterrupt:
        raise Stopped(f"{what} was stopped; {kept}", fix="run this cell again when you want to go on") from None
    finally:
        timer.cancel()
        stop.close()


class _StopButton:
    """Interrupts the main thread, as the kernel's own Interrupt does, while ``close`` has not been called."""

    def __init__(self, what: str) -> None:
        import ipywidgets as widgets
        from IPython.display import display

        self.running, self.lock = True, threading.Lock()
        self.button = button(f"Stop {what}", f"ends {what} cleanly", self._stop)
        self.said = widgets.HTML(note("or interrupt the kernel: the ■ in the toolbar, or press I twice"))
        self.box = column(row(self.button, self.said), display="none")
        # ipykernel 7.4 answers in the thread that made a widget, which is the busy one; without its note, where the browser asked.
        vars(self.button.comm).pop("_reply_subshell_id", None)
        self.handle = display({**self.box._repr_mimebundle_(), "text/plain": ""}, raw=True, display_id=True)

    def appear(self) -> None:
        """Shows the button if the work still runs."""
        with self.lock:
            if self.running:
                self.box.layout.display = ""

    def close(self) -> None:
        """From now on a click does nothing; the button goes."""
        with self.lock:
            self.running = False
        if self.handle is not None:
            self.handle.update({"text/plain": ""}, raw=True)
        self.box.close()

    def _stop(self) -> None:
        with self.lock:
            if not self.running:
                return
            self.button.disabled = True
            self.said.value = note("stopping: what is under way is finished first", "changed", live=True)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
