"""Damaged data: each input ends in the right error, told by kind and row, with no traceback and nothing written."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import random
from pathlib import Path

import pytest

from mac_lora_helpers import data
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.data.problems import DataError
from mac_lora_helpers.errors import InputError

USER, ASSISTANT = {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}
GOOD = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there!"}]}
OTHER = {"messages": [USER, ASSISTANT]}
CALL = {"function": {"name": "f", "arguments": {"x": 1}}}


def line(row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


def jsonl(*rows: object) -> bytes:
    """Two good rows around the given ones, which start at line 2; bytes stand for themselves."""
    middle = b"".join(row if isinstance(row, bytes) else line(row) for row in rows)
    return line(GOOD) + middle + line(OTHER)


def turns(*messages: object) -> bytes:
    return jsonl({"messages": list(messages)})


def user(content: object) -> dict:
    return {"role": "user", "content": content}


def answer(**fields: object) -> dict:
    return {"role": "assistant", **fields}


def escaped(question: str, reply: str) -> bytes:
    """A row whose escapes Python's own writer would not make."""
    text = '{"messages":[{"role":"user","content":"%s"},{"role":"assistant","content":"%s"}]}'
    return (text % (question, reply)).encode() + b"\n"


def shared(speaker: str) -> bytes:
    return line({"conversations": [{"from": speaker, "value": "a"}, {"from": "gpt", "value": "b"}]})


def alpaca(**fields: object) -> bytes:
    return line({"instruction": "a", "input": "", "output": "b"}) + line({"instruction": "c", **fields})


def parquet_bytes(rows: list[dict]) -> bytes:
    import io

    import pyarrow as pa
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


PARQUET = parquet_bytes([GOOD, OTHER])
TEXTS = parquet_bytes([{"text": "one"}, {"text": None}, {"text": "three"}])
GZIP = gzip.compress(jsonl(OTHER) * 50)

#: name → (file name, bytes, [(kind, what the place ends with)])
DAMAGED: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    # bytes and encodings
    "latin-1 bytes": ("d.jsonl", jsonl('{"messages": "café"}\n'.encode("latin-1")), [("encoding", ":2")]),
    "cut utf-8 character": ("d.jsonl", jsonl(b'{"messages": "\xe4\xbd"}\n'), [("encoding", ":2")]),
    "binary rubbish": ("d.jsonl", jsonl(bytes(range(128, 255)) + b"\n"), [("encoding", ":2")]),
    "byte order mark inside": ("d.jsonl", jsonl(codecs.BOM_UTF8 + line(GOOD)), [("bom_inside", ":2")]),
    "NUL bytes between rows": ("d.jsonl", jsonl(b"\0\0\0\n"), [("not_json", ":2")]),
    "NUL in the text": ("d.jsonl", turns(user("a\0b"), ASSISTANT), [("control_character", ":2")]),
    "lone high surrogate": ("d.jsonl", jsonl(escaped(r"\ud83d", "x")), [("lone_surrogate", ":2")]),
    "lone low surrogate": ("d.jsonl", jsonl(escaped("a", r"\udc00")), [("lone_surrogate", ":2")]),
    "surrogate in a text row": ("d.jsonl", line({"text": "ok"}) + rb'{"text": "bad \udfff"}' + b"\n", [("lone_surrogate", ":2")]),
    "latin-1 json array": ("d.json", b'[{"text": "ok"},{"text": "' + b"x" * 70000 + b'\xe9"}]', [("encoding", ": item 2")]),
    # JSON
    "broken JSON": ("d.jsonl", jsonl(b'{"messages": [}\n'), [("not_json", ":2")]),
    "cut last row": ("d.jsonl", jsonl() + line(GOOD)[:30], [("not_json", ":3")]),
    "single quotes": ("d.jsonl", jsonl(b"{'messages': [}\n"), [("not_json", ":2")]),
    "trailing comma": ("d.jsonl", jsonl(b'{"messages": [],}\n'), [("not_json", ":2")]),
    "two objects on a line": ("d.jsonl", jsonl(line(GOOD).strip() + line(GOOD)), [("not_json", ":2")]),
    "raw line break in a string": ("d.jsonl", jsonl(b'{"text": "a\nb"}\n'), [("not_json", ":2"), ("not_json", ":3")]),
    "nested too deeply": ("d.jsonl", jsonl(b"[" * 100_000 + b"\n"), [("not_json", ":2")]),
    "a number of 5,000 digits": ("d.jsonl", jsonl(b'{"messages": ' + b"9" * 5000 + b"}\n"), [("not_json", ":2")]),
    "a page of HTML": ("d.jsonl", b"<!DOCTYPE html>\n<html></html>\n", [("not_json", ":1"), ("not_json", ":2")]),
    "an array for a row": ("d.jsonl", jsonl(["a", "b"]), [("not_an_object", ":2")]),
    "a string for a row": ("d.jsonl", jsonl("hello"), [("not_an_object", ":2")]),
    "null for a row": ("d.jsonl", jsonl(None), [("not_an_object", ":2")]),
    "a row of 50 MB": ("d.jsonl", jsonl({"text": "x" * 50_000_000}), [("huge_row", ":2")]),
    "array without its end": ("d.json", json.dumps([GOOD, OTHER]).encode()[:-1], [("not_json", ": item 3")]),
    "array with a broken item": ("d.json", b'[{"text": "a"}, {"text" "b"}]', [("not_json", ": item 2")]),
    "array with text behind it": ("d.json", json.dumps([GOOD, OTHER]).encode() + b" x", [("not_json", ": item 3")]),
    "array of strings": ("d.json", b'["a", {"text": "b"}]', [("not_an_object", ": item 1")]),
    "array without commas": ("d.json", b'[{"text": "a"} {"text": "b"}]', [("not_json", ": item 2")]),
    "array item of 20 MB": ("d.json", b'[{"text": "a"}, {"text": "' + b"x" * 20_000_000 + b'"}]', [("huge_row", ": item 2")]),
    # nothing there
    "empty file": ("d.jsonl", b"", [("empty_file", "d.jsonl")]),
    "blank lines only": ("d.jsonl", b"\n\n  \n", [("no_rows", "d.jsonl")]),
    "empty array": ("d.json", b"[]", [("no_rows", "d.json")]),
    "header only": ("d.csv", b"text\n", [("no_rows", "d.csv")]),
    "one row": ("d.jsonl", line(GOOD), [("no_rows", "d.jsonl")]),
    "the same row twice": ("d.jsonl", line(GOOD) * 2, [("no_rows", "d.jsonl")]),
    "unknown kind of file": ("d.pdf", b"%PDF-1.7 rubbish", [("unknown_format", "d.pdf")]),
    # archives and tables
    "gzip cut off": ("d.jsonl.gz", GZIP[: len(GZIP) // 2], [("damaged_archive", "")]),
    "gzip with a flipped byte": ("d.jsonl.gz", GZIP[:-6] + bytes([GZIP[-6] ^ 255]) + GZIP[-5:], [("damaged_archive", "")]),
    "gzip header only": ("d.jsonl.gz", GZIP[:5], [("damaged_archive", "")]),
    "parquet cut off": ("d.parquet", PARQUET[: len(PARQUET) // 2], [("damaged_parquet", ": row 1")]),
    "parquet that is none": ("d.parquet", b"PAR1 not really", [("damaged_parquet", ": row 1")]),
    "parquet with flipped bytes": ("d.parquet", PARQUET[:40] + b"\xff" * 40 + PARQUET[80:], [("damaged_parquet", ": row 1")]),
    "parquet with a null": ("d.parquet", TEXTS, [("missing_field", ": row 2")]),
    "csv with a field too many": ("d.csv", b"prompt,completion\na,b\nc,d,e\nf,g\n", [("csv_columns", ":3")]),
    "csv with a field too few": ("d.csv", b"prompt,completion\na,b\nc\nf,g\n", [("csv_columns", ":3")]),
    "csv with an open quote": ("d.csv", b'prompt,completion\na,b\n"c,d\n', [("damaged_csv", ":3")]),
    "csv with a repeated name": ("d.csv", b"text,text\na,b\n", [("csv_header", ":1")]),
    "csv with an empty answer": ("d.csv", b"prompt,completion\na,b\nc,\n", [("empty_content", ":3")]),
    # shapes
    "no known field": ("d.jsonl", line({"foo": 1}) * 2, [("unknown_shape", ":1")]),
    "mixed shapes": ("d.jsonl", jsonl({"text": "plain"}), [("mixed_shapes", ":2")]),
    "preference data": ("d.jsonl", line({"chosen": "a", "rejected": "b"}), [("preference", ":1")]),
    "null messages": ("d.jsonl", jsonl({"messages": None}), [("missing_field", ":2")]),
    "messages in a string": ("d.jsonl", jsonl({"messages": "Hello"}), [("not_a_list", ":2")]),
    "messages in an object": ("d.jsonl", jsonl({"messages": USER}), [("not_a_list", ":2")]),
    "no messages": ("d.jsonl", jsonl({"messages": []}), [("empty_messages", ":2")]),
    "a number for text": ("d.jsonl", line({"text": "a"}) + line({"text": 7}), [("non_string_content", ":2")]),
    "empty text": ("d.jsonl", line({"text": "a"}) + line({"text": "  "}), [("empty_content", ":2")]),
    "alpaca without output": ("d.jsonl", alpaca(), [("mixed_shapes", ":2")]),
    "alpaca with a list as input": ("d.jsonl", alpaca(input=[1], output="d"), [("non_string_content", ":2")]),
    "prompt without completion": (
        "d.jsonl", line({"prompt": "a", "completion": "b"}) + line({"prompt": "c", "completion": None}), [("missing_field", ":2")],
    ),
    "unknown speaker": ("d.jsonl", shared("human") + shared("alien"), [("unknown_role", ":2")]),
    # messages
    "a string for a message": ("d.jsonl", turns("Hello", ASSISTANT), [("not_a_message", ":2")]),
    "unknown role": ("d.jsonl", turns({"role": "alien", "content": "a"}, ASSISTANT), [("unknown_role", ":2")]),
    "a number for a role": ("d.jsonl", turns({"role": 3, "content": "a"}, ASSISTANT), [("unknown_role", ":2")]),
    "no role": ("d.jsonl", turns({"content": "a"}, ASSISTANT), [("missing_role", ":2")]),
    "no content": ("d.jsonl", turns({"role": "user"}, ASSISTANT), [("missing_content", ":2")]),
    "null content": ("d.jsonl", turns(USER, answer(content=None)), [("missing_content", ":2")]),
    "empty content": ("d.jsonl", turns(USER, answer(content="")), [("empty_content", ":2")]),
    "white content": ("d.jsonl", turns(user(" \n"), ASSISTANT), [("empty_content", ":2")]),
    "a number for content": ("d.jsonl", turns(USER, answer(content=4)), [("non_string_content", ":2")]),
    "an image for content": ("d.jsonl", turns(user([{"type": "image_url"}]), ASSISTANT), [("not_text", ":2")]),
    "no assistant": ("d.jsonl", turns(USER), [("no_assistant", ":2")]),
    "assistant first": ("d.jsonl", turns(ASSISTANT, USER), [("assistant_first", ":2")]),
    "two assistant turns": ("d.jsonl", turns(USER, ASSISTANT, ASSISTANT), [("same_role_twice", ":2")]),
    "tool answer without a call": ("d.jsonl", turns(USER, {"role": "tool", "content": "x"}, ASSISTANT), [("tool_without_call", ":2")]),
    "tool call without a name": ("d.jsonl", turns(USER, answer(tool_calls=[{"function": {}}])), [("bad_tool_call", ":2")]),
    "tool arguments that are no object": (
        "d.jsonl", turns(USER, answer(tool_calls=[{"name": "f", "arguments": "x"}])), [("bad_tool_call", ":2")],
    ),
    "tools that are no list": ("d.jsonl", jsonl({**OTHER, "tools": {"name": "f"}}), [("bad_tools", ":2")]),
    "several at once": (
        "d.jsonl", jsonl({"messages": []}, b"{\n", {"messages": [USER]}),
        [("empty_messages", ":2"), ("not_json", ":3"), ("no_assistant", ":4")],
    ),
}  # fmt: skip


def run_stage(files: str, folder: Path, **values: object) -> RunDir:
    """Notebook 02's steps, from the files to the manifest."""
    config = resolve({"preset": "smoke", "data_files": files, **values}, env={})
    run = RunDir(folder / "run")
    source = data.load(config)
    found = data.validate(source, config)
    splits = data.split(found, config)
    encoded = data.encode(splits, data.load_tokenizer(config), config)
    data.save(run, source, found, splits, encoded, config)
    return run


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_input_is_told_by_kind_and_row(name, tmp_path):
    file, content, expected = DAMAGED[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        run_stage(str(path), tmp_path)
    error = caught.value
    told = [(problem.kind, problem.where) for problem in error.problems]
    assert [kind for kind, _ in told] == [kind for kind, _ in expected]
    for (_, where), (_, ending) in zip(told, expected, strict=True):
        assert where.endswith(ending), where
        assert file in where
    assert error.counts == {kind: [k for k, _ in expected].count(kind) for kind, _ in expected}
    assert error.fix
    assert "Traceback" not in str(error)
    assert len(str(error)) < 4000
    str(error).encode()
    assert not list((tmp_path / "run").rglob("*")), "bad data wrote something"


def test_there_are_enough_distinct_inputs():
    assert len({(file, content) for file, content, _ in DAMAGED.values()}) >= 60


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ("nowhere.jsonl", "missing_file"),
        ("*.nothing", "missing_file"),
        ("", "empty_folder"),
        ("https://127.0.0.1:9/d.jsonl", "unreachable"),
    ],
)
def test_files_that_are_not_there(files, kind, tmp_path):
    with pytest.raises(DataError) as caught:
        run_stage(files if "://" in files else str(tmp_path / files), tmp_path)
    assert list(caught.value.counts) == [kind]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(jsonl())
    path.chmod(0)
    with pytest.raises(DataError) as caught:
        run_stage(str(path), tmp_path)
    assert list(caught.value.counts) == ["unreadable"]


def test_every_bad_file_is_told_at_once(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "x.bin").write_bytes(b"\x01\x02")
    with pytest.raises(DataError) as caught:
        run_stage(f"{tmp_path}/empty.jsonl, {tmp_path}/none.csv, {tmp_path}/x.bin", tmp_path)
    assert set(caught.value.counts) == {"empty_file", "missing_file", "unknown_format"}


def test_skip_keeps_the_rejected_rows_with_their_reasons(tmp_path):
    bad = [
        row
        for _, (file, content, kinds) in DAMAGED.items()
        if file == "d.jsonl" and kinds[0][1] == ":2"
        for row in content.split(b"\n")[1:2]
    ]
    good = b"".join(line({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}) for i in range(20))
    (tmp_path / "d.jsonl").write_bytes(good + b"\n".join(row for row in bad if len(row) < 10_000) + b"\n")
    run = run_stage(str(tmp_path / "d.jsonl"), tmp_path, on_bad_rows="skip")
    manifest, rejected = run.read_json("manifest"), run.read_lines("rejected")
    assert manifest["rows"]["accepted"] + manifest["rows"]["rejected"] == manifest["rows"]["read"]
    assert len(rejected) == manifest["rows"]["rejected"] > 25
    for row in rejected:
        assert row["problems"][0]["kind"]
        assert int(row["where"].rsplit(":", 1)[1]) > 20


@pytest.mark.parametrize("file", ["d.jsonl", "d.json", "d.csv", "d.jsonl.gz", "d.parquet"])
def test_random_damage_never_ends_in_a_traceback(file, tmp_path):
    """Bytes changed, left out and repeated at random places: good data, or an error with a place."""
    rng = random.Random(file)
    table = b"prompt,completion\n" + b"".join(b'"question, %d",answer\n' % i for i in range(30))
    whole = {
        "d.jsonl": jsonl(OTHER) * 20,
        "d.json": json.dumps([GOOD, OTHER] * 20).encode(),
        "d.csv": table,
        "d.jsonl.gz": GZIP,
        "d.parquet": PARQUET,
    }
    outcomes, incomplete = set(), []
    for _ in range(150):
        damaged = bytearray(whole[file])
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.choice((0, 1, 1, 9))] = rng.choice((b"", rng.randbytes(1), rng.randbytes(5), damaged[:40]))
        (tmp_path / file).write_bytes(damaged)
        config = resolve({"data_files": str(tmp_path / file)}, env={})
        try:
            outcomes.add(len(data.split(data.validate(data.load(config), config), config)))
        except DataError as error:
            outcomes.update(error.counts)
            incomplete += [error] if not (error.where and error.fix) else []
    assert len(outcomes) > 1
    assert not incomplete


def test_harmless_damage_is_only_noted(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"line one\r\nline {i}"}, ASSISTANT, USER]} for i in range(3)]
    (tmp_path / "d.jsonl").write_bytes(codecs.BOM_UTF8 + b"\r\n".join(line(row).strip() for row in rows) + b"\r\n\r\n")
    config = resolve({"data_files": str(tmp_path / "d.jsonl")}, env={})
    found = data.validate(data.load(config), config)
    assert (len(found.rows), found.rejected) == (3, 0)
    assert found.counts == {"bom": 1, "crlf_in_text": 3, "unanswered_turn": 3}
    assert all(problem.level == "note" for problem in found.problems)
    assert found.rows[0].messages[-1]["role"] == "assistant"


def test_rows_that_the_template_refuses(tmp_path):
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}, ASSISTANT]} for i in range(20)]
    rows.insert(5, {"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT]})
    (tmp_path / "d.jsonl").write_bytes(b"".join(map(line, rows)))
    with pytest.raises(DataError, match="System role not supported") as caught:
        run_stage(str(tmp_path / "d.jsonl"), tmp_path, model_id=str(tmp_path / "model"))
    assert [(p.kind, p.where.endswith(":6")) for p in caught.value.problems] == [("template_refuses", True)]
    assert not list((tmp_path / "run").rglob("*"))
    run = run_stage(str(tmp_path / "d.jsonl"), tmp_path, model_id=str(tmp_path / "model"), on_bad_rows="skip")
    assert run.read_json("manifest")["rows"] == {"read": 21, "accepted": 20, "rejected": 1}


def test_a_model_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "d.jsonl").write_bytes(jsonl())
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        run_stage(str(tmp_path / "d.jsonl"), tmp_path, model_id=str(tmp_path / "model"))
    (tmp_path / "model" / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(InputError, match="damaged"):
        run_stage(str(tmp_path / "d.jsonl"), tmp_path, model_id=str(tmp_path / "model"))
