"""Generated rows and files before notebook 02: data that can be used, or an error with a place and a way out."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drills.fuzzing import JSON, bounded, few
from mac_lora_helpers import data
from mac_lora_helpers.config import resolve
from mac_lora_helpers.data import readers
from mac_lora_helpers.data.problems import DataError
from mac_lora_helpers.errors import InputError

KEYS = st.sampled_from(
    "messages role content text prompt completion instruction output input conversations from value tools".split(),
)
ODD = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "", " ", "\0", "\ud800", "é"])
TEXTS = st.one_of(ODD, st.text(max_size=15))
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": TEXTS, "content": st.one_of(TEXTS, JSON)}),
    st.fixed_dictionaries({"from": TEXTS, "value": TEXTS}),
    st.dictionaries(KEYS, st.one_of(TEXTS, JSON), max_size=3),
    JSON,
)
#: Rows that nearly have one of the known shapes.
ROW = st.one_of(
    st.fixed_dictionaries({"messages": st.one_of(st.lists(MESSAGE, max_size=4), JSON)}, optional={"tools": JSON, "text": JSON}),
    st.fixed_dictionaries({"conversations": st.lists(MESSAGE, max_size=4)}),
    st.fixed_dictionaries({"prompt": st.one_of(TEXTS, st.lists(MESSAGE, max_size=2)), "completion": st.one_of(TEXTS, JSON)}),
    st.fixed_dictionaries({"instruction": TEXTS, "output": st.one_of(TEXTS, JSON)}, optional={"input": JSON}),
    st.fixed_dictionaries({"text": st.one_of(TEXTS, JSON)}),
    st.dictionaries(KEYS, st.one_of(TEXTS, JSON), max_size=4),
    JSON,
)
#: What may stand in a file of any name.
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")),
    JSON.map(lambda value: json.dumps(value).encode()),
)


def readable(error: InputError) -> None:
    assert error.where or isinstance(error, DataError)
    assert error.fix
    str(error).encode()
    assert not isinstance(error, DataError) or error.counts


def judged(path, **values) -> None:
    """Rows in splits, or an error that says what, where and what to do."""
    config = resolve({"data_files": str(path), **values}, env={})
    try:
        found = data.validate(data.load(config), config)
        splits = data.split(found, config)
    except InputError as error:
        readable(error)
    else:
        lines = [line for rows in splits.values() for line in rows.lines()]
        assert len(lines) == len(found.rows)
        for line in lines:
            json.loads(line)


@bounded
@given(
    st.lists(ROW, min_size=1, max_size=5),
    st.sampled_from(["auto", "messages", "text", "prompt_completion", "conversations", "alpaca"]),
    st.sampled_from(["stop", "skip"]),
)
def test_any_rows(tmp_path, rows, shape, on_bad_rows):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged(path, data_shape=shape, on_bad_rows=on_bad_rows)


@bounded
@given(st.lists(ROW, min_size=1, max_size=4), st.none() | st.integers(0, 4))
def test_any_array(tmp_path, rows, indent):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(rows, indent=indent))
    judged(path, on_bad_rows="skip")
    assert [record.value for record in readers.read(path, "json") if record.fault is None] == [row for row in rows if isinstance(row, dict)]


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.tsv", "d.parquet", "d.jsonl.gz", "d", "d.txt"])
@few
@given(content=CONTENT)
def test_any_bytes_under_any_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") and len(content) % 2 else content)
    judged(path)


@few
@given(st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=2), min_size=1, max_size=5), st.sampled_from([",", "\t"]))
def test_any_table(tmp_path, rows, delimiter):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows([["prompt", "completion"], *rows])
    path = tmp_path / ("d.csv" if delimiter == "," else "d.tsv")
    path.write_bytes(stream.getvalue().encode("utf-8", "replace"))
    judged(path, on_bad_rows="skip")


@few
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_field_names(tmp_path, messages_field, text_field):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i}", messages_field or "x": "y"}) + "\n" for i in range(3)))
    judged(path, messages_field=messages_field, text_field=text_field)
