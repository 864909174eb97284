"""The length limit and its ledger, the fingerprint, the saved artefacts, the lints and the view."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
from conversations import conversations, make, runs, write_rows
from tokenizer_kinds import CHATML, INST, tokenizer_of, trl_template, write_kind

from mac_lora_helpers import data
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_kind(tmp_path_factory.mktemp("model"), "qwen2")


def talk(*answers: str) -> dict:
    return {
        "messages": [m for i, a in enumerate(answers) for m in ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": a})]
    }


def tokens_of(made, name: str = "train") -> list[dict]:
    return list(made[-1].splits[name])


def saved(made, folder) -> RunDir:
    config, source, found, splits, _, encoded = made
    run = RunDir(folder)
    data.save(run, source, found, splits, encoded, config)
    return run


# The length limit


def limit_case(model, tmp_path, rows: list[dict], **values):
    """Encodes rows that are all different; the share of damaged rows may be anything."""
    numbered = [{"messages": [{**m, "content": f"{m['content']} {i}"} for m in row["messages"]]} for i, row in enumerate(rows)]
    return make(model, write_rows(tmp_path / "r.jsonl", numbered), max_damaged_share=1, valid_share=0, test_share=0.3, **values)


def test_cut_ends_a_row_after_the_last_whole_answer(model, tmp_path):
    made = limit_case(model, tmp_path, [talk("short", "long " * 200)] * 10, max_seq_length=64)
    ledger, tokenizer = made[-1].truncation, made[4]
    assert (ledger["rows_cut"], ledger["answers_lost"], ledger["answers_cut"], ledger["eos_lost"], ledger["dropped"]) == (10, 10, 0, 0, 0)
    for row in tokens_of(made):
        assert len(row["input_ids"]) <= 64
        assert tokenizer.decode(row["input_ids"]).endswith("<|im_end|>")
        assert row["labels"][-1] == tokenizer.eos_token_id


def test_cut_inside_the_first_answer_is_counted_as_damage(model, tmp_path):
    made = limit_case(model, tmp_path, [talk("long " * 200, "more")] * 10, max_seq_length=64)
    ledger = made[-1].truncation
    assert (ledger["rows_cut"], ledger["answers_lost"], ledger["answers_cut"], ledger["eos_lost"], ledger["dropped"]) == (10, 10, 10, 10, 0)
    assert all(len(row["input_ids"]) == 64 and made[4].eos_token_id not in row["labels"] for row in tokens_of(made))


def test_only_the_end_token_lost_is_told_apart(model, tmp_path):
    rows = [talk("short answer")] * 10
    length = max(len(row["input_ids"]) for row in tokens_of(limit_case(model, tmp_path, rows)))
    ledger = limit_case(model, tmp_path, rows, max_seq_length=length - 2)[-1].truncation  # the line break and the end token
    assert (ledger["rows_cut"], ledger["answers_cut"], ledger["eos_lost"]) == (10, 0, 10)


def test_rows_without_room_for_an_answer_are_dropped(model, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "long " * 200}, {"role": "assistant", "content": "a"}]}] * 5 + [talk("a")] * 15
    made = limit_case(model, tmp_path, rows, max_seq_length=64)
    assert made[-1].truncation["dropped"] == 5
    assert sum(len(made[-1].lengths[name]) for name in made[-1].lengths) == 15
    with pytest.raises(InputError, match="no train row is left") as caught:
        limit_case(model, tmp_path, rows[:5], max_seq_length=64)
    wanted = int(caught.value.fix.split("=")[1].split()[0])
    assert limit_case(model, tmp_path, rows[:5], max_seq_length=wanted)[-1].truncation["dropped"] == 0


def test_drop_and_split(model, tmp_path):
    rows = [talk(*["answer " * 8] * 6)] * 10
    dropped = limit_case(model, tmp_path, rows + [talk("a")] * 10, max_seq_length=64, on_long="drop")
    assert dropped[-1].truncation["dropped"] == 10
    made = limit_case(model, tmp_path, rows, max_seq_length=64, on_long="split")
    tokenizer, trained = made[4], []
    for name in ("train", "test"):
        for row in tokens_of(made, name):
            assert len(row["input_ids"]) <= 64
            assert tokenizer.decode(row["input_ids"]).startswith("<|im_start|>user\n")
            trained += [tokenizer.decode(row["labels"][a:b]) for a, b in runs(row["labels"])]
    wanted = [f"answer answer answer answer answer answer answer answer  {i}<|im_end|>" for i in range(10) for _ in range(6)]
    assert sorted(trained) == sorted(wanted)
    assert made[-1].truncation["rows_split"] == 10


def test_split_repeats_the_system_turn(model, tmp_path):
    rows = [{"messages": [{"role": "system", "content": "be brief"}, *talk(*["answer " * 8] * 4)["messages"]]}] * 10
    made = limit_case(model, tmp_path, rows, max_seq_length=80, on_long="split")
    assert len(tokens_of(made)) > 7
    assert all(made[4].decode(row["input_ids"]).startswith("<|im_start|>system\nbe brief") for row in tokens_of(made))


def test_long_texts_are_read_in_windows_over_the_whole_of_them(model, tmp_path):
    path = write_rows(tmp_path / "r.jsonl", [{"text": f"{i} " + "word " * 60} for i in range(10)])
    whole = make(model, path, valid_share=0)
    for how in ("cut", "split"):
        made = make(model, path, max_seq_length=32, on_long=how, valid_share=0)
        joined = [[token for row in tokens_of(made) for token in row["input_ids"]] for made in (made, whole)]
        assert joined[0] == joined[1]
        assert made[-1].truncation["rows_split"] == 10
        assert max(len(row["input_ids"]) for row in tokens_of(made)) == 32
    with pytest.raises(InputError, match="no train row is left"):
        make(model, path, max_seq_length=32, on_long="drop", valid_share=0)


def test_too_much_damage_is_refused_with_the_length_that_would_do(model, tmp_path):
    rows = [{"messages": messages} for messages in conversations(200, system=False)]
    path = write_rows(tmp_path / "r.jsonl", rows)
    for share in (0.5, 0.1, 0.0):
        with pytest.raises(InputError, match="would lose part of an answer") as caught:
            make(model, path, max_seq_length=16, max_damaged_share=share)
        enough = int(caught.value.fix.split("=")[1].split()[0])
        make(model, path, max_seq_length=enough, max_damaged_share=share)
        with pytest.raises(InputError):
            make(model, path, max_seq_length=enough - 1, max_damaged_share=share)


# The fingerprint and the artefacts


def fingerprint(model, path, **values) -> str:
    return make(model, path, **values)[-1].fingerprint


def test_fingerprint_changes_with_all_that_matters_and_with_nothing_else(model, tmp_path):
    rows = [talk(f"answer {i} " + "word " * 30) for i in range(20)]
    path = write_rows(tmp_path / "r.jsonl", rows)
    base = fingerprint(model, path)
    assert fingerprint(model, path) == base
    reordered = [{"messages": [dict(reversed(m.items())) for m in row["messages"]]} for row in rows]
    assert fingerprint(model, write_rows(tmp_path / "k.jsonl", reordered)) == base
    assert fingerprint(model, write_rows(tmp_path / "i.jsonl", [{"id": 1, **row} for row in rows])) == base

    changed = json.loads(json.dumps(rows))
    changed[7]["messages"][0]["content"] += "!"
    others = {
        "one character": fingerprint(model, write_rows(tmp_path / "c.jsonl", changed)),
        "length": fingerprint(model, path, max_seq_length=4095),
        "masking": fingerprint(model, path, loss_on="completion"),
        "seed": fingerprint(model, path, seed=1),
        "template": fingerprint(write_kind(tmp_path / "t", "qwen2", CHATML + "{# the same text #}"), path),
        "kind": fingerprint(write_kind(tmp_path / "g", "gpt2"), path),
    }
    tokenizer = tokenizer_of("qwen2")
    tokenizer.add_tokens(["unseen-in-the-data"])
    tokenizer.save_pretrained(tmp_path / "a")
    others["tokenizer"] = fingerprint(tmp_path / "a", path)
    assert len({base, *others.values()}) == len(others) + 1


def test_a_character_behind_the_limit_changes_the_fingerprint_too(model, tmp_path):
    rows = [talk("word " * 60 + str(i)) for i in range(20)]
    first = write_rows(tmp_path / "a.jsonl", rows)
    rows[3]["messages"][-1]["content"] += "!"
    second = write_rows(tmp_path / "b.jsonl", rows)
    values = {"max_seq_length": 32, "max_damaged_share": 1}
    assert fingerprint(model, first, **values) != fingerprint(model, second, **values)


def test_saved_artefacts_hold_what_was_shown(model, tmp_path):
    rows = [{"messages": messages} for messages in conversations(50)]
    made = make(model, write_rows(tmp_path / "r.jsonl", rows))
    run = saved(made, tmp_path / "run")
    manifest, tokens = data.load_tokens(run)
    assert {name: len(rows) for name, rows in tokens.items()} == manifest["splits"] == {"train": 43, "valid": 2, "test": 5}
    for name in tokens:
        assert list(tokens[name]) == list(made[-1].splits[name])
        assert run.read_lines(name) == [example.to_dict() for example in made[3][name]]
    for key in ("source", "format", "rows", "splits", "tokens", "truncation", "template", "fingerprint", "config"):
        assert key in manifest
    assert manifest["rows"] == {"read": 50, "accepted": 50, "rejected": 0}
    assert manifest["tokens"]["total"] == sum(len(row["input_ids"]) for part in tokens.values() for row in part)
    assert manifest["tokens"]["supervised"] == sum(label != -100 for part in tokens.values() for row in part for label in row["labels"])
    assert not run.has("rejected")


def test_data_made_again_are_the_old_or_the_new_whenever_the_process_is_killed(model, tmp_path):
    made = [make(model, write_rows(tmp_path / f"{seed}.jsonl", [{"messages": m} for m in conversations(30, seed=seed)])) for seed in (1, 2)]
    whole = [one[-1].fingerprint for one in made]
    begin = time.monotonic()
    saved(made[0], tmp_path / "run")
    lasts, rng, seen = time.monotonic() - begin, random.Random(0), set()
    for moment in range(10):
        if (child := os.fork()) == 0:
            saved(made[moment % 2], tmp_path / "run")
            os._exit(0)
        time.sleep(rng.random() * 1.2 * lasts)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        manifest, tokens = data.load_tokens(RunDir(tmp_path / "run"))
        seen.add(whole.index(manifest["fingerprint"]))
        assert list(tokens["test"]) == list(made[whole.index(manifest["fingerprint"])][-1].splits["test"])
    assert seen <= {0, 1}


def test_tokens_that_are_not_the_manifests_are_refused(model, tmp_path):
    made = make(model, write_rows(tmp_path / "r.jsonl", [{"messages": messages} for messages in conversations(20)]))
    other = make(model, write_rows(tmp_path / "o.jsonl", [{"messages": messages} for messages in conversations(20, seed=1)]))
    run, foreign = saved(made, tmp_path / "run"), saved(other, tmp_path / "other")
    path = run.need("tokens") / "train.arrow"
    original = path.read_bytes()
    path.write_bytes((foreign.need("tokens") / "train.arrow").read_bytes())
    with pytest.raises(CheckFailed, match="not the ones that 02 showed"):
        data.load_tokens(run)
    first = made[-1].splits["train"][0]["labels"]
    trained = next(index for index, label in enumerate(first) if label != -100)
    place = original.rindex(bytes(memoryview(_int32(first[trained : trained + 3]))))
    path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
    with pytest.raises(CheckFailed, match="not the ones that 02 showed"):
        data.load_tokens(run)
    for damaged in (original[: len(original) // 2], b"rubbish", b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckFailed, match=r"cannot be read|not the ones"):
            data.load_tokens(run)
    path.unlink()
    with pytest.raises(CheckFailed, match="cannot be read"):
        data.load_tokens(run)
    path.write_bytes(original)
    manifest = run.read_json("manifest")
    run.write_json("manifest", {**manifest, "fingerprint_parts": {**manifest["fingerprint_parts"], "max_seq_length": 1}})
    with pytest.raises(CheckFailed, match="does not fit its parts"):
        data.load_tokens(run)
    with pytest.raises(MissingArtifact, match="manifest"):
        data.load_tokens(RunDir(tmp_path / "empty"))


def _int32(values: list[int]):
    import numpy as np

    return np.array(values, dtype="<i4")


# What to look at


def test_token_view_joins_to_the_row_and_marks_what_is_trained(tmp_path):
    for kind, template in (("qwen2", CHATML), ("llama3", trl_template("llama3")), ("gpt2", CHATML)):
        rows = [
            {"messages": [{"role": "user", "content": "naïve 你好 🙂?"}, {"role": "assistant", "content": f"🙂 世界 {i} <b>"}]}
            for i in range(5)
        ]
        made = make(write_kind(tmp_path / kind, kind, template), write_rows(tmp_path / "r.jsonl", rows))
        row, view = tokens_of(made)[0], data.token_view(made[-1], made[4], "train", 0)
        assert [piece.id for piece in view] == row["input_ids"]
        assert "".join(piece.text for piece in view) == made[4].decode(row["input_ids"])
        assert [piece.kind == "trained" for piece in view] == [label != -100 for label in row["labels"]]
        assert view[0].kind == "special"
        assert any(piece.kind == "context" and piece.text.strip() for piece in view)


def test_summary_and_lengths(model, tmp_path):
    made = make(model, write_rows(tmp_path / "r.jsonl", [{"messages": messages} for messages in conversations(30)]))
    rows = {name: value for name, value, _ in data.summary(made[-1])}
    lengths = data.lengths(made[-1])
    assert rows["tokens"] == f"{sum(map(sum, lengths.values())):,}"
    assert lengths["train"] == [len(row["input_ids"]) for row in tokens_of(made)]
    assert {"trained tokens", "rows cut", "EOS lost", "template"} <= set(rows)


def lints_of(made) -> dict[str, int]:
    return {lint.name: lint.count for lint in made[-1].lints}


def plain(content: str = "q", answer: str = "a") -> dict:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def with_system(*rows: dict) -> list[dict]:
    return [{"messages": [{"role": "system", "content": "s"}, *row["messages"]]} for row in rows]


ROWS = [plain(f"q{i}") for i in range(8)]
#: lint → (kind, template, rows, how many)
LINTED = {
    "system_injected": ("qwen2", trl_template("qwen2_5"), ROWS, 8),
    "trailing_space_in_prompt": ("qwen2", CHATML, [*ROWS, plain("x \n")], 1),
    "special_token_in_text": ("qwen2", CHATML, [*ROWS, plain("x <|im_end|> y")], 1),
    "eos_doubled": ("qwen2", CHATML, [*ROWS, plain("x", "done<|im_end|>")], 1),
    "thinking_added": ("qwen2", trl_template("qwen3"), ROWS, 8),
    "date_in_template": ("qwen2", CHATML + "{% if false %}{{ strftime_now('%d') }}{% endif %}", ROWS, 0),
    "prompt_in_train_and_test": ("qwen2", CHATML, [plain(f"same {i // 8}", f"answer {i}") for i in range(16)], 2),
    "no_eos_trained": ("gpt2", CHATML, ROWS, 8),
    "bos_doubled": ("llama3", "{{ bos_token }}" + trl_template("llama3"), ROWS, 8),
    "unknown_tokens": ("ascii", INST, [*ROWS, plain("字")], 1),
}


@pytest.mark.parametrize("name", LINTED)
def test_lints(name, tmp_path):
    kind, template, rows, count = LINTED[name]
    made = make(write_kind(tmp_path / "model", kind, template), write_rows(tmp_path / "r.jsonl", rows))
    assert lints_of(made)[name] == count
    assert all(lint.fix and lint.what for lint in made[-1].lints)


def test_good_rows_have_no_lints(tmp_path):
    rows = with_system(*ROWS, plain("x", "<think>\nhm\n</think>\n\ny"))
    for kind, template in (("qwen2", trl_template("qwen2_5")), ("llama3", trl_template("llama3"))):
        assert lints_of(make(write_kind(tmp_path / kind, kind, template), write_rows(tmp_path / "r.jsonl", rows))) == {}


def test_lints_of_plain_text_and_of_the_pad_token(tmp_path):
    texts = write_rows(tmp_path / "t.jsonl", [{"text": f"t{i}"} for i in range(5)])
    assert lints_of(make(write_kind(tmp_path / "a", "qwen2"), texts)) == {"template_unused": 0}
    assert lints_of(make(write_kind(tmp_path / "b", "qwen2", None), texts)) == {"template_missing": 0}
    tokenizer = tokenizer_of("qwen2")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "c")
    assert lints_of(make(tmp_path / "c", write_rows(tmp_path / "r.jsonl", ROWS))) == {"pad_is_eos": 0}


def test_a_tokenizer_without_a_pad_token_gets_one_that_is_not_the_eos(tmp_path):
    tokenizer = tokenizer_of("qwen2")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = make(tmp_path / "model", write_rows(tmp_path / "r.jsonl", ROWS))[4]
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == ("<|endoftext|>", "<|im_end|>", "right")
