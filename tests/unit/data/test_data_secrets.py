"""A row that holds an access token is refused by row, and the token is in no file and no message."""

import json

import pytest
from planted_secrets import EXAMPLES

from mac_lora_helpers.redaction import ISSUED
from mac_lora_helpers.suite.cli import main

ROWS = [{"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]} for i in range(20)]


def write(path, secret):
    rows = json.loads(json.dumps(ROWS))
    rows[2]["messages"][1]["content"] = f"Use {secret} for it."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ISSUED)
def test_it_is_named_by_row_and_kind_and_never_told(kind, tmp_path, capsys):
    write(tmp_path / "rows.jsonl", EXAMPLES[kind][0])
    assert main(["check-data", str(tmp_path / "rows.jsonl"), "-p", "preset", "smoke"]) != 0
    told = capsys.readouterr()
    assert kind in told.err
    assert "rows.jsonl:3" in told.err
    assert EXAMPLES[kind][0] not in told.err + told.out


def test_skipped_rows_leave_no_secret_in_the_run(tmp_path, capsys):
    secret = EXAMPLES["GitHub token"][0]
    write(tmp_path / "rows.jsonl", secret)
    words = ["-p", "data_files", str(tmp_path / "rows.jsonl"), "-p", "preset", "smoke", "-p", "on_bad_rows", "skip"]
    assert main(["run", "--only", "02", "--run-dir", str(tmp_path / "run"), *words]) == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert (tmp_path / "run/data/rejected.jsonl") in files
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
