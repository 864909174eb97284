"""The form of notebook 03: its bar follows each change, and the next answers are counted while nobody asks."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from mac_lora_helpers import training, ui
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.ui import idle, memory_form
from mac_lora_helpers.ui.memory_form import TrainingForm

GOOD = {"parts": {"weights": 10, "activations": 20, "runtime": 5}, "steps": 4, "step_seconds": 2.0, "total_seconds": 8.0}


def asked(config, lengths=None):
    if config.dtype == "float16":
        raise InputError("no float16 here", fix="float32")
    total = 1000 * config.lora_r
    fits = total <= 20_000
    return SimpleNamespace(**GOOD, total_bytes=total, available_bytes=20_000, fits=fits, advice=[] if fits else ["lora_r=16 <b>"])


@pytest.fixture
def form(monkeypatch):
    monkeypatch.setattr(training, "fit", asked, raising=False)
    return lambda names=("lora_r", "dtype"), lengths=None: TrainingForm(resolve({}, {}), list(names), lengths)


def test_the_bar_follows_and_a_bad_value_leaves_the_last_good_one(form):
    form = form()
    assert "✓ fits: needs about 16.0 kB of the 20.0 kB" in form.bar.value
    form.fields["lora_r"].widget.value = 32
    assert "✗ does not fit: needs about 32.0 kB" in form.bar.value
    assert "to do: lora_r=16 &lt;b&gt;" in form.bar.value
    before = form.bar.value
    form.fields["lora_r"].widget.value = -3
    assert form.bar.value == before
    form.fields["dtype"].widget.value = "float16"
    assert "no forecast for these values: no float16 here" in form.bar.value
    assert "✗ does not fit: needs about 32.0 kB" in form.bar.value
    form.fields["dtype"].reset.click()
    assert form.bar.value == before


def test_while_a_slow_answer_is_counted_the_last_one_stays_with_a_word(form, monkeypatch):
    seen, forms = [], []

    def slow(config, lengths=None):
        seen.extend(form.bar.value for form in forms)
        return asked(config)

    monkeypatch.setattr(training, "fit", slow)
    forms.append(form(["lora_r"]))
    forms[0].fields["lora_r"].widget.value = 4
    assert "needs about 16.0 kB" in seen[0]
    assert "counting …" in seen[0]
    assert "counting …" not in forms[0].bar.value


def test_the_next_answers_are_counted_while_the_kernel_waits(form, monkeypatch):
    monkeypatch.setattr(idle, "PAUSE", 0.01)
    seen = []

    def ahead(config, lengths):
        for step in range(3):
            seen.append((config.lora_r, lengths, step))
            yield

    monkeypatch.setattr(training, "count_ahead", ahead, raising=False)

    async def somebody_at_the_form():
        made = form(["lora_r"], lengths=[5])
        made.fields["lora_r"].widget.value = 4
        assert seen == []
        await asyncio.sleep(0.2)
        made.fields["lora_r"].widget.value = 8
        made._idle.stop()
        await asyncio.sleep(0.05)

    asyncio.run(somebody_at_the_form())
    assert seen == [(4, [5], step) for step in range(3)], "a change drops what was left of the one before, and stop all of it"


def test_idle_work_that_fails_or_has_no_loop_is_left():
    begun = []

    def fails():
        begun.append(1)
        yield
        raise ValueError("a step that cannot be taken")

    work = idle.Idle(fails)

    async def begins():
        work.begin()
        await asyncio.sleep(idle.PAUSE + 5 * idle.BREATH)

    work.begin()
    beside = threading.Thread(target=lambda: asyncio.run(begins()))
    beside.start()
    beside.join()
    assert begun == []

    async def waits():
        asyncio.get_running_loop().set_exception_handler(lambda *_: pytest.fail("an error reached the kernel's loop"))
        await begins()

    asyncio.run(waits())
    assert begun == [1]
    assert not work.busy


def test_the_bar_is_drawn_to_scale_and_named():
    shown = memory_form.bar(asked(SimpleNamespace(dtype="float32", lora_r=40)))
    assert "left:calc(50.00% - 3px)" in shown
    assert "aria-label='✗ does not fit" in shown
    assert "about 8 s (4 steps of 2 s)" in shown


def test_a_headless_run_shows_a_table(monkeypatch):
    monkeypatch.setenv("MAC_LORA_HEADLESS", "1")
    assert isinstance(ui.training_form(resolve({}, {}), None), ui.Table)
