"""The form of notebook 03: its bar follows each change, to scale and in words."""

import pytest

from mac_lora_helpers import training, ui
from mac_lora_helpers.config import resolve
from mac_lora_helpers.training import Forecast
from mac_lora_helpers.ui import memory_form
from mac_lora_helpers.ui.memory_form import TrainingForm


def asked(config, lengths=None):
    """A forecast as ``training.forecast`` gives it, of 1 kB a rank."""
    total = 1000 * config.lora_r
    parts = {"weights": total // 2, "activations": total - total // 2}
    if config.dtype == "float16":
        return Forecast(reason="shapes <do> not suffice", gradient_checkpointing=True, checkpointing_reason="to be safe")
    return Forecast(parts, available_bytes=20_000, advice="" if total <= 20_000 else "lora_r=16 <b>")


@pytest.fixture
def form(monkeypatch):
    monkeypatch.setattr(training, "forecast", asked)
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
    assert "memory not counted: shapes &lt;do&gt; not suffice" in form.bar.value
    form.fields["dtype"].reset.click()
    assert form.bar.value == before


def test_while_a_slow_answer_is_counted_the_last_one_stays_with_a_word(form, monkeypatch):
    seen, forms = [], []

    def slow(config, lengths=None):
        seen.extend(form.bar.value for form in forms)
        return asked(config)

    monkeypatch.setattr(training, "forecast", slow)
    forms.append(form(["lora_r"]))
    forms[0].fields["lora_r"].widget.value = 4
    assert "needs about 16.0 kB" in seen[0]
    assert "counting …" in seen[0]
    assert "counting …" not in forms[0].bar.value


def test_the_bar_is_drawn_to_scale_and_named():
    shown = memory_form.bar(asked(resolve({"lora_r": 40}, {})))
    assert "left:calc(50.00% - 3px)" in shown
    assert "aria-label='✗ does not fit" in shown
    assert "gradient checkpointing off: as asked" in shown


def test_a_headless_run_shows_a_table(monkeypatch):
    monkeypatch.setenv("MAC_LORA_HEADLESS", "1")
    assert isinstance(ui.training_form(resolve({}, {}), None), ui.Table)
