"""What is pressed: Stop, Ask, Cancel, next row."""

import threading
import time
from types import SimpleNamespace

import pytest

from mac_lora_helpers import data, ui
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.ui import stopping
from mac_lora_helpers.ui.ask import AskBox


@pytest.fixture(autouse=True)
def _somebody_is_there(monkeypatch):
    monkeypatch.delenv("MAC_LORA_HEADLESS", raising=False)


@pytest.fixture
def buttons(monkeypatch):
    """The Stop buttons that were made."""
    made = []
    init = stopping._StopButton.__init__
    monkeypatch.setattr(stopping._StopButton, "__init__", lambda self, what: (init(self, what), made.append(self))[0])
    return made


def test_a_click_ends_the_block_with_a_sentence(buttons, capsys):
    def click():
        while not buttons or buttons[0].box.layout.display == "none":
            time.sleep(0.01)
        buttons[0].button.click()

    threading.Thread(target=click, daemon=True).start()
    with pytest.raises(stopping.Stopped) as stopped, ui.stoppable("counting", "the sheep are kept", quiet_seconds=0.05):
        time.sleep(20)
    assert stopped.value.what == "counting was stopped; the sheep are kept"
    assert isinstance(stopped.value, UserError)
    assert "Traceback" not in "\n".join(stopped.value._render_traceback_())
    assert "run this cell again" in str(stopped.value)


def test_short_work_shows_no_button_and_a_late_click_does_nothing(buttons, capsys):
    with ui.stoppable("counting"):
        pass
    assert buttons[0].box.layout.display == "none"
    buttons[0].button.click()
    time.sleep(0.05)


def test_errors_of_the_block_pass_through(buttons, capsys):
    with pytest.raises(InputError), ui.stoppable("counting"):
        raise InputError("no sheep")


def test_a_headless_run_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("MAC_LORA_HEADLESS", "1")
    with pytest.raises(KeyboardInterrupt), ui.stoppable("counting"):
        raise KeyboardInterrupt


def asking(stream, prompt="now"):
    return AskBox(stream, prompt)


def words(question, voice):
    if not question.strip():
        raise InputError("there is nothing to ask", fix="write a question")
    yield from [voice, " says ", "<b>", question]


def test_both_answer_and_nothing_becomes_markup():
    box = asking(words, "why?")
    box.ask_button.click()
    box._thread.join(10)
    assert "base says &lt;b&gt;why?" in box.answers["base"].value
    assert "tuned says &lt;b&gt;why?" in box.answers["tuned"].value
    assert "answered after" in box.status.value
    assert (box.ask_button.disabled, box.cancel_button.disabled) == (False, True)
    assert "tuned says" in box.static_text()


def test_what_cannot_be_asked_is_said_in_place():
    box = asking(words)
    box.question.value = "  "
    box.ask()
    box._thread.join(10)
    assert "✗ there is nothing to ask; to do: write a question" in box.status.value
    box.question.value = "now"
    box.ask()
    box._thread.join(10)
    assert "answered after" in box.status.value


def test_an_unforeseen_error_is_said_too():
    def broken(*_):
        raise RuntimeError("no such layer")
        yield

    box = asking(broken)
    box.ask()
    box._thread.join(10)
    assert "RuntimeError: no such layer" in box.status.value
    assert not box.ask_button.disabled


def test_cancel_leaves_the_stream_and_the_next_question_is_answered():
    left = threading.Event()
    arrived = threading.Event()

    def endless(question, voice):
        try:
            while question == "long":
                arrived.set()
                yield "word "
                time.sleep(0.01)
            yield voice
        finally:
            left.set()

    box = asking(endless, "long")
    box.ask()
    assert arrived.wait(10)
    box.cancel_button.click()
    box._thread.join(10)
    assert left.is_set()
    assert "cancelled after" in box.status.value
    assert "(cancelled)" in box.answers["base"].value
    assert "word" not in box.answers["tuned"].value
    box.question.value = "short"
    box._entered(None, {"event": "submit"}, None)
    box._thread.join(10)
    assert ">tuned</div>" in box.answers["tuned"].value


def test_a_cell_that_starts_ends_the_answer_under_way():
    """Base and tuned are one model: beside a running cell its switch would be turned under it."""
    from mac_lora_helpers.ui.ask import cancel_all

    begun = threading.Event()

    def endless(*_):
        while True:
            begun.set()
            yield "word "

    box = asking(endless)
    box.ask()
    assert begun.wait(10)
    cancel_all()
    assert not box._thread.is_alive()


ROWS = {"train": ["a", "b", "c"], "valid": [], "test": ["z"]}


@pytest.fixture
def encoded(monkeypatch):
    def view(encoded, tokenizer, split, number):
        return [SimpleNamespace(text=encoded.splits[split][number], kind="trained", id=number)]

    monkeypatch.setattr(data, "token_view", view, raising=False)
    return SimpleNamespace(splits=ROWS)


def test_rows_are_stepped_through(encoded):
    browser = ui.token_browser(encoded, None)
    assert browser.split.options == ("train", "test")
    seen = []
    for press in (browser.previous, browser.next, browser.next, browser.next):
        press.click()
        seen.append(browser.view.title)
    assert seen == ["train, row 0", "train, row 1", "train, row 2", "train, row 2"]
    assert browser.next.disabled
    assert not browser.previous.disabled
    browser.split.value = "test"
    assert browser.view.title == "test, row 0"
    assert ">z<" in browser.shown.value
    assert (browser.number.max, browser.number.value) == (0, 0)
    browser.split.value = "train"
    browser.number.value = 99
    assert browser.view.title == "train, row 2"
    assert "[c]" in browser.static_text()


def test_headless_the_first_row_is_shown_as_it_is(encoded, monkeypatch):
    monkeypatch.setenv("MAC_LORA_HEADLESS", "1")
    shown = ui.token_browser(encoded, None)
    assert isinstance(shown, ui.TokenView)
    assert shown.title == "train, row 0"
