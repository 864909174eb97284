"""In a notebook: the answer stands above the traceback, and the cell still fails."""

from __future__ import annotations

import html
import os
import re
import sys
from typing import Any

from mac_lora_helpers.troubleshooting.table import Failure, explain

_BOX = "border-left:4px solid #0072b2;padding:2px 12px;margin:4px 0"

#: What stands in place of a traceback where somebody interrupted the kernel: nothing went wrong.
INTERRUPTED = "Stopped by you. What earlier cells made is kept; run this cell again to go on."


class Answer:
    """A known failure as a cell's output."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure

    def __repr__(self) -> str:
        return str(self.failure)

    def _repr_html_(self) -> str:
        failure = self.failure
        steps = "".join(f"<li>{_code(step)}</li>" for step in failure.advice)
        more = html.escape(failure.anchor)
        if os.environ.get("MAC_LORA_HEADLESS") != "1":  # a stored copy lies in another folder
            more = f"<a href='../{more}'>{more}</a>"
        return (
            f"<div role='note' style='{_BOX}'><b>Known failure: {_code(failure.title)}</b><div>{_code(failure.cause)}</div>"
            f"<ol style='margin:4px 0'>{steps}</ol><div>More: {more}. The original error:</div></div>"
        )


def _code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def answer_in_notebook() -> None:
    """Shows the answer above the traceback of a known failure from now on; does nothing outside IPython.

    A handler that somebody else has set is left alone.
    """
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None and not getattr(shell, "custom_exceptions", ()):
        shell.set_custom_exc((Exception, KeyboardInterrupt), _show)


def _show(shell: Any, kind: type[BaseException], error: BaseException, trace: Any, tb_offset: int | None = None) -> None:
    """Called by IPython in place of its own display, which it then calls: the error output must not be missing."""
    if isinstance(error, KeyboardInterrupt):
        shell._showtraceback(kind, error, [INTERRUPTED])
        return
    try:
        failure = None if hasattr(error, "_render_traceback_") else explain(error)  # our own errors bring their answer with them
        if failure is not None:
            from IPython.display import display

            display(Answer(failure))
    finally:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
