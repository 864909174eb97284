"""Generated parameters: from the command line, the environment, papermill and saved configs. Good, or an error that can be acted on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from drills.fuzzing import NAME, NASTY, TEXT, VALUE, bounded, few, many
from mac_lora_helpers.config import Config, configure, resolve
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.suite.cli import main
from mac_lora_helpers.suite.runner import choose

GOOD = resolve({}, env={})


def readable(error: InputError, *names: str) -> None:
    """What, where and what to do, and nothing that breaks a terminal or a log; one of ``names`` is in it."""
    assert not names or any(name in str(error) for name in names)
    assert error.what
    assert error.where
    assert error.fix
    text = str(error)
    assert "Traceback" not in text
    text.encode("utf-8", "backslashreplace")


@many
@given(st.dictionaries(NAME, VALUE, max_size=4))
def test_any_values(explicit):
    try:
        config = resolve(explicit, env={})
    except InputError as error:
        readable(error)
    else:
        assert set(explicit) <= set(Config.model_fields)
        again = resolve(json.loads(json.dumps(config.model_dump())), env={})
        assert again.model_dump() == config.model_dump()


@bounded
@given(st.dictionaries(st.sampled_from([name.upper() for name in Config.model_fields]), TEXT, max_size=4))
def test_any_environment(env):
    try:
        config = resolve({}, env=env)
    except InputError as error:
        readable(error, "in the environment", "preset")
    else:
        assert all(config.source_of(name.lower()) == "environment" for name in env if name != "PROMPT")


@bounded
@given(st.sampled_from(list(Config.model_fields)), VALUE)
def test_every_field_alone_keeps_its_bounds(name, value):
    try:
        found = getattr(resolve({name: value}, env={}), name)
    except InputError as error:
        readable(error, name)
        return
    default = Config.model_fields[name].default
    if isinstance(default, bool):
        assert isinstance(found, bool)
    elif isinstance(default, (int, float)):
        assert found == found
        assert abs(found) != float("inf")
    else:
        assert isinstance(found, str)


WORDS = ["-p", "seed", "out_dir", "--json", "--only", "--from", "--preset", "--run-dir", "max_steps"]


@many
@given(st.sampled_from(["run", "doctor", "check-data", "estimate"]), st.lists(st.one_of(NASTY, st.sampled_from(WORDS)), max_size=5))
def test_any_command_line_that_is_refused_is_refused_in_words(command, arguments):
    """Only refusals: what would be accepted is not run here, so an unknown parameter closes every line."""
    out, err = io.StringIO(), io.StringIO()
    line = [command, *arguments, "-p", "no_such_parameter", "1"]
    if command == "check-data":
        line.append("nowhere.jsonl")
    assume("--help" not in arguments)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line)
        except SystemExit as stop:  # argparse
            code = stop.code
    assert code == 2, (line, out.getvalue(), err.getvalue())
    assert "Traceback" not in err.getvalue()
    assert out.getvalue() == ""


@bounded
@given(st.dictionaries(NAME, VALUE, max_size=4), st.text(max_size=60))
def test_any_namespace_of_a_notebook(namespace, cell):
    """What a learner edits into the parameters cell, and what papermill injects under ``# Parameters``."""
    injected = [f"# Parameters\n{name} = {value!r}" for name, value in namespace.items() if name.isidentifier()]
    try:
        configure({**namespace, "In": ["", cell, *injected]}, env={})
    except InputError as error:
        readable(error)


@bounded
@given(st.dictionaries(st.sampled_from(list(Config.model_fields)), VALUE, max_size=4))
def test_any_saved_config_is_inherited_or_refused(saved):
    try:
        merged = GOOD.inherit(saved, "data", "training", made_by="02_data_formatting.ipynb")
    except InputError as error:
        readable(error)
    else:
        assert isinstance(merged, Config)


@bounded
@given(st.lists(TEXT, max_size=3), st.none() | TEXT)
def test_any_choice_of_notebooks(only, start):
    with contextlib.suppress(InputError):
        assert 1 <= len(choose(only, start)) <= 5


@bounded
@given(TEXT)
def test_any_list_of_gguf_types(text):
    from mac_lora_helpers.export.gguf.write import parse_types

    try:
        types = parse_types(text)
    except InputError as error:
        readable(error)
    else:
        assert len(types) == len(set(types))


@bounded
@given(st.one_of(TEXT, st.lists(st.sampled_from(["adapter", "merged", "gguf", "mlx", " ", "Adapter"]), max_size=5).map(",".join)))
def test_any_list_of_artefacts_to_push(text):
    from mac_lora_helpers.export.card.write import KINDS, kinds_of

    try:
        kinds = kinds_of(resolve({"push_artifacts": text}, env={}))
    except InputError as error:
        readable(error)
    else:
        assert kinds
        assert set(kinds) <= set(KINDS)


@bounded
@given(st.one_of(TEXT, st.from_regex(r"[a-z./-]{1,12}/[A-Za-z0-9._/-]{0,30}", fullmatch=True)))
def test_any_repository_name(text):
    from huggingface_hub.utils import validate_repo_id

    from mac_lora_helpers.export.card.write import repo_name
    from mac_lora_helpers.export.hub.plan import _checked

    try:
        name = _checked(repo_name(resolve({"repo_id": text}, env={})))
    except InputError as error:
        readable(error)
    else:
        validate_repo_id(name)
        assert ".." not in name


@bounded
@given(st.one_of(TEXT, st.from_regex(r"[0-9.]{0,6} ?[smhdMHx]{0,2}", fullmatch=True)))
def test_any_time_limit_of_a_job(text):
    try:
        limit = resolve({"job_timeout": text}, env={}).job_timeout
    except InputError as error:
        readable(error)
    else:
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)?[smhd]", limit)


@pytest.fixture(scope="module")
def small_model():
    from tiny import SIZES, tiny_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **SIZES, vocab_size=len(tiny_tokenizer())))


TARGETS = ["q_proj", "mlp.up_proj", "lm_head", "layers", ".*", "embed_tokens"]


@bounded
@given(wanted=st.one_of(TEXT, st.lists(st.sampled_from(TARGETS), max_size=4).map(",".join)))
def test_any_lora_targets(small_model, wanted):
    from mac_lora_helpers.training.targets import candidates, find_targets

    try:
        found = find_targets(small_model, wanted)
    except InputError as error:
        readable(error)
    else:
        assert {name.rsplit(".", 1)[-1] for name in found} <= set(candidates(small_model))


@few
@given(TEXT)
def test_any_metric(text):
    from mac_lora_helpers.evaluation.metrics import find_metric

    try:
        metric = find_metric(resolve({"metric": text}, env={}).metric)
    except InputError as error:
        readable(error)
    else:
        assert isinstance(metric("a", "b"), float)


@bounded
@given(TEXT, st.text(alphabet="abcXYZ0189", min_size=20, max_size=40))
def test_no_token_and_no_home_survive(text, body):
    assume(body not in text)
    home = os.path.expanduser("~")
    told = portable(f"{text} hf_{body} {home}/file {text}")
    assert body not in told
    assert f"{home}/file" not in told or home == "/"
    assert portable(told) == told


@bounded
@given(st.binary(max_size=80), st.sampled_from(["environment", "manifest", "train_config", "eval_metrics", "test", "train_log"]))
def test_any_bytes_as_an_artefact(tmp_path, content, name):
    from mac_lora_helpers.artifacts import RunDir

    run = RunDir(tmp_path)
    run.path(name).write_bytes(content)
    try:
        run.read_lines(name) if run.path(name).suffix == ".jsonl" else run.read_json(name)
    except UserError as error:
        readable(error)
