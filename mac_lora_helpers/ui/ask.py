"""A box to ask base and tuned model a question and watch both answers being generated, side by side."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.ui.parts import TEXT, Shown, button, column, escape, headless, note, row

#: Shortest time between two updates of an answer, in seconds.
EVERY = 0.1
VOICES = ("base", "tuned")
_boxes: weakref.WeakSet[AskBox] = weakref.WeakSet()


def ask_box(trained: Any, config: Config) -> AskBox | None:
    """A box for questions, or ``None`` in a headless run.

    Args:
        trained: the loaded model with its adapter.
        config: its first question is ``config.prompt``; length and sampling are read anew for each question.
    """
    if headless():
        return None
    from mac_lora_helpers.evaluation import stream

    return AskBox(lambda question, voice: stream(trained, question, config, voice), config.prompt)


class AskBox(Shown):
    """Question, Ask, Cancel, two answers. Waits for nobody; a cell that starts cancels an answer under way.

    Args:
        stream: called as ``stream(question, "base" | "tuned")``, gives pieces of text.
        prompt: the first question.
    """

    def __init__(self, stream: Callable[[str, str], Iterable[str]], prompt: str) -> None:
        import ipywidgets as widgets

        self.stream, self._texts = stream, dict.fromkeys(VOICES, "")
        self._cancelled, self._thread = threading.Event(), None
        self.question = widgets.Text(value=prompt, description="question", layout=widgets.Layout(width="min(44em, 100%)"))
        self.question.on_msg(self._entered)
        self.ask_button = button("Ask both", "asks base and tuned model; Enter in the question does the same", self.ask, "primary")
        self.cancel_button = button("Cancel", "stops after the next piece of text", self._cancelled.set)
        self.cancel_button.disabled = True
        self.status = widgets.HTML(note("The settings are those of the form above.", live=True))
        half = {"flex": "1 1 18em", "min_width": "0", "width": "auto"}
        self.answers = {voice: widgets.HTML(_answer(voice, ""), layout=widgets.Layout(**half)) for voice in VOICES}
        answers = row(*self.answers.values(), align_items="stretch", grid_gap="12px")
        self.widget = column(row(self.question, self.ask_button, self.cancel_button), self.status, answers)
        _cancel_when_a_cell_starts(self)

    def ask(self) -> None:
        """Starts answering; returns at once."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._cancelled.clear()
        for voice in VOICES:
            self._show(voice, "")
        self.ask_button.disabled, self.cancel_button.disabled = True, False
        self._thread = threading.Thread(target=self._work, args=(self.question.value,), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ends the answer under way after its next piece."""
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join()

    def _entered(self, _: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict) and content.get("event") == "submit":
            self.ask()

    def _work(self, question: str) -> None:
        begin = time.monotonic()
        try:
            for voice in VOICES:
                self._say(f"{voice} is answering …")
                self._answer(voice, question)
            ended, tone = ("cancelled", "changed") if self._cancelled.is_set() else ("answered", "plain")
            self._say(f"{ended} after {time.monotonic() - begin:.1f} s", tone)
        except UserError as error:
            self._say(f"✗ {error.what}" + (f"; to do: {error.fix}" if error.fix else ""), "refused")
        except Exception as error:  # a thread's own traceback would be seen by nobody
            self._say(f"✗ {type(error).__name__}: {error}", "refused")
        finally:
            self.ask_button.disabled, self.cancel_button.disabled = False, True

    def _answer(self, voice: str, question: str) -> None:
        text, shown = "", 0.0
        if not self._cancelled.is_set():
            with contextlib.closing(self.stream(question, voice)) as pieces:  # leaving it ends the generation
                for piece in pieces:
                    text += piece
                    if self._cancelled.is_set():
                        break
                    if time.monotonic() - shown >= EVERY:
                        shown = time.monotonic()
                        self._show(voice, text, "▌")
        self._show(voice, text, "… (cancelled)" if self._cancelled.is_set() else "")

    def _show(self, voice: str, text: str, end: str = "") -> None:
        self._texts[voice] = text
        self.answers[voice].value = _answer(voice, text + end)

    def _say(self, text: str, tone: str = "plain") -> None:
        self.status.value = note(text, tone, live=True)

    def static_html(self) -> str:
        """The question and the answers so far."""
        return f"<p {TEXT}>{escape(self.question.value)}</p>" + "".join(_answer(voice, text) for voice, text in self._texts.items())

    def static_text(self) -> str:
        """The same as text."""
        return "\n".join([self.question.value, *(f"{voice}: {text}" for voice, text in self._texts.items())])


def _answer(voice: str, text: str) -> str:
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;min-height:2.8em"
    frame = "border:1px solid rgba(128,128,128,.5);border-radius:4px;padding:6px 10px"
    return (
        f"<div {TEXT} style='{frame}' role='group' aria-label='answer of {voice}'><div style='font-weight:600'>{voice}</div>"
        f"<div style='{style}'>{escape(text)}</div></div>"
    )


def _cancel_when_a_cell_starts(box: AskBox) -> None:
    """Base and tuned are one model with a switch: an answer beside a cell that uses it would turn the switch under it."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None and not _boxes:
        shell.events.register("pre_run_cell", cancel_all)
    _boxes.add(box)


def cancel_all(*_: Any) -> None:
    """Ends every answer under way."""
    for box in list(_boxes):
        box.cancel()
