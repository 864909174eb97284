"""The five notebooks as a new user meets them: JupyterLab, one after the other, Run All, and what is pressed in between."""

from __future__ import annotations

import json
import re

import pytest

from browser import lab as jupyter

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

# The tests stand in the order of the street: each goes on where the one before it stopped.


def opened_and_run(desk, name):
    jupyter.open_notebook(desk.page, desk.lab, name)
    jupyter.run_all(desk.page)
    assert jupyter.errors(desk.page) == [], name
    return desk.page.locator(jupyter.NOTEBOOK)


def test_01_the_environment_is_checked_and_a_bad_value_refused(desk):
    notebook = opened_and_run(desk, "01_environment_check")
    assert (desk.run_dir / "environment.json").exists()
    jupyter.type_into(desk.page, "max_seq_length", "3")
    notebook.get_by_text("✗ 3 refused").wait_for()
    assert notebook.get_by_label("max_seq_length", exact=True).input_value() == "128"
    jupyter.type_into(desk.page, "max_seq_length", "256")
    notebook.get_by_text("preset smoke: 128").wait_for()
    notebook.get_by_role("button", name="reset max_seq_length").press("Enter")
    notebook.get_by_text("preset smoke: 128").wait_for(state="detached")
    assert notebook.get_by_label("max_seq_length", exact=True).input_value() == "128"


def test_02_rows_are_stepped_through_by_keyboard(desk):
    notebook = opened_and_run(desk, "02_data_formatting")
    notebook.get_by_role("button", name="next ▶").focus()
    desk.page.keyboard.press("Space")
    notebook.get_by_text("train, row 1", exact=True).wait_for()
    notebook.get_by_label("row", exact=True).focus()
    desk.page.keyboard.press("ArrowUp")
    desk.page.keyboard.press("Tab")
    notebook.get_by_text("train, row 2", exact=True).wait_for()
    notebook.get_by_label("split", exact=True).select_option("test")
    notebook.get_by_text("test, row 0", exact=True).nth(1).wait_for()


def test_03_values_typed_here_are_trained_with_and_the_bar_moves(desk):
    """Then Stop ends the training with a checkpoint, and running again goes on from it."""
    notebook, page = opened_and_run(desk, "03_lora_training"), desk.page
    assert saved_config(desk)["max_steps"] == 40
    bar = notebook.get_by_role("img", name=re.compile("fits?: needs about"))
    before = bar.get_attribute("aria-label")
    jupyter.type_into(page, "lora_r", "256")
    page.wait_for_function("(old) => !document.querySelector(`[aria-label='${old}']`)", arg=before)
    jupyter.type_into(page, "lora_r", "8")
    jupyter.type_into(page, "max_steps", "60")
    notebook.get_by_text("preset smoke: 200").and_(notebook.get_by_text("typed into a form")).wait_for()
    _stop_the_training(notebook, page)
    (said,) = jupyter.errors(page)
    assert "TrainingInterrupted" in said
    assert "run again: it goes on from there" in said
    assert "Traceback" not in said
    assert any((desk.run_dir / "checkpoints").glob("checkpoint-*/checkpoint.json"))
    jupyter.start(page, "notebook:run-all-below", cell="trainer.train(")
    notebook.get_by_text(re.compile(r"Going on from step \d+")).wait_for(timeout=60_000)
    jupyter.finished(page)
    assert jupyter.errors(page) == []
    assert (saved_config(desk)["max_steps"], saved_config(desk)["lora_r"]) == (60, 8)
    assert json.loads((desk.run_dir / "train_metrics.json").read_text())["steps"] == 60


def saved_config(desk):
    return json.loads((desk.run_dir / "train_config.json").read_text())["config"]


def _stop_the_training(notebook, page):
    """Once a step is on the picture, Stop is pressed."""
    jupyter.start(page, "notebook:run-all-below", cell="counts = [")
    stop = notebook.get_by_role("button", name="Stop the training")
    stop.wait_for(timeout=120_000)
    notebook.get_by_role("img", name=re.compile("^Training: the loss")).wait_for(timeout=120_000)
    stop.press("Enter")
    jupyter.finished(page)


def test_04_a_question_is_answered_side_by_side_and_can_be_cancelled(desk):
    notebook, page = opened_and_run(desk, "04_evaluation"), desk.page
    jupyter.type_into(page, "question", "What is the capital of Italy?")
    notebook.get_by_label("question", exact=True).press("Enter")
    notebook.get_by_text(re.compile(r"^answered after")).wait_for(timeout=60_000)
    for voice in ("base", "tuned"):
        assert len(notebook.get_by_role("group", name=f"answer of {voice}").inner_text().splitlines()[1]) > 1
    notebook.get_by_label("do_sample", exact=True).press("Space")
    jupyter.type_into(page, "temperature", "10")
    jupyter.type_into(page, "top_p", "1")
    jupyter.type_into(page, "max_new_tokens", "30000")
    notebook.get_by_role("button", name="Ask both").press("Enter")
    notebook.get_by_text("base is answering").wait_for()
    notebook.get_by_role("button", name="Cancel").press("Enter")
    notebook.get_by_text(re.compile(r"^cancelled after")).wait_for(timeout=60_000)
    jupyter.type_into(page, "question", " ")
    notebook.get_by_role("button", name="Ask both").press("Enter")
    notebook.get_by_text("✗ there is nothing to ask").wait_for()


def test_05_the_street_ends_at_the_push_plan(desk):
    opened_and_run(desk, "05_export_and_push")
    assert (desk.run_dir / "export" / "push.json").exists()


def test_the_browser_had_nothing_to_complain_of(desk):
    """No error in the console, and nothing was asked of any other machine."""
    assert desk.complaints == []
    assert desk.strangers == []
