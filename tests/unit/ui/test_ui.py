"""Tables, coloured tokens, and figures: what is shown, and that data never becomes markup."""

import base64
import html
import re
from types import SimpleNamespace

import pytest

from mac_lora_helpers import ui
from mac_lora_helpers.export.card.write import Card
from mac_lora_helpers.ui.figures import Picture

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" 'single'"


def pieces(*items):
    return [SimpleNamespace(text=text, kind=kind, id=i) for i, (text, kind) in enumerate(items)]


def test_a_table_as_text_lines_up_and_keeps_every_value():
    text = repr(ui.Table(["name", "n"], [("a", 1234567), ("long name", None), ("flag", True)]))
    lines = text.splitlines()
    assert lines[0].index("n", 5) == lines[2].index("1,234,567") == lines[3].index("–") == lines[4].index("yes")


def test_statuses_carry_a_word_beside_the_colour():
    checks = [SimpleNamespace(name="x", status=status, detail="d", fix="f") for status in ("ok", "warn", "fail")]
    shown = ui.checks_table(checks)._repr_html_()
    assert all(mark in shown for mark in ("✓ ok", "! warn", "✗ fail"))


def test_dictionaries_and_lists_read_as_words():
    assert "rows cut 3, eos lost 0" in repr(ui.Table(["v"], [[{"rows_cut": 3, "eos_lost": 0}]]))
    assert "k_proj, q_proj" in repr(ui.Table(["v"], [[{"q_proj", "k_proj"}]]))


def test_control_characters_are_seen_and_never_reach_a_terminal():
    hostile = "\x1b]0;title\x07 \u202etxt"
    table, tokens = ui.Table([hostile], [[hostile]], title=hostile, note=hostile), ui.TokenView(pieces((hostile, "trained")), title=hostile)
    for shown in (repr(table), table._repr_html_(), repr(tokens), tokens._repr_html_()):
        assert "\\x1b]0;title\\x07 \\u202etxt" in shown
        assert re.sub(r"\s", "", shown).isprintable()


def test_answers_mark_what_is_new_and_what_equals_the_expected_one():
    rows = [
        {"prompt": "q", "base": "yes", "tuned": "yes <b>no</b> ", "expected": "yes <b>no</b>"},
        {"prompt": "q", "base": "a", "tuned": "c", "expected": "b"},
    ]
    table = ui.answers_table(rows)
    assert [row[3] for row in table.rows] == ["=", "≠"]
    shown = table._repr_html_()
    assert "yes<mark" in shown
    assert html.unescape(re.sub(r"<[^>]+>", "", shown.split("<td")[3].split(">", 1)[1])).strip() == "yes <b>no</b>"
    assert "yes <b>no</b>" in repr(table)


@pytest.mark.parametrize(
    "shown",
    [ui.Table(["a"], [["b"]], note="c")._repr_html_(), ui.TokenView([], "t")._repr_html_(), Card(None, "$5 and $10", [])._repr_markdown_()],
    ids=["table", "tokens", "card"],
)
def test_dollars_are_no_formula(shown):
    assert re.sub(r'<div class="mathjax_ignore tex2jax_ignore".*?>.*</div>', "", shown, flags=re.DOTALL) == ""


def test_tokens_are_escaped_marked_and_explained():
    view = ui.TokenView(pieces((HOSTILE, "context"), ("yes\n", "trained"), ("<|im_end|>", "special")), title=HOSTILE)
    shown = view._repr_html_()
    assert "<script" not in shown
    assert "&lt;|im_end|&gt;" in shown
    assert "yes⏎\n" in shown
    assert all(words in shown for words in ("trained: the loss counts it", "context: read, not trained", "special token, not trained"))
    assert "[yes\n]" in repr(view)


def figures():
    rows = [{"step": i, "loss": 2 / i, "grad_norm": 1.0, "learning_rate": 1e-4} for i in range(1, 9)]
    metrics = {"examples": 1, **{who: {"loss": 1.0, "perplexity": 2.7, "exact_match": None} for who in ("base", "tuned")}}
    memory = {"peak_memory_bytes": 2e9, "predicted_memory_parts": {"weights": 2e9, "logits": 1e9}}
    report = {
        "artefacts": [{"name": "a", "greedy_agreement": None, "passed": None}, {"name": "b", "greedy_agreement": 0.5, "passed": False}]
    }
    return {
        "data": ui.data_figure(
            {"train": [3, 5], "valid": [], "test": [4]}, 8, {"train": 2, "valid": 0, "test": 1}, {"train": 8, "valid": 0, "test": 4}
        ),
        "loss": ui.loss_figure(rows, 8),
        "one step": ui.loss_figure(rows[:1], -1),
        "no step": ui.loss_figure([], None),
        "text rows": ui.comparison_figure(metrics),
        "equivalence": ui.equivalence_figure(report),
        "memory": ui.memory_figure(memory | {"predicted_memory_bytes": 3e9}),
        "memory alone": ui.memory_figure(memory | {"predicted_memory_bytes": None, "predicted_memory_parts": {}}),
    }


def test_the_live_figure_is_one_output(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda figure: shown.append("update"))
    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: shown.append("new") or handle)
    monkeypatch.setattr("mac_lora_helpers.ui.figures._in_notebook", lambda: True)
    monkeypatch.delenv("MAC_LORA_HEADLESS", raising=False)
    live, now = ui.LiveLoss(seconds=0), {"step": 0, "of": 9, "loss": None, "seconds_left": None, "over": False}
    live([], now)
    assert shown == ["new"], "the line stands there before the first step"
    for step in (1, 2):
        live([{"step": 1, "loss": 1.0}], {**now, "step": step, "loss": 1.0})
    assert shown == ["new", "update", "new", "update", "update"]


def test_without_a_notebook_the_progress_is_lines(capsys):
    live = ui.LiveLoss(seconds=1000)
    for step in range(41):
        left = 3.0 * (40 - step) if step > 1 else None
        live([{"step": 1, "loss": 2.0, "eval_loss": 2.5}], {"step": step, "of": 40, "loss": 1.5, "seconds_left": left, "over": step == 40})
    first, _, third, last = capsys.readouterr().out.splitlines()
    assert first == "step 0 of 40 · the time is known after the second step · loss 1.500 · validation 2.500"
    assert third == "step 2 of 40 · 2 min left · loss 1.500 · validation 2.500"
    assert last.startswith("step 40 of 40 · ended")


def test_progress_is_one_output_and_silent_for_short_work(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda line: shown.append(("update", repr(line))))
    monkeypatch.setattr("IPython.display.display", lambda line, display_id: shown.append(("new", repr(line))) or handle)
    ui.Progress()("rows", 5)
    assert shown == []
    progress = ui.Progress(quiet_seconds=0, every_seconds=0)
    progress("rows encoded", 1000)
    progress("rows encoded", 2000)
    assert [kind for kind, _ in shown] == ["new", "update"]
    assert shown[1][1].startswith("rows encoded: 2,000 in ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data", "3 rows, the longest 5 tokens, the limit 8; the loss counts of the tokens: train 25 %, test 25 %"),
        ("loss", "from 2 at step 1 to 0.25 at step 8"),
        ("one step", "from 2 at step 1 to 2 at step 1"),
        ("no step", "no step yet"),
        ("text rows", "base loss 1.000; tuned loss 1.000"),
        ("equivalence", "b 50 %, FAILED"),
        ("memory", "forecast 3 GB, measured 2 GB"),
        ("memory alone", "forecast not counted, measured 2 GB"),
    ],
)
def test_every_figure_is_titled_labelled_and_told_in_words(name, words):
    figure = figures()[name]
    assert figure.get_suptitle() or all(axes.get_title(loc="left") for axes in figure.axes)
    assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)
    shown = figure._repr_mimebundle_()
    assert words in shown["text/plain"]
    assert f"alt='{html.escape(shown['text/plain'])}'" in shown["text/html"]
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")


def test_a_picture_without_words_of_its_own_tells_its_titles():
    figure = Picture()
    figure.suptitle("Memory <b>")
    figure.subplots().set_title("predicted", loc="left")
    assert figure.words == "Memory <b>: predicted"
    assert "<b>" not in figure._repr_mimebundle_()["text/html"]
