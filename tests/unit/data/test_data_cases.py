"""Small files as people have them, each with its right result: read and said, or refused with a sentence that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversations import make, runs, write_rows
from tokenizer_kinds import REWRITES, stock_tokenizer, write_kind

from mac_lora_helpers import data
from mac_lora_helpers.config import resolve
from mac_lora_helpers.data.problems import DataError
from mac_lora_helpers.errors import InputError

CASES = Path(__file__).parents[2] / "cases"


def pair(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


SUM, PLAIN, SAY = pair("What is 0 plus 1?", "1"), pair("q0", "a0"), pair("Say word 0", "WORD 0")
CAPITALS = [{"role": "system", "content": "Always answer in capitals."}, *SAY]
THOUGHT = [SUM[0], {**SUM[1], "reasoning_content": "I count one up from 0."}]
#: file → (its first row's messages or text; what is said about the file, by kind)
READ = {
    "array_in.jsonl": (PLAIN, {}),
    "bom.jsonl": (PLAIN, {"bom": "byte order mark"}),
    "cols_Prompt_Completion.jsonl": (SUM, {}),
    "cols_input_output.jsonl": (SUM, {}),
    "cols_instruction_response.jsonl": (SUM, {}),
    "cols_query_response.jsonl": (SUM, {}),
    "cols_question_answer.jsonl": (SUM, {}),
    "columns.json": (PLAIN, {"assumed": "the file holds columns"}),
    "developer.jsonl": ([{**CAPITALS[0], "role": "developer"}, *SAY], {}),
    "dolly.jsonl": (pair("Shorten text 0\n\nLong text 0", "Short 0"), {"ignored_fields": "category (6)"}),
    "eos_in_answer.jsonl": (pair("Say word 0", "WORD 0<|im_end|>"), {}),
    "folder": (pair("test q0", "a0"), {}),
    "greeting_first.jsonl": ([{"role": "assistant", "content": "Hello, how can I help?", "weight": 0}, *SAY], {"greeting": "before any"}),
    "index_col.csv": (PLAIN, {"assumed": "an index, left out"}),
    "kto.jsonl": (pair("Say 0", "X0"), {"marked_bad": "label: false"}),
    "latin1.csv": (pair("Größe 0?", "0 Meter"), {"assumed": "cp1252"}),
    "long_rows.jsonl": (None, {}),
    "mac_cr.csv": (SUM, {"assumed": "carriage return"}),
    "mixed_text.jsonl": (PLAIN, {}),
    "multiline.csv": (pair("Line one 0\nline two", "Answer 0\nmore"), {}),
    "nested_data.json": (PLAIN, {"assumed": "under 'data'"}),
    "nested_data_pretty.json": (PLAIN, {"assumed": "under 'data'"}),
    "numbers.jsonl": (SUM, {"numbers_as_text": "the number 1"}),
    "pandas_index.json": (PLAIN, {"assumed": "columns"}),
    "parts.jsonl": (SAY, {"content_parts": "joined"}),
    "quote_start.tsv": (pair('"Hi" in French 0?', '"salut" 0'), {"assumed": "no field is quoted"}),
    "raw_chatml_text.jsonl": ("<|im_start|>user\nSay word 0<|im_end|>\n<|im_start|>assistant\nWORD 0<|im_end|>\n", {}),
    "reasoning_content.jsonl": (THOUGHT, {}),
    "repr_messages.csv": (PLAIN, {}),
    "row_system.jsonl": (CAPITALS, {}),
    "rows.arrow": (PLAIN, {}),
    "rows.jsonl.bz2": (PLAIN, {}),
    "rows.jsonl.gz": (PLAIN, {}),
    "rows.jsonl.xz": (PLAIN, {}),
    "rows.jsonl.zst": (PLAIN, {}),
    "rows.zip": (PLAIN, {}),
    "saved_dict": (pair("train q0", "a0"), {}),
    "saved_single": (pair("train q0", "a0"), {}),
    "semicolon.csv": (pair("What is 0, plus 1?", "1"), {"assumed": "';'"}),
    "sep_line.csv": (SUM, {"assumed": "';'"}),
    "single_quotes.jsonl": (PLAIN, {"assumed": "as Python prints them"}),
    "system_mid.jsonl": (None, {"system_later": "system turn in the middle"}),
    "tabs.tsv": (PLAIN, {}),
    "tabs_quote.tsv": (pair('Say "hi" 0', 'He said "hi" to 0'), {}),
    "text_label.jsonl": ("Fine film number 0", {"ignored_fields": "label (6)"}),
    "think_in_content.jsonl": (pair(SUM[0]["content"], "<think>\nI count one up from 0.\n</think>\n\n1"), {}),
    "thinking.jsonl": (THOUGHT, {}),
    "toolcall_full.jsonl": (None, {}),
    "toolcall_last.jsonl": (None, {}),
    "tools_two.jsonl": (None, {}),
    "tools_two.parquet": (None, {}),
    "function_call_old.jsonl": (None, {}),
    "sharegpt_tools.jsonl": (None, {}),
    "trailing_comma.csv": (PLAIN, {"assumed": "last column is empty"}),
    "two_users.jsonl": ([{"role": "user", "content": "Hi."}, *SAY], {"two_user_turns": "in a row"}),
    "utf16.csv": (pair("Größe 0?", "0 Meter"), {"assumed": "UTF-16"}),
    "weight.jsonl": (None, {}),
}
#: file → (kind, what the message says to do)
REFUSED = {
    "alpaca_history_bad.jsonl": ("bad_history", "[question, answer] pairs"),
    "alpaca_list_output.jsonl": ("non_string_content", "make the content one text"),
    "orpo.jsonl": ("preference", "use_answer=chosen"),
    "parts_image.jsonl": ("not_text", "only text is trained"),
    "pref.jsonl": ("preference", "use_answer=chosen"),
    "rows.xlsx": ("spreadsheet", "save the sheet as CSV"),
}


def found_in(path, **values):
    config = resolve({"data_files": str(path), **values}, env={})
    return data.validate(data.load(config), config)


def test_every_case_has_its_right_result():
    assert {path.name for path in CASES.iterdir()} == {*READ, *REFUSED}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_and_what_was_assumed_is_said(name):
    row, said = READ[name]
    found = found_in(CASES / name)
    assert len(found.rows) >= 3
    assert row is None or row in (found.rows[0].messages, found.rows[0].text)
    assert set(found.counts) == set(said)
    for kind, words in said.items():
        assert words in next(problem.what for problem in found.problems if problem.kind == kind)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_with_a_way_out(name):
    kind, fix = REFUSED[name]
    with pytest.raises(DataError) as caught:
        found_in(CASES / name)
    assert list(caught.value.counts) == [kind]
    assert fix in caught.value.fix


def test_what_was_recognized_is_said():
    assert found_in(CASES / "cols_question_answer.jsonl").recognized == {"question → answer": 6}
    assert found_in(CASES / "dolly.jsonl").recognized == {"instruction + context → response": 6}
    assert found_in(CASES / "mixed_text.jsonl").recognized == {"prompt → completion": 3, "messages": 3}


def test_own_splits_are_kept_and_said():
    config = resolve({"data_files": str(CASES / "folder"), "preset": "smoke"}, env={})
    splits = data.split(data.validate(data.load(config), config), config)
    for name, rows in splits.items():
        assert {example.messages[0]["content"].split()[0] for example in rows} == {name}
    assert any("own splits" in note for note in splits.notes)
    saved = resolve({"data_files": str(CASES / "saved_dict")}, env={})
    splits = data.split(data.validate(data.load(saved), saved), saved)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6, "valid": 0, "test": 6}


def test_preference_rows_train_the_chosen_answer():
    assert found_in(CASES / "pref.jsonl", use_answer="chosen").rows[0].messages == SAY
    assert found_in(CASES / "orpo.jsonl", use_answer="chosen").rows[0].messages == pair("Say 0", "X0")


def test_rows_marked_bad_are_left_out_and_counted():
    found = found_in(CASES / "kto.jsonl")
    assert [example.messages[1]["content"] for example in found.rows] == ["X0", "X2", "X4"]
    assert (found.read, found.rejected, found.counts["marked_bad"]) == (6, 3, 3)


@pytest.mark.parametrize(("spec", "first", "count"), [("train[2:4]", "q2", 2), ("train[:50%]", "q0", 3), ("train[-1:]", "q5", 1)])
def test_slices_work_on_files(spec, first, count):
    found = found_in(CASES / "tabs.tsv", dataset_split=spec)
    assert (found.rows[0].messages[0]["content"], len(found.rows)) == (first, count)
    with pytest.raises(DataError, match="no such split"):
        found_in(CASES / "tabs.tsv", dataset_split="nowhere[:3]")


def test_columns_map_any_names(tmp_path):
    rows = [{"frage": f"q{i}", "antwort": "a", "rolle": "Be brief."} for i in range(3)]
    path = write_rows(tmp_path / "r.jsonl", rows)
    with pytest.raises(DataError, match="no known shape") as caught:
        found_in(path)
    assert "columns=" in caught.value.fix
    found = found_in(path, columns="prompt=frage, completion=antwort, system=rolle")
    assert found.rows[0].messages == [{"role": "system", "content": "Be brief."}, *pair("q0", "a")]
    assert found_in(path, columns="prompt: frage, completion: antwort").ignored == {"rolle": 3}
    with pytest.raises(DataError, match="no column nix"):
        found_in(path, columns="prompt=nix, completion=antwort")
    with pytest.raises(DataError, match="not a pair of names"):
        found_in(path, columns="prompt")


# What is trained


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return stock_tokenizer(tmp_path_factory.mktemp("qwen"), "qwen2_5")


def trained(made) -> list[str]:
    tokenizer, rows = made[4], made[-1].splits["train"]
    return [tokenizer.decode(row["labels"][a:b]) for row in rows for a, b in runs(row["labels"])]


def test_answers_marked_as_wrong_are_not_trained(qwen):
    for loss_on in ("assistant", "completion", "all"):
        texts = "".join(trained(make(qwen, CASES / "weight.jsonl", loss_on=loss_on)))
        assert "fruit 0<|im_end|>" in texts
        assert "WRONG" not in texts


def test_a_mark_is_never_passed_over_where_history_is_rewritten(tmp_path):
    rows = [{"messages": [*pair(f"q{i}", "right"), *pair("again", "WRONG")]} for i in range(3)]
    for row in rows:
        row["messages"][3]["weight"] = 0
    model, path = write_kind(tmp_path / "m", "qwen2", REWRITES), write_rows(tmp_path / "r.jsonl", rows)
    assert "WRONG" not in "".join(trained(make(model, path)))
    assert "WRONG" not in "".join(trained(make(model, path, loss_on="completion")))
    rows = [{"messages": [*row["messages"][2:], *pair(f"more {i}", "right")]} for i, row in enumerate(rows)]
    with pytest.raises(DataError, match="nothing_trained"):
        make(model, write_rows(tmp_path / "s.jsonl", rows), loss_on="all")


@pytest.mark.parametrize("mark", ["weight", "train", "loss", "trainable", "loss_weight", "loss_mask"])
def test_marks_of_every_name_are_honoured(mark, qwen, tmp_path):
    rows = [{"messages": [*pair(f"q{i}", "WRONG"), *pair("again", f"right {i}")]} for i in range(4)]
    for row in rows:
        row["messages"][1][mark] = False
    assert "WRONG" not in "".join(trained(make(qwen, write_rows(tmp_path / "r.jsonl", rows))))
    rows[0]["messages"][1][mark] = 0.5
    with pytest.raises(DataError) as caught:
        found_in(write_rows(tmp_path / "r.jsonl", rows))
    assert caught.value.counts == {"bad_weight": 1}
    rows[0]["messages"] = [{**message, mark: 0} for message in pair("q", "a")]
    with pytest.raises(DataError) as caught:
        found_in(write_rows(tmp_path / "r.jsonl", rows))
    assert caught.value.counts == {"nothing_trained": 1}


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "phi3", "cohere2"])
def test_a_turn_that_the_template_leaves_out_is_refused_by_row(template, tmp_path):
    with pytest.raises(DataError) as caught:
        make(stock_tokenizer(tmp_path / "model", template), CASES / "developer.jsonl")
    assert set(caught.value.counts) <= {"turn_lost", "template_refuses"}
    assert "developer.jsonl:1" in caught.value.where


def test_lost_reasoning_is_counted_and_kept_where_the_template_has_a_place(qwen, tmp_path):
    for name in ("reasoning_content.jsonl", "thinking.jsonl"):
        assert make(qwen, CASES / name)[-1].lost == {"reasoning": 6}
        made = make(stock_tokenizer(tmp_path / name, "qwen3"), CASES / name)
        assert made[-1].lost == {}
        assert "I count one up from" in trained(made)[0]


def test_calls_are_trained_or_refused(qwen, tmp_path):
    for name in ("toolcall_full.jsonl", "toolcall_last.jsonl", "function_call_old.jsonl", "sharegpt_tools.jsonl"):
        made = make(qwen, CASES / name)
        assert made[-1].lost == {}
        assert any('{"name": "weather", "arguments": {"city": ' in text for text in trained(made))
        with pytest.raises(DataError) as caught:
            make(write_kind(tmp_path / name, "qwen2"), CASES / name)
        assert list(caught.value.counts) == ["answer_lost"]


def test_system_and_tools_stand_beside_any_shape(tmp_path):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    beside = {"system": "Be brief.", "tools": [tool]}
    turns = {"prompt": [PLAIN[0]], "completion": [PLAIN[1]]}
    for shape in ({"messages": PLAIN}, turns, {"instruction": "q0", "output": "a0"}, {"question": "q0", "answer": "a0"}):
        found = found_in(write_rows(tmp_path / "r.jsonl", [{**shape, **beside}]))
        assert found.rows[0].to_dict() == {"messages": [{"role": "system", "content": "Be brief."}, *PLAIN], "tools": [tool]}
        assert found.ignored == {}


def test_fields_that_nothing_uses_are_listed(tmp_path):
    rows = [{"id": i, "messages": [{**PLAIN[0], "mood": "good"}, PLAIN[1]], "score": 3} for i in range(1, 4)]
    assert found_in(write_rows(tmp_path / "r.jsonl", rows)).ignored == {"id": 3, "messages[].mood": 3, "score": 3}


def test_parquet_jsonl_and_a_data_set_give_equal_tokens(qwen, tmp_path, monkeypatch):
    import datasets

    tables = [CASES / "tools_two.jsonl", CASES / "tools_two.parquet"]
    for index, builder in enumerate(("json", "parquet")):
        saved = datasets.load_dataset(builder, data_files=str(tables[index]), split="train", cache_dir=str(tmp_path / "cache"))
        saved.save_to_disk(tmp_path / builder)
        tables.append(tmp_path / builder)
    assert len({make(qwen, path)[-1].fingerprint for path in tables}) == 1


def test_a_null_default_of_a_schema_stays(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    unit = {"type": "string", "default": None}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"unit": unit}}}}]
    rows = [{"messages": PLAIN, "tools": tools}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    for path in (write_rows(tmp_path / "r.jsonl", rows), tmp_path / "r.parquet"):
        assert found_in(path).rows[0].tools == tools


@pytest.mark.parametrize("template", ["llama3_2", "gptoss"])
def test_tokens_are_the_same_on_any_day(template, tmp_path, monkeypatch):
    import datetime

    import transformers.utils.chat_template_utils as clock

    model = stock_tokenizer(tmp_path / "model", template)

    def on(day: int) -> str:
        class Moved(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2031, 1, day)

        monkeypatch.setattr(clock, "datetime", Moved)
        return make(model, CASES / "tabs.tsv")[-1]

    first, second = on(1), on(2)
    assert first.fingerprint == second.fingerprint
    assert first.date == data.template.PINNED_DATE
    other = make(model, CASES / "tabs.tsv", chat_template_kwargs='{"today": "2026-01-31"}')
    assert "2026" in other[4].decode(other[-1].splits["train"][0]["input_ids"])


def test_thinking_is_asked_for_in_rows_and_in_prompts(tmp_path):
    model = stock_tokenizer(tmp_path / "model", "qwen3")
    by_itself, off = make(model, CASES / "tabs.tsv"), make(model, CASES / "tabs.tsv", enable_thinking=False)
    assert trained(by_itself)[0].startswith("<think>\n\n</think>\n\na")
    assert trained(off)[0] == "a0<|im_end|>"
    assert off[4].decode(data.render_prompt(off[4], [PLAIN[0]])).endswith("<think>\n\n</think>\n\n")
    same = make(model, CASES / "tabs.tsv", chat_template_kwargs='{"enable_thinking": false}')
    assert same[-1].fingerprint == off[-1].fingerprint != by_itself[-1].fingerprint
    with pytest.raises(InputError, match="not a JSON object"):
        make(model, CASES / "tabs.tsv", chat_template_kwargs="thinking=off")
    told = make(write_kind(tmp_path / "plain", "qwen2"), CASES / "tabs.tsv", enable_thinking=True)[-1].lints
    assert "enable_thinking" in next(lint.what for lint in told if lint.name == "argument_unused")


@pytest.mark.parametrize("template", ["qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8", "gemma4", "gptoss"])
@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_templates_train_the_answer_behind_what_inference_writes(template, thinking, tmp_path):
    made = make(stock_tokenizer(tmp_path / "model", template), CASES / "tabs.tsv", enable_thinking=thinking)
    tokenizer = made[4]
    for example, row in zip(made[3]["train"], made[-1].splits["train"], strict=True):
        ((start, stop),) = runs(row["labels"])
        assert row["input_ids"][:start] == data.render_prompt(tokenizer, example.messages[:1])
        assert example.messages[1]["content"] in tokenizer.decode(row["input_ids"][start:stop])
    if thinking:
        lost = make(tmp_path / "model", CASES / "reasoning_content.jsonl", enable_thinking=True)[-1].lost
        assert lost == ({"reasoning": 6} if template == "gemma4" else {})  # it writes reasoning only before calls


def test_rows_longer_than_the_models_positions_are_refused(tmp_path):
    model = write_kind(tmp_path / "model", "qwen2")
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2", "max_position_embeddings": 512}))
    with pytest.raises(InputError, match="positions for 512") as caught:
        make(model, CASES / "long_rows.jsonl", max_seq_length=8192)
    assert "max_seq_length=512" in caught.value.fix


def test_lengths_and_epochs_are_proposed_from_the_rows(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "word " * (60 if i % 2 else 3)} for i in range(20)]
    encoded = make(write_kind(tmp_path / "m", "qwen2"), write_rows(tmp_path / "r.jsonl", rows), max_new_tokens=40, max_seq_length=64)[-1]
    told = "\n".join(encoded.proposals)
    assert "10 of 20 answers are longer than max_new_tokens=40" in told
    assert f"max_seq_length={encoded.truncation['longest']} would cut none" in told
    assert "num_train_epochs=10" in told


def test_the_recipe_follows_the_data():
    rows = str(CASES / "tabs.tsv")
    assert resolve({"data_files": rows}, env={}).preset == "local"
    assert resolve({"dataset_id": "me/mine"}, env={}).preset == "local"
    assert resolve({"dataset_id": "embedded"}, env={}).preset == resolve({}, env={}).preset == "smoke"
    assert resolve({"data_files": rows, "preset": "smoke"}, env={}).preset == "smoke"
    assert resolve({"data_files": rows}, env={"PRESET": "smoke"}).preset == "smoke"


def test_templates_that_never_end_or_break_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(data.template, "_SECONDS", 1)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for template, reason in (("{{ 1 / 0 }}", "division"), (loop, "does not come to an end"), ("{{ 'x' * 20000000 }}", "characters")):
        with pytest.raises(InputError, match=reason):
            make(write_kind(tmp_path / "model", "qwen2", template), CASES / "tabs.tsv")


def test_check_data_says_what_notebook_02_says_with_and_without_a_tokenizer(capsys):
    from mac_lora_helpers.suite.cli import main

    assert main(["check-data", str(CASES / "dolly.jsonl"), "-p", "model_id", "embedded"]) == 0
    told = capsys.readouterr().out
    for words in ("instruction + context → response", "category (6)", "lost by the template", "num_train_epochs=10", "[…] = trained"):
        assert words in told
    assert main(["check-data", str(CASES / "dolly.jsonl"), "-p", "model_id", "nobody/nothing"]) == 0
    told = capsys.readouterr().out
    assert "category (6)" in told
    assert "their tokens not counted: no tokenizer for nobody/nothing on this machine" in told
    assert main(["check-data", str(CASES / "weight.jsonl"), "-p", "model_id", "embedded", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recognized"] == {"messages": 6}
