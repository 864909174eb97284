"""The same rows from every kind of source give the same examples; shapes are detected and said aloud."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conversations import conversations, write_rows

from mac_lora_helpers import data
from mac_lora_helpers.config import resolve
from mac_lora_helpers.data.problems import DataError
from mac_lora_helpers.errors import InputError

ROWS = [{"messages": row} for row in conversations(40)]


def found_in(files, **values):
    config = resolve({"data_files": str(files), **values}, env={})
    return data.validate(data.load(config), config)


def examples(found) -> list[dict]:
    return [example.to_dict() for example in found.rows]


def write_as(form: str, folder) -> str:
    """ROWS in a format; returns what goes into data_files."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / f"rows.{form}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif form == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif form in ("csv", "tsv"):
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if form == "tsv" else ",")
            writer.writerows([["messages"], *([json.dumps(row["messages"])] for row in ROWS)])
    elif form == "many":
        for part in range(4):
            write_rows(folder / f"part-{part}.jsonl", ROWS[part * 10 : part * 10 + 10])
        return f"{folder}/part-[01].jsonl, {folder}/part-2.jsonl, {folder}/part-3.jsonl"
    else:
        path.write_text({"json": json.dumps(ROWS), "pretty.json": json.dumps(ROWS, indent=2)}.get(form, lines))
    return str(path)


FORMS = ["jsonl", "ndjson", "json", "pretty.json", "lines.json", "jsonl.gz", "csv", "tsv", "parquet", "many", "unnamed"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_rows(form, tmp_path):
    assert examples(found_in(write_as(form, tmp_path))) == ROWS


def test_places_name_file_and_line(tmp_path):
    write_rows(tmp_path / "a.jsonl", ROWS[:3])
    (tmp_path / "b.jsonl").write_text("\n" + json.dumps(ROWS[3]) + "\n\n" + json.dumps(ROWS[4]) + "\n")
    found = found_in(f"{tmp_path}/*.jsonl")
    assert [example.where.split("/")[-1] for example in found.rows] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:2", "b.jsonl:4"]


Q, A = "What is 2+2?", "4"
PAIR = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
SYSTEM = {"role": "system", "content": "Be brief."}
CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
#: name → (row, shape, example)
SHAPES = {
    "messages": ({"messages": PAIR}, "messages", {"messages": PAIR}),
    "messages, other keys": ({"prompt": Q, "id": 3, "messages": PAIR}, "messages", {"messages": PAIR}),
    "messages, keys in another order": ({"messages": [{"content": Q, "role": "user"}, PAIR[1]]}, "messages", {"messages": PAIR}),
    "messages, empty system turn": ({"messages": [{"role": "system", "content": ""}, *PAIR]}, "messages", {"messages": PAIR}),
    "messages, parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, PAIR[1]]},
        "messages",
        {"messages": PAIR},
    ),
    "text": ({"text": "User: a"}, "text", {"text": "User: a"}),
    "prompt and completion": ({"prompt": Q, "completion": A}, "prompt_completion", {"messages": PAIR}),
    "prompt and completion, system": (
        {"system": "Be brief.", "prompt": Q, "completion": A},
        "prompt_completion",
        {"messages": [SYSTEM, *PAIR]},
    ),
    "prompt and completion, messages": ({"prompt": PAIR[:1], "completion": PAIR[1:]}, "prompt_completion", {"messages": PAIR}),
    "sharegpt": ({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}, "conversations", {"messages": PAIR}),
    "sharegpt, system": (
        {"system": "Be brief.", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        "conversations",
        {"messages": [SYSTEM, *PAIR]},
    ),
    "sharegpt in messages": (
        {"messages": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        "conversations",
        {"messages": PAIR},
    ),
    "conversations with roles": ({"conversations": PAIR}, "messages", {"messages": PAIR}),
    "alpaca": ({"instruction": Q, "input": "", "output": A}, "alpaca", {"messages": PAIR}),
    "alpaca with input": (
        {"instruction": "Add", "input": "2, 2", "output": A},
        "alpaca",
        {"messages": [{"role": "user", "content": "Add\n\n2, 2"}, PAIR[1]]},
    ),
    "alpaca with history": ({"instruction": Q, "output": A, "history": [[Q, A]]}, "alpaca", {"messages": PAIR + PAIR}),
    "tool calls": (
        {
            "messages": [PAIR[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]}],
            "tools": '[{"type": "function"}]',
        },
        "messages",
        {"messages": [PAIR[0], {"role": "assistant", "content": "", "tool_calls": CALLS}], "tools": [{"type": "function"}]},
    ),
    "sharegpt tool calls": (
        {"conversations": [{"from": "human", "value": Q}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]},
        "conversations",
        {"messages": [PAIR[0], {"role": "assistant", "content": "", "tool_calls": CALLS}]},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_detected_and_brought_into_one_form(name, tmp_path):
    row, shape, example = SHAPES[name]
    found = found_in(write_rows(tmp_path / "r.jsonl", [row]))
    assert found.shape == shape
    assert shape in found.shape_reason
    assert examples(found) == [example]


def test_parameters_choose_the_shape_and_the_fields(tmp_path):
    rows = write_rows(tmp_path / "r.jsonl", [{"messages": PAIR, "body": "plain", "chat": PAIR}])
    assert examples(found_in(rows, text_field="body")) == [{"text": "plain"}]
    assert examples(found_in(rows, messages_field="chat")) == [{"messages": PAIR}]
    assert "messages, as the parameter data_shape says" in found_in(rows, data_shape="messages").shape_reason
    with pytest.raises(DataError) as caught:
        found_in(rows, data_shape="alpaca")
    assert caught.value.counts == {"mixed_shapes": 1}
    with pytest.raises(DataError, match="no known shape"):
        found_in(rows, messages_field="")


def test_reference_examples_train_and_test(tmp_path):
    """The two files of two rows in the reference text, with its parameters."""
    rows = [
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there!"}]},
        {"messages": [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]},
    ]
    texts = [{"text": "User: Hello\nAssistant: Hi there!"}, {"text": "User: What is 2+2?\nAssistant: 4"}]
    for name, content, values in (("m", rows, {}), ("t", texts, {"text_field": "text", "messages_field": ""})):
        config = resolve({"preset": "smoke", "data_files": str(write_rows(tmp_path / f"{name}.jsonl", content)), **values}, env={})
        splits = data.split(data.validate(data.load(config), config), config)
        tokenizer = data.load_tokenizer(config)
        encoded = data.encode(splits, tokenizer, config)
        assert {part: len(values) for part, values in encoded.lengths.items()} == {"train": 1, "valid": 0, "test": 1}
        assert any("valid is empty" in note for note in encoded.notes)


def test_plain_text_trains_everything_with_one_eos_and_says_so(tmp_path):
    texts = ["a b", "a b<|im_end|>", "a b<|im_end|>\n", "c <|im_end|><|im_end|>", "d"]
    config = resolve(
        {"preset": "smoke", "data_files": str(write_rows(tmp_path / "r.jsonl", [{"text": text} for text in texts])), "text_field": "text"},
        env={},
    )
    found = data.validate(data.load(config), config)
    splits, tokenizer = data.split(found, config), data.load_tokenizer(config)
    encoded = data.encode(splits, tokenizer, config)
    for name in ("train", "test"):
        for example, row in zip(splits[name], encoded.splits[name], strict=True):
            assert row["labels"] == row["input_ids"]
            assert row["input_ids"].count(tokenizer.eos_token_id) == 1
            assert tokenizer.decode(row["input_ids"]) == example.text.strip().replace("<|im_end|>", "") + "<|im_end|>"
    assert (encoded.loss_on, encoded.masking) == ("all", "all tokens")
    assert any("every token is trained" in note for note in encoded.notes)
    asked = resolve({"data_files": str(tmp_path / "r.jsonl"), "text_field": "text", "loss_on": "assistant"}, env={})
    with pytest.raises(InputError, match="plain text without turns"):
        data.encode(splits, tokenizer, asked)


def test_a_tokenizer_that_writes_the_eos_itself_writes_it_once(tmp_path):
    from tokenizer_kinds import tokenizer_of
    from tokenizers import processors

    tokenizer = tokenizer_of("llama2")
    ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    tokenizer.save_pretrained(tmp_path / "model")
    rows = write_rows(tmp_path / "r.jsonl", [{"text": f"{'<s>' * (i % 2)}text {i}"} for i in range(6)])
    config = resolve({"model_id": str(tmp_path / "model"), "data_files": str(rows)}, env={})
    splits = data.split(data.validate(data.load(config), config), config)
    for row in data.encode(splits, data.load_tokenizer(config), config).splits["train"]:
        assert (row["input_ids"][0], row["input_ids"][-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert row["input_ids"].count(tokenizer.eos_token_id) == row["input_ids"].count(tokenizer.bos_token_id) == 1


HUB = """
import sys
from mac_lora_helpers import data
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
config = resolve(dict(item.split("=", 1) for item in sys.argv[1:]), env={})
try:
    found = data.validate(data.load(config), config)
    print(len(found.rows), found.rows[0].where, found.source.name)
except InputError as error:
    print(type(error).__name__, error)
"""


def hub(environment: dict[str, str], **values: str) -> str:
    """What loading a Hub data set prints, in a process with that environment and an empty cache."""
    done = subprocess.run(
        [sys.executable, "-c", HUB, *(f"{key}={value}" for key, value in values.items())],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


#: The client tries a dead address again for half a minute.
DEAD = pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, DEAD])
def test_hub_that_cannot_be_reached(environment, tmp_path):
    told = hub({**environment, "HF_HOME": str(tmp_path)}, preset="local")
    assert "InputError HuggingFaceH4/ultrachat_200k is not on this machine and the Hub cannot be reached" in told
    assert "data_files" in told


class Refusal(BaseHTTPRequestHandler):
    """What the Hub answers for a gated and for a missing data set."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.send_response(403 if gated else 401)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("name", "reason"), [("me/gated", "is gated"), ("me/nothing", "has no data set me/nothing")])
def test_gated_and_missing_data_sets(name, reason, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = hub({"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}, preset="local", dataset_id=name)
        server.shutdown()
    assert f"InputError {name}" in told or "InputError the Hub" in told
    assert reason in told
    assert "hf auth login" in told


def test_data_set_folder_with_split_slices(tmp_path):
    """``load_dataset`` takes a folder for a data set; slices and unknown splits work as on the Hub."""
    write_rows(tmp_path / "train.jsonl", ROWS)
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    told = hub(environment, dataset_id=str(tmp_path), dataset_split="train[:25%]")
    assert told.startswith("10 ")
    assert "train[:25%]]: row 1" in told
    told = hub(environment, dataset_id=str(tmp_path), dataset_split="train_sft[:5]")
    assert "no such split" in told
    assert "dataset_split=train_sft[:5]" in told
