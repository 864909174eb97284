"""Splits by content: copies stay together, seeds decide, sizes are what was asked for."""

from __future__ import annotations

import random

import pytest
from conversations import conversations, write_rows

from mac_lora_helpers import data
from mac_lora_helpers.config import resolve
from mac_lora_helpers.data.problems import DataError


def row(question: str, answer: str = "yes") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def split_of(path, rows, **values):
    config = resolve({"data_files": str(write_rows(path / "r.jsonl", rows)), **values}, env={})
    return data.split(data.validate(data.load(config), config), config)


def contents(splits, name: str) -> set[str]:
    return {str(example.to_dict()) for example in splits[name]}


def test_sizes_are_the_shares(tmp_path):
    splits = split_of(tmp_path, [row(f"question {i}") for i in range(1000)])
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 850, "valid": 50, "test": 100}
    splits = split_of(tmp_path, [row(f"question {i}") for i in range(1000)], valid_share=0, test_share=0.25)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 750, "valid": 0, "test": 250}


def test_copies_never_straddle_even_with_other_spaces_and_case(tmp_path):
    rows = [row(f"question {i}") for i in range(60)]
    copies = [row(f"Question   {i} ", "YES\n") for i in range(60)] + rows[::2]
    shuffled = rows + copies
    random.Random(0).shuffle(shuffled)
    splits = split_of(tmp_path, shuffled, valid_share=0.2, test_share=0.3)
    seen: dict[str, str] = {}
    for name, examples in splits.items():
        for example in examples:
            number = example.messages[0]["content"].split()[-1]
            assert seen.setdefault(number, name) == name
    assert len(seen) == 60
    assert all(len(splits[name]) for name in splits)


def test_order_of_rows_does_not_matter_and_the_seed_does(tmp_path):
    rows = [row(f"question {i}") for i in range(200)]
    first = split_of(tmp_path, rows)
    assert contents(split_of(tmp_path, rows[::-1]), "test") == contents(first, "test")
    assert contents(split_of(tmp_path, rows), "valid") == contents(first, "valid")
    assert contents(split_of(tmp_path, rows, seed=43), "test") != contents(first, "test")


@pytest.mark.parametrize("count", range(2, 30))
def test_few_rows_always_give_a_train_and_a_test_row(count, tmp_path):
    splits = split_of(tmp_path, [row(f"question {i}") for i in range(count)])
    assert len(splits["train"]) >= 1
    assert len(splits["test"]) >= 1
    assert sum(map(len, splits.values())) == count
    assert bool(splits.notes) == (count < 10)


def test_too_few_rows_are_refused_with_the_count_that_would_do(tmp_path):
    with pytest.raises(DataError, match=r"2 different rows would do; 10 give test its share of 0\.1"):
        split_of(tmp_path, [row("q"), row("Q")])
    with pytest.raises(DataError, match="10 different rows would do") as caught:
        split_of(tmp_path, [row(f"q{i}") for i in range(6)], valid_share=0.05)
    assert "valid_share=0.05" in str(caught.value)
    assert len(split_of(tmp_path, [row(f"q{i}") for i in range(10)], valid_share=0.05)["valid"]) == 1
    with pytest.raises(DataError, match="leave nothing to train on"):
        split_of(tmp_path, [row(f"q{i}") for i in range(6)], valid_share=0.4, test_share=0.6)


def test_the_count_that_would_do_does(tmp_path):
    for share in (0.02, 0.1, 0.3):
        with pytest.raises(DataError) as caught:
            split_of(tmp_path, [row("q0"), row("q1")], valid_share=share, test_share=0.5)
        wanted = int(caught.value.fix.split()[0])
        rows = [row(f"q{i}") for i in range(wanted)]
        assert len(split_of(tmp_path, rows, valid_share=share, test_share=0.5)["valid"]) >= 1
        with pytest.raises(DataError):
            split_of(tmp_path, rows[1:], valid_share=share, test_share=0.5)


def test_prompts_shared_by_train_and_test_are_told(tmp_path):
    rows = [row("the same question", f"answer {i}") for i in range(50)]
    splits = split_of(tmp_path, rows)
    assert splits.shared_prompts == len(splits["test"]) == 5


def test_rows_come_back_in_slices_and_with_their_place(tmp_path):
    rows = [{"messages": messages} for messages in conversations(20)]
    splits = split_of(tmp_path, rows)
    train = splits["train"]
    assert [example.to_dict() for example in train[2:4]] == [train[2].to_dict(), train[3].to_dict()]
    assert rows[int(train[0].where.rsplit(":", 1)[1]) - 1] == train[0].to_dict()
