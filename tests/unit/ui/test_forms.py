"""Forms: what is refused, what is kept for the next run, and that the command gives the same config again."""

import json
import os
import shlex
import subprocess
import sys

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mac_lora_helpers import ui
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import CONSENT, Config, configure, parameter_info, preset_values, resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.ui.settings import allowed, command, settings_table

NAMES = ["preset", "out_dir", "model_id", "max_steps", "learning_rate", "lora_r", "push", "dtype", "prompt"]


@pytest.fixture(autouse=True)
def _somebody_is_there(monkeypatch):
    monkeypatch.delenv("MAC_LORA_HEADLESS", raising=False)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a notebook with a form, as Run All does: in a folder of its own, with what an earlier run kept there."""
    monkeypatch.chdir(tmp_path)

    def run_all(cell=None, env=None, names=NAMES):
        config = configure(cell or {}, env or {})
        return config, ui.config_form(config, names)

    return run_all


def type_into(form, **values):
    for name, value in values.items():
        form.fields[name].widget.value = value


def test_a_headless_run_shows_the_settings_and_reads_no_draft(opened, monkeypatch):
    type_into(opened()[1], max_steps=7)
    monkeypatch.setenv("MAC_LORA_HEADLESS", "1")
    config, shown = opened()
    assert config.max_steps == 200
    assert isinstance(shown, ui.Table)
    assert [row[0] for row in shown.rows] == NAMES
    assert ui.ask_box(None, config) is None


def test_every_parameter_can_stand_in_a_form(opened):
    config, form = opened(names=list(Config.model_fields))
    for name, field in form.fields.items():
        assert field.widget.description == name
        assert parameter_info(name)["help"] in field.widget.tooltip
        assert field.widget.value == getattr(config, name)


def test_what_does_not_fit_is_refused_in_place_with_what_is_allowed(opened):
    config, form = opened(names=[*NAMES, "metric", "job_timeout"])
    bad = {
        "learning_rate": (-1.0, "more than 0, at most 1"),
        "lora_r": (0, "at least 1, at most 512"),
        "max_steps": (10**9, "at most 10,000,000"),
        "model_id": ("", "must not be empty"),
        "metric": ("exact", "one of exact_match, contains, valid_json, token_f1, or module:function"),
        "job_timeout": ("long", "for example 90m or 2h"),
    }
    for name, (value, words) in bad.items():
        kept = getattr(config, name)
        type_into(form, **{name: value})
        field = form.fields[name]
        assert getattr(config, name) == kept == field.widget.value
        assert "refused" in field.message.value
        assert words in field.message.value
        assert f"kept {kept}" in field.message.value
        assert not config.asked(name)
    type_into(form, lora_r=8)
    assert "refused" not in form.fields["lora_r"].message.value


def test_what_is_typed_is_there_after_run_all_and_in_the_next_notebook(opened):
    typed = {"max_steps": 7, "learning_rate": 1e-3, "prompt": 'it\'s "$5" <b>', "dtype": "bfloat16", "model_id": "~/models/mine"}
    type_into(opened()[1], **typed)
    config, form = opened()
    assert {name: getattr(config, name) for name in typed} == typed
    assert {name: form.fields[name].widget.value for name in typed} == typed
    assert {config.source_of(name) for name in typed} == {"draft"}
    assert "● typed into a form; preset smoke: 200" in form.fields["max_steps"].message.value
    assert settings_table(config, ["max_steps"]).rows[0][:3] == ["max_steps", "7", "● preset smoke has 200; typed into a form"]
    assert opened(names=["model_id"])[0].model_id == "~/models/mine"


def test_one_click_drops_what_was_typed_and_one_a_single_value(opened):
    config, form = opened({"max_steps": 3})
    assert form.drop.layout.display == form.fields["max_steps"].reset.layout.display == "none"
    type_into(form, preset="local", max_steps=7, lora_r=4)
    form.fields["max_steps"].reset.click()
    assert (config.max_steps, config.source_of("max_steps"), opened()[0].max_steps) == (3, "parameter", -1)
    form.drop.click()
    assert (config.preset, config.lora_r, config.model_id) == ("smoke", 16, "embedded")
    assert "nothing was typed here" in form.status.value
    assert opened()[0].model_dump() == resolve({}, {}).model_dump()


def test_the_caller_and_the_environment_come_first_and_the_form_says_so(opened):
    config, form = opened({"max_steps": 3}, {"LORA_R": "4"})
    assert (form.fields["max_steps"].widget.value, form.fields["lora_r"].widget.value) == (3, 4)
    type_into(form, max_steps=7, lora_r=8)
    assert (config.max_steps, config.lora_r) == (7, 8)
    assert "at Run All the value set in the environment counts again" in form.fields["lora_r"].message.value
    config, form = opened({"max_steps": 3}, {"LORA_R": "4"})
    assert (config.max_steps, config.lora_r) == (3, 4)
    assert "7, typed into a form, does not count beside it" in form.fields["max_steps"].message.value
    assert "8, typed into a form, does not count beside it" in form.fields["lora_r"].message.value


def test_a_preset_changes_what_nobody_set_and_says_it_before_and_after(opened):
    config, form = opened({"seed": 9})
    type_into(form, max_steps=7)
    field = form.fields["preset"]
    assert "local would change model_id to Qwen/Qwen2.5-0.5B-Instruct" in field.message.value
    assert "max_steps to" not in field.message.value
    type_into(form, preset="local")
    local = preset_values("local")
    assert {n: v for n, v in config.model_dump().items() if v != local[n]} == {"max_steps": 7, "seed": 9}
    assert "smoke would change model_id to embedded" in field.message.value
    assert form.fields["model_id"].widget.value == local["model_id"]
    assert opened({"seed": 9})[0].model_dump() == config.model_dump()


def test_with_rows_of_ones_own_the_recipe_is_the_real_one_at_once_and_at_run_all(opened):
    config, form = opened(names=[*NAMES, "data_files"])
    type_into(form, data_files="mine.jsonl", lora_r=4)
    assert (config.preset, config.model_id, config.lora_r) == ("local", preset_values("local")["model_id"], 4)
    assert opened()[0].model_dump() == config.model_dump()
    form.fields["data_files"].reset.click()
    assert (config.preset, config.model_id) == ("smoke", "embedded")
    type_into(form, data_files="mine.jsonl", preset="smoke")
    assert (config.preset, config.model_id) == ("smoke", "embedded")


def test_another_run_directory_is_taken_at_run_all_and_a_foreign_one_refused(opened, tmp_path):
    config, form = opened()
    type_into(form, out_dir="outputs/other", max_steps=7)
    assert "counts from Run All on" in form.fields["out_dir"].message.value
    config, form = opened()
    assert (config.out_dir, config.max_steps) == ("outputs/other", 7)
    (tmp_path / "a_file").write_text("mine")
    type_into(form, out_dir="a_file")
    assert "a_file refused" in form.fields["out_dir"].message.value
    assert config.out_dir == "outputs/other"
    assert f"relative names start in {tmp_path}" in form.fields["out_dir"].message.value


def test_consent_is_kept_nowhere(opened, tmp_path):
    config, form = opened(names=list(Config.model_fields))
    type_into(form, **dict.fromkeys(CONSENT, True), lora_r=4)
    assert all(getattr(config, name) for name in CONSENT)
    assert "asked for anew" in form.fields["push"].message.value
    draft = tmp_path / config.out_dir / "draft.json"
    assert json.loads(draft.read_text()) == {"lora_r": 4}
    draft.write_text(json.dumps({**dict.fromkeys(CONSENT, True), "lora_r": 5, "no_such": 1}))
    config = opened()[0]
    assert config.lora_r == 5
    assert not any(getattr(config, name) for name in CONSENT)


def test_a_secret_is_refused_and_shown_nowhere(opened, tmp_path):
    secret = "hf_" + "a1" * 12
    config, form = opened()
    type_into(form, prompt=f"use {secret}")
    assert "looks like a secret (Hugging Face token)" in form.fields["prompt"].message.value
    assert secret not in form.fields["prompt"].message.value + form.fields["prompt"].widget.value
    assert not config.asked("prompt")
    assert not list(tmp_path.rglob("draft.json"))


@pytest.mark.parametrize("content", ["", "[]", "null", '{"max_steps"', '{"max_steps": "many"}', "[" * 5000, b"\xff"])
def test_a_damaged_draft_is_refused_by_name(opened, tmp_path, content):
    folder = RunDir(tmp_path / "outputs" / "local-lora").claim().root
    (folder / "draft.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"draft\.json"):
        opened()


def test_a_draft_in_somebodys_folder_is_not_read(opened, tmp_path):
    folder = tmp_path / "outputs" / "local-lora"
    folder.mkdir(parents=True)
    (folder / "draft.json").write_text('{"out_dir": "elsewhere"}')
    with pytest.raises(InputError, match="holds what this suite did not write"):
        opened()


def test_what_cannot_be_kept_counts_all_the_same_and_the_form_says_so(opened, tmp_path):
    config, form = opened()
    (tmp_path / "outputs").write_text("a file where the run directory would lie")
    type_into(form, lora_r=4)
    assert config.lora_r == 4
    assert "it counts here, but is not kept for the next run" in form.status.value


def test_two_open_notebooks_keep_each_others_values(opened):
    _, first = opened(names=["model_id"])
    _, second = opened(names=["lora_r"])
    type_into(first, model_id="mine")
    type_into(second, lora_r=4)
    config = opened()[0]
    assert (config.model_id, config.lora_r) == ("mine", 4)


def test_a_later_notebook_keeps_what_the_run_was_made_with_and_says_what_was_typed_since(opened):
    type_into(opened(names=["max_seq_length"])[1], max_seq_length=256)
    saved = resolve({"max_seq_length": 64}, {}).model_dump()
    config = opened()[0].inherit(saved, "data", made_by="02")
    assert config.max_seq_length == 64
    (row,) = settings_table(config, ["max_seq_length"]).rows
    assert "from an earlier notebook; 256, typed into a form, does not count beside it: run the notebook" in row[2]
    assert config.draft is not None


def test_hostile_text_stays_text(opened):
    form = opened()[1]
    type_into(form, prompt="<img src=x onerror=alert(1)> \" '")
    for shown in (form.fields["prompt"].message.value, form.command.value, form.static_html()):
        assert "<img" not in shown
    assert "&lt;img" in form.command.value
    assert "&lt;img" in form.static_html()


def test_bounds_and_choices_in_words():
    assert [allowed(name) for name in ("max_steps", "valid_share", "dtype", "prompt")] == [
        "at most 10,000,000",
        "at least 0, less than 0.5",
        "float32, bfloat16, float16",
        "",
    ]


def command_line(text, env):
    """What a shell makes of the command: the words after the assignments, and the assignments as environment."""
    script = f"mac-lora() {{ env -0; printf '\\1'; printf '%s\\0' \"$@\"; }}; {text}"
    done = subprocess.run(["bash", "-c", script], env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, check=True)
    variables, _, words = done.stdout.decode().partition("\1")
    pairs = dict(item.split("=", 1) for item in variables.split("\0") if "=" in item)
    return words.split("\0")[:-1], {name: value for name, value in pairs.items() if name.lower() in Config.model_fields}


def config_of_command(text, env=None):
    from mac_lora_helpers.suite import cli

    words, variables = command_line(text, env or {})
    arguments = cli.parse(words)
    return resolve(cli._explicit(arguments, preset=arguments.preset, out_dir=arguments.run_dir), variables)


TRAPS = ["-x", "--", "-p", "--json", "--preset smoke", 'it\'s "$HOME" `id` \\', "-1", "true", "2024-01-01", "# no"]
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30)
explicit = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from(["smoke", "local"]),
        "prompt": texts | st.sampled_from(TRAPS),
        "data_files": texts,
        "max_steps": st.integers(-5, 500),
        "learning_rate": st.floats(1e-9, 1),
        "push": st.booleans(),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "text_field": st.sampled_from(["", "text", "null", "1.5"]),
    },
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(explicit)
def test_the_command_gives_the_same_config(values):
    config = resolve(values, {})
    assert config_of_command(command(config)).model_dump() == config.model_dump()


def test_the_command_follows_the_form_and_tells_what_the_environment_would_decide(opened, monkeypatch):
    config, form = opened()
    type_into(form, max_steps=5)
    assert "mac-lora run --preset smoke -p max_steps 5</code>" in form.command.value
    assert shlex.split(command(config))[3:] == ["smoke", "-p", "max_steps", "5"]
    monkeypatch.setenv("LORA_R", "64")
    assert config_of_command(command(config), env={"LORA_R": "64"}).lora_r == 16


CELLS = [
    "from mac_lora_helpers import ui\nfrom mac_lora_helpers.config import configure",
    "max_steps: int = 200  # optimizer steps",
    "config = configure(globals())\nui.config_form(config, list(type(config).model_fields))",
    "with ui.stoppable('counting', quiet_seconds=0):\n    total = sum(range(1000))",
    "ui.ask_box(None, config)",
    "print(config.model_dump_json())",
]


def test_papermill_runs_through_with_the_form_on_and_a_page_without_widgets_still_reads(tmp_path):
    """In a kernel where nobody said headless; what papermill sets survives the form."""
    from nbconvert import HTMLExporter

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, tmp_path / "form.ipynb")
    words = [sys.executable, "-m", "papermill", "form.ipynb", "done.ipynb", "-p", "max_steps", "7", "--no-progress-bar"]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "LORA_R": "4"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    executed = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    expected = resolve({"max_steps": 7}, {**os.environ, "LORA_R": "4"})
    assert json.loads(executed.cells[-1].outputs[0].text) == json.loads(expected.model_dump_json())
    (form,) = [o for cell in executed.cells for o in cell.outputs if "● preset smoke" in str(o.get("data", {}).get("text/html"))]
    assert "application/vnd.jupyter.widget-view+json" in form["data"]
    del executed.metadata["widgets"]
    page, _ = HTMLExporter().from_notebook_node(executed)
    assert "● preset smoke has 200; set in the parameters cell or by papermill" in page
