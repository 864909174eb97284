"""What is typed into a form, in a real JupyterLab: kept over Run All and a new kernel; what it shows stays text."""

from __future__ import annotations

import json

import pytest

from browser import lab as jupyter

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

TYPED = {"max_seq_length": "64", "valid_share": "0.2", "loss_on": "all", "model_id": "embedded", "data_files": "rows.jsonl"}
PRICE = "It is $5 for tea and $10 for cake \x1b[31m"

# The tests stand in an order: each goes on where the one before it stopped.


@pytest.fixture(scope="module", autouse=True)
def rows(desk):
    """Data of one's own, with dollars and a control character in them."""
    turns = [[{"role": "user", "content": f"{i} teas?"}, {"role": "assistant", "content": PRICE}] for i in range(12)]
    (desk.root / "rows.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))


def fill(page, name, value):
    field = page.locator(jupyter.NOTEBOOK).get_by_label(name, exact=True)
    if field.evaluate("field => field.tagName") == "SELECT":
        field.select_option(label=value)
    else:
        jupyter.type_into(page, name, value)


def shown(page):
    """What stands in the typed fields now."""
    read = "field => field.tagName === 'SELECT' ? field.selectedOptions[0].label : field.value"
    return {name: page.locator(jupyter.NOTEBOOK).get_by_label(name, exact=True).evaluate(read) for name in [*TYPED, "preset"]}


def test_what_was_typed_is_there_after_run_all_and_a_new_kernel(desk):
    """A form filled, a preset changed, Run All, the kernel restarted, the page loaded again."""
    page, notebook = desk.page, desk.page.locator(jupyter.NOTEBOOK)
    jupyter.open_notebook(page, desk.lab, "02_data_formatting")
    jupyter.run_all(page)
    for name, value in TYPED.items():
        if name == "model_id":  # typed last, over what the preset brought
            notebook.get_by_text("local would change model_id to Qwen/Qwen2.5-0.5B-Instruct").wait_for()
            fill(page, "preset", "local")
            notebook.get_by_text("smoke would change model_id to embedded").wait_for()
            assert notebook.get_by_label("model_id", exact=True).input_value() == "Qwen/Qwen2.5-0.5B-Instruct"
        fill(page, name, value)
    notebook.get_by_label("trust_remote_code", exact=True).press("Space")
    notebook.get_by_text("it counts for this run only").wait_for()
    kept = TYPED | {"preset": "local"}
    assert shown(page) == kept
    for restart, reload in ((False, False), (True, False), (True, True)):
        if reload:
            jupyter.open_notebook(page, desk.lab, "02_data_formatting")
        if restart:
            page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()")
            page.wait_for_timeout(2000)
            jupyter.wait_idle(page)
        jupyter.run_all(page)
        assert jupyter.errors(page) == []
        assert shown(page) == kept
        assert not notebook.get_by_label("trust_remote_code", exact=True).is_checked()
        notebook.get_by_text("● typed here: preset").wait_for()
    config = json.loads((desk.run_dir / "data" / "manifest.json").read_text())["config"]
    assert (config["max_seq_length"], config["loss_on"], config["preset"]) == (64, "all", "local")


def test_dollars_are_no_formula_and_control_characters_are_seen(desk):
    """In tables, coloured tokens and the form; the notebook's own formulas are typeset, so that this shows something."""
    page, notebook = desk.page, desk.page.locator(jupyter.NOTEBOOK)
    jupyter.type_into(page, "text_field", "$a and $b")
    notebook.get_by_text("-p text_field '$a and $b'").wait_for()
    page.evaluate(
        """() => { const content = window.jupyterapp.shell.currentWidget.content;
        const cell = content.widgets.find(c => c.model.type === 'markdown'); cell.model.sharedModel.setSource('$x^2$');
        cell.rendered = false; cell.rendered = true; }"""
    )
    notebook.locator("mjx-container").first.wait_for(timeout=30_000)
    assert notebook.locator(".jp-OutputArea mjx-container").count() == 0
    assert notebook.locator(".jp-OutputArea").get_by_text("$5 for tea and $10 for cake \\x1b[31m").count() > 0
    jupyter.type_into(page, "text_field", "")


def test_the_next_and_the_earlier_notebook_have_it_and_one_click_drops_it(desk):
    page, notebook = desk.page, desk.page.locator(jupyter.NOTEBOOK)
    jupyter.open_notebook(page, desk.lab, "01_environment_check")
    jupyter.run_all(page)
    assert notebook.get_by_label("model_id", exact=True).input_value() == "embedded"
    assert notebook.get_by_label("max_seq_length", exact=True).input_value() == "64"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    notebook.get_by_role("button", name="Copy the command").press("Enter")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith("mac-lora run --preset local -p ")
    assert "-p max_seq_length 64" in copied
    notebook.get_by_role("button", name="drop what was typed").press("Enter")
    notebook.get_by_text("nothing was typed here").wait_for()
    # The rows of one's own stay, as 02's form holds them, and with them the recipe that follows them.
    assert notebook.get_by_label("max_seq_length", exact=True).input_value() == "512"
    assert set(json.loads((desk.run_dir / "draft.json").read_text())) == set(TYPED) - {"max_seq_length", "model_id"} | {"text_field"}
    assert desk.strangers == []
