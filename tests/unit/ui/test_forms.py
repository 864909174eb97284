"""Forms: what is refused, what is marked, and that the text to take along gives the same config again."""

import json
import shlex
import subprocess
import sys
import threading
from types import SimpleNamespace

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mac_lora_helpers import ui
from mac_lora_helpers.config import Config, parameter_info, preset_values, resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.ui import idle
from mac_lora_helpers.ui.forms import fields, fit, recipe

NAMES = ["preset", "model_id", "max_steps", "learning_rate", "lora_r", "push", "dtype", "prompt"]


@pytest.fixture(autouse=True)
def _somebody_is_there(monkeypatch):
    monkeypatch.delenv("MAC_LORA_HEADLESS", raising=False)


def form_over(explicit=None, names=NAMES):
    config = resolve(explicit or {}, {})
    return config, ui.config_form(config, names)


def test_a_headless_run_has_no_form(monkeypatch):
    monkeypatch.setenv("MAC_LORA_HEADLESS", "1")
    assert ui.config_form(resolve({}, {}), ["max_steps"]) is None
    assert ui.fit_form(resolve({}, {}), ["max_steps"], fit=None) is None
    assert ui.ask_box(None, None, None) is None


def test_every_parameter_can_stand_in_a_form():
    config, form = form_over(names=list(Config.model_fields))
    assert list(form.fields) == list(Config.model_fields)
    for name, field in form.fields.items():
        assert field.widget.description == name
        assert parameter_info(name)["help"] in field.widget.tooltip
        assert field.widget.value == getattr(config, name)


def test_values_that_papermill_or_the_environment_set_survive_the_form():
    config = resolve({"max_steps": 3}, {"LORA_R": "4"})
    form = ui.config_form(config, NAMES)
    assert (config.max_steps, config.lora_r) == (3, 4)
    assert (config.source_of("max_steps"), config.source_of("lora_r")) == ("parameter", "environment")
    assert (form.fields["max_steps"].widget.value, form.fields["lora_r"].widget.value) == (3, 4)


def test_a_value_that_does_not_fit_is_refused_in_place_and_the_kept_one_shown():
    config, form = form_over()
    for name, bad, kept in [("learning_rate", -1.0, 2e-4), ("lora_r", 0, 16), ("model_id", "", "embedded"), ("max_steps", 10**9, 200)]:
        field = form.fields[name]
        field.widget.value = bad
        assert getattr(config, name) == kept == field.widget.value
        assert "refused" in field.message.value
        assert f"kept {kept!s}" in field.message.value
        assert config.source_of(name) != "form"
    form.fields["lora_r"].widget.value = 8
    assert "refused" not in form.fields["lora_r"].message.value
    assert config.lora_r == 8


def test_what_differs_is_marked_in_words_and_can_be_taken_back():
    config, form = form_over()
    field = form.fields["max_steps"]
    assert field.reset.layout.display == "none"
    field.widget.value = 7
    assert "● changed, set here; preset smoke: 200" in field.message.value
    assert "● 1 of 8 values differ" in form.status.value
    assert field.reset.layout.display == ""
    field.reset.click()
    assert (config.max_steps, field.widget.value, config.source_of("max_steps")) == (200, 200, "preset")
    assert "changed" not in field.message.value
    assert "no value differs" in form.status.value


def test_hostile_text_stays_text():
    form = form_over()[1]
    form.fields["prompt"].widget.value = "<img src=x onerror=alert(1)>"
    for widget in (form.fields["prompt"].message, form.status, form.effective):
        assert "<img" not in widget.value
    assert "<img" not in form.static_html()


def test_a_preset_fills_the_fields_and_all_that_nobody_set():
    config, form = form_over({"max_steps": 3, "seed": 9})
    form.fields["preset"].widget.value = "local"
    local = preset_values("local")
    assert {name: getattr(config, name) for name in NAMES} == {name: local[name] for name in NAMES}
    assert config.max_new_tokens == local["max_new_tokens"]
    assert config.seed == 9
    assert form.fields["model_id"].widget.value == local["model_id"]
    form.presets["smoke"].click()
    assert config.preset == form.fields["preset"].widget.value == "smoke"
    assert config.max_steps == 200


def test_a_form_of_a_later_notebook_fills_values_and_keeps_the_runs_preset():
    config, form = form_over(names=["max_steps", "lora_r"])
    form.fill("local")
    assert (config.preset, config.max_steps, config.model_id) == ("smoke", -1, "embedded")
    assert "preset smoke; ● 1 of 2" in form.status.value
    form.fill("smoke")
    assert config.max_steps == 200


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
        "lora_dropout": st.floats(0, 0.99),
        "push": st.booleans(),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "text_field": st.sampled_from(["", "text", "null", "1.5"]),
    },
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(explicit)
def test_the_command_gives_the_same_config(values):
    config = resolve(values, {})
    assert config_of_command(recipe.command(config)).model_dump() == config.model_dump()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(explicit)
def test_the_yaml_gives_the_same_config_through_papermills_own_reader(tmp_path_factory, values):
    from papermill.iorw import read_yaml_file
    from papermill.translators import PythonTranslator

    file = tmp_path_factory.mktemp("yaml") / "parameters.yaml"
    config = resolve(values, {})
    file.write_text(recipe.papermill_yaml(config), encoding="utf-8")
    injected = {}
    exec(PythonTranslator.codify(read_yaml_file(str(file))), injected)  # noqa: S102  the cell that papermill injects
    injected.pop("__builtins__")
    assert resolve(injected, {}).model_dump() == config.model_dump()


def test_only_what_differs_is_told():
    config = resolve({"max_steps": 200, "lora_r": 8}, {})
    assert shlex.split(recipe.command(config)) == ["mac-lora", "run", "--preset", "smoke", "-p", "lora_r", "8"]
    assert recipe.papermill_yaml(config) == "preset: smoke\nlora_r: 8\n"


def test_what_the_environment_would_decide_is_told(monkeypatch):
    config = resolve({}, {})
    monkeypatch.setenv("LORA_R", "64")
    assert config_of_command(recipe.command(config), env={"LORA_R": "64"}).lora_r == 16


def test_the_text_to_take_along_follows_the_form():
    form = form_over()[1]
    form.fields["max_steps"].widget.value = 5
    assert form.command.value.endswith("-p max_steps 5")
    assert "max_steps: 5" in form.yaml.value
    assert "● 200" in form.effective.value


def test_a_page_without_widgets_still_reads(tmp_path):
    """A stored notebook as nbconvert shows it: the values as a table, no dead widget in their place."""
    from nbconvert import HTMLExporter

    form = form_over({"max_steps": 5})[1]
    bundle = form._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=json.loads(json.dumps(bundle)))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("form", outputs=[output])])
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert "● 200" in page
    assert "max_steps" in page
    assert "max_steps" in bundle["text/plain"]


GOOD = {"parts": {"weights": 10, "activations": 20, "runtime": 5}, "steps": 4, "step_seconds": 2.0, "total_seconds": 8.0}


def asked(config):
    if config.dtype == "float16":
        raise InputError("no float16 here", fix="float32")
    total = 1000 * config.lora_r
    fits = total <= 20_000
    return SimpleNamespace(**GOOD, total_bytes=total, available_bytes=20_000, fits=fits, advice=[] if fits else ["lora_r=16 <b>"])


def test_the_bar_follows_and_a_bad_value_leaves_the_last_good_one():
    config = resolve({}, {})
    form = ui.fit_form(config, ["lora_r", "dtype"], asked)
    assert "✓ fits: needs about 16.0 kB of the 20.0 kB" in form.bar.value
    form.fields["lora_r"].widget.value = 32
    assert "✗ does not fit: needs about 32.0 kB" in form.bar.value
    assert "to do: lora_r=16 &lt;b&gt;" in form.bar.value
    before = form.bar.value
    form.fields["lora_r"].widget.value = -3
    assert form.bar.value == before
    form.fields["dtype"].widget.value = "float16"
    assert "not predicted for these values: no float16 here" in form.bar.value
    assert "✗ does not fit: needs about 32.0 kB" in form.bar.value
    form.fields["dtype"].reset.click()
    assert form.bar.value == before


def test_while_a_slow_answer_is_counted_the_last_one_stays_with_a_word():
    seen, forms = [], []

    def slow(config):
        seen.extend(form.bar.value for form in forms)
        return asked(config)

    forms.append(ui.fit_form(resolve({}, {}), ["lora_r"], slow))
    forms[0].fields["lora_r"].widget.value = 4
    assert "needs about 16.0 kB" in seen[0]
    assert "counting …" in seen[0]
    assert "counting …" not in forms[0].bar.value


def test_the_next_answers_are_counted_while_the_kernel_waits(monkeypatch):
    import asyncio

    monkeypatch.setattr(idle, "PAUSE", 0.01)
    seen = []

    def ahead(config, lengths):
        for step in range(3):
            seen.append((config.lora_r, lengths, step))
            yield

    async def somebody_at_the_form():
        form = ui.fit_form(resolve({}, {}), ["lora_r"], lambda config, lengths: asked(config), ahead, lengths=[5])
        form.fields["lora_r"].widget.value = 4
        assert seen == []
        await asyncio.sleep(0.2)
        form.fields["lora_r"].widget.value = 8
        form._idle.stop()
        await asyncio.sleep(0.05)

    asyncio.run(somebody_at_the_form())
    assert seen == [(4, [5], step) for step in range(3)], "a change drops what was left of the one before, and stop all of it"


def test_idle_work_that_fails_or_has_no_loop_is_left():
    import asyncio

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
    shown = fit.bar(asked(SimpleNamespace(dtype="float32", lora_r=40)))
    assert "left:calc(50.00% - 3px)" in shown
    assert "aria-label='✗ does not fit" in shown
    assert "about 8 s (4 steps of 2 s)" in shown


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (12600, "3.5 h")])
def test_durations(seconds, text):
    assert fit.duration(seconds) == text


def test_bounds_in_words():
    assert fields.bounds_text(parameter_info("lora_r")) == "at least 1, at most 512"
    assert fields.bounds_text(parameter_info("max_steps")) == "at most 10,000,000"
    assert fields.bounds_text(parameter_info("valid_share")) == "at least 0, less than 0.5"


def test_many_quick_changes_end_at_the_last():
    config = resolve({}, {})
    form = ui.fit_form(config, ["lora_r"], asked)
    for rank in range(1, 60):
        form.fields["lora_r"].widget.value = rank
    assert config.lora_r == 59
    assert "needs about 59.0 kB" in form.bar.value


CELLS = [
    "from mac_lora_helpers import ui\nfrom mac_lora_helpers.config import configure",
    "max_steps: int = 200  # optimizer steps",
    "config = configure(globals())\nui.config_form(config, list(type(config).model_fields))",
    "with ui.stoppable('counting', quiet_seconds=0):\n    total = sum(range(1000))",
    "ui.ask_box(None, config, None)",
    "print(config.model_dump_json())",
]


def test_papermill_runs_through_with_the_form_on_and_its_values_survive(tmp_path):
    """The YAML of a form, given to papermill as it is given by a user, in a kernel where nobody said headless."""
    config = resolve({"max_steps": 7, "prompt": 'it\'s "quoted": yes', "lora_dropout": 0.125, "push": True}, {})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, tmp_path / "form.ipynb")
    (tmp_path / "values.yaml").write_text(recipe.papermill_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "papermill", "form.ipynb", "done.ipynb", "-f", "values.yaml", "--no-progress-bar"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = nbformat.read(tmp_path / "done.ipynb", as_version=4).cells
    assert json.loads(cells[-1].outputs[0].text) == json.loads(config.model_dump_json())
    (form,) = [output for cell in cells for output in cell.outputs if "● differs" in str(output.get("data", {}).get("text/html"))]
    assert "application/vnd.jupyter.widget-view+json" in form["data"]
