import pytest

from mac_lora_helpers.config import Config, configure, parameter_info, preset_values, resolve
from mac_lora_helpers.errors import InputError

REFERENCE = (
    "model_id dataset_id dataset_split data_files text_field messages_field out_dir max_seq_length max_steps adapter_dir prompt".split()
)


def test_the_references_names_are_parameters_and_environment_variables():
    values = {name: parameter_info(name) for name in REFERENCE}
    assert [info["env"] for info in values.values()] == [name.upper() for name in REFERENCE]


def test_local_preset_is_the_references_recipe():
    config = resolve({"preset": "local"}, env={})
    recipe = {
        "model_id": "Qwen/Qwen2.5-0.5B-Instruct",
        "dataset_id": "HuggingFaceH4/ultrachat_200k",
        "dataset_split": "train_sft[:500]",
        "out_dir": "outputs/local-lora",
        "max_seq_length": 512,
        "max_steps": -1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "learning_rate": 2e-4,
        "logging_steps": 10,
        "save_steps": 200,
        "save_total_limit": 2,
        "gradient_checkpointing": "auto",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "dtype": "float32",
        "seed": 42,
        "push": False,
        "push_artifacts": "adapter",
        "prompt": "Explain gradient accumulation in 3 bullet points.",
        "temperature": 0.7,
        "top_p": 0.9,
        "max_new_tokens": 120,
    }
    assert {name: getattr(config, name) for name in recipe} == recipe


def test_smoke_trains_with_the_references_lora_settings():
    smoke, local = preset_values("smoke"), preset_values("local")
    same = [
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_targets",
        "learning_rate",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ]
    assert {n: smoke[n] for n in same} == {n: local[n] for n in same}


def test_precedence_caller_environment_preset_default():
    env = {"MAX_STEPS": "7", "SEED": "5", "PRESET": "smoke"}
    config = resolve({"max_steps": "3"}, env)
    assert (config.max_steps, config.seed, config.model_id, config.lora_r) == (3, 5, "embedded", 16)
    assert [config.source_of(n) for n in ("max_steps", "seed", "model_id", "lora_r")] == ["parameter", "environment", "preset", "default"]


def test_text_example_of_the_reference_by_environment():
    config = resolve({}, {"DATA_FILES": "test_text.jsonl", "TEXT_FIELD": "text", "MESSAGES_FIELD": ""})
    assert (config.data_patterns, config.text_field, config.messages_field) == (["test_text.jsonl"], "text", "")


def test_values_take_the_parameters_type():
    config = resolve({"push": "false", "learning_rate": "1e-4", "max_steps": "20", "prompt": 5, "data_files": ["a.jsonl", "b.jsonl"]}, {})
    assert (config.push, config.learning_rate, config.max_steps, config.prompt) == (False, 1e-4, 20, "5")
    assert config.data_patterns == ["a.jsonl", "b.jsonl"]


def test_a_comma_in_a_real_files_name_is_no_separator(tmp_path):
    file = tmp_path / "a, b.jsonl"
    file.write_text("{}")
    assert resolve({"data_files": str(file)}, {}).data_patterns == [str(file)]


@pytest.mark.parametrize("prompt", ["%n@%m %1~ %#", "%(?..%?) %~", r"\u@\h:\w\$ ", "${ret_status} $(git_prompt)"])
def test_the_shells_own_prompt_is_not_a_question(prompt):
    assert resolve({}, {"PROMPT": prompt}).prompt == "What is the capital of France?"


@pytest.mark.parametrize("prompt", ["Is 5% of 20 equal to 1?", "What is 100 % of 3?", "Explain C:\\dir", "Why $5?"])
def test_a_question_is_kept(prompt):
    assert resolve({}, {"PROMPT": prompt}).prompt == prompt


def test_a_terminals_width_maps_no_columns():
    assert resolve({}, {"COLUMNS": "80"}).columns == ""
    assert resolve({}, {"COLUMNS": "prompt=frage, completion=antwort"}).columns == "prompt=frage, completion=antwort"


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean max_steps"):
        resolve({"max_stepz": 1}, {})


def test_all_bad_values_are_told_at_once_with_their_place():
    with pytest.raises(InputError) as caught:
        resolve({"max_steps": "abc", "dtype": "fp8"}, {"LORA_R": "0"})
    text = str(caught.value)
    assert all(part in text for part in ("max_steps='abc'", "dtype='fp8'", "LORA_R in the environment", "not a whole number"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_steps", True), ("max_steps", 1.5), ("learning_rate", "nan"), ("learning_rate", 0), ("model_id", ""), ("push", "maybe"),
     ("preset", "huge"), ("test_share", 0), ("job_timeout", "2 hours"), ("lora_dropout", 1), ("seed", -1)],
)  # fmt: skip
def test_out_of_bounds(name, value):
    with pytest.raises(InputError, match=name):
        resolve({name: value}, {})


def test_a_notebooks_edited_value_counts_and_a_stored_one_does_not():
    cell = preset_values("smoke")
    config = configure({**cell, "max_steps": 9}, env={"SEED": "3", "MAX_STEPS": "4"})
    assert (config.max_steps, config.seed) == (9, 3)


def test_an_injected_value_counts_even_where_it_equals_the_stored_one():
    cell = preset_values("smoke")
    cells = ["import x", "max_steps: int = 200", "# Parameters\nmax_steps = 200\n"]
    assert configure({**cell, "In": cells}, env={"MAX_STEPS": "4"}).max_steps == 200


def test_an_injected_unknown_name_is_refused():
    with pytest.raises(InputError, match="max_stps"):
        configure({"In": ["# Parameters\nmax_stps = 3\n"], "max_stps": 3}, env={})


def test_the_preset_injected_into_a_notebook_replaces_the_stored_values():
    cell = {**preset_values("smoke"), "preset": "local", "In": ["# Parameters\npreset = 'local'\n"]}
    assert configure(cell, env={}).model_id == "Qwen/Qwen2.5-0.5B-Instruct"


def test_kernel_inside_the_notebooks_folder_works_from_the_projects(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "01_environment_check.ipynb").write_text("{}")
    monkeypatch.chdir(folder)
    configure({}, env={})
    assert __import__("pathlib").Path.cwd() == tmp_path


def test_later_stages_take_the_saved_values_and_preset():
    saved = resolve({"preset": "local", "max_seq_length": 256}, {}).model_dump()
    config = resolve({"learning_rate": 1e-4}, {}).inherit(saved, "data", made_by="02_data_formatting.ipynb")
    assert (config.preset, config.max_seq_length, config.max_steps, config.learning_rate) == ("local", 256, -1, 1e-4)


def test_without_a_saved_preset_the_callers_own_holds():
    config = resolve({"preset": "local"}, {}).inherit({"max_seq_length": 256}, "data", made_by="02_data_formatting.ipynb")
    assert (config.eval_examples, config.max_steps, config.max_seq_length) == (100, -1, 256)


def test_a_contradiction_with_the_saved_values_is_refused():
    saved = resolve({"max_seq_length": 256}, {}).model_dump()
    with pytest.raises(InputError, match="02_data_formatting"):
        resolve({"max_seq_length": 64}, {}).inherit(saved, "data", made_by="02_data_formatting.ipynb")


def test_a_saved_home_path_is_the_same_path(monkeypatch):
    monkeypatch.setenv("HOME", "/Users/anna")
    saved = resolve({"data_files": "~/a.jsonl, ~/b.jsonl", "model_id": "~/m"}, {}).model_dump()
    here = resolve({"data_files": "/Users/anna/a.jsonl, /Users/anna/b.jsonl", "model_id": "/Users/anna/m"}, {})
    config = here.inherit(saved, "data", made_by="02_data_formatting.ipynb")
    assert config.data_patterns == ["/Users/anna/a.jsonl", "/Users/anna/b.jsonl"]


def test_a_form_writes_checked_values():
    config = resolve({}, {})
    config.max_steps = 3
    assert (config.max_steps, config.source_of("max_steps")) == (3, "form")
    with pytest.raises(ValueError, match="greater than 0"):
        config.learning_rate = -1
    assert config.learning_rate == 2e-4


def test_every_parameter_has_help_group_and_stage():
    for name in Config.model_fields:
        info = parameter_info(name)
        assert info["help"]
        assert info["stage"] in {"run", "data", "training", "evaluation", "export"}
        assert "=" not in info["help"], "papermill's inspector skips a parameter line that holds two ="


@pytest.mark.parametrize(
    ("given", "kept"), [("true", True), ("False", False), (True, True), (False, False), (1, True), ("auto", "auto"), ("off", False)]
)
def test_checkpointing_is_auto_on_or_off_however_it_is_written(given, kept):
    assert resolve({"gradient_checkpointing": given}, {}).gradient_checkpointing is kept or kept == "auto"
    assert resolve({}, {"GRADIENT_CHECKPOINTING": str(given)}).gradient_checkpointing == kept
    config = resolve({}, {})
    config.gradient_checkpointing = given
    assert config.gradient_checkpointing == kept
    assert resolve(config.model_dump(), {}).gradient_checkpointing == kept
    assert parameter_info("gradient_checkpointing")["choices"] == ["auto", True, False]


@pytest.mark.parametrize("given", ["maybe", 2, None])
def test_checkpointing_that_is_neither(given):
    with pytest.raises(InputError, match="gradient_checkpointing"):
        resolve({"gradient_checkpointing": given}, {})


@pytest.mark.parametrize("preset", ["smoke", "real", "local"])
def test_a_shell_can_write_every_parameter(preset):
    """What a case, a job or a person passes on by ``-p`` is text; it gives the value that it was written from."""
    config = resolve({"preset": preset}, env={})
    written = {name: str(value) for name, value in config.model_dump().items()}
    assert resolve(written, env={}).model_dump() == config.model_dump()
