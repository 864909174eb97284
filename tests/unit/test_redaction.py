"""One table of secrets: each kind is refused as a parameter and taken out of messages and files; harmless text stays."""

from __future__ import annotations

import json

import pytest
from planted_secrets import EXAMPLES

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.redaction import KINDS, REMOVED, find_secrets, portable

CASES = [pytest.param(kind, text, id=text[:12]) for kind, texts in EXAMPLES.items() for text in texts]


def test_every_kind_of_the_table_has_an_example():
    assert set(EXAMPLES) == set(KINDS)


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_every_kind_is_refused_as_a_parameter_and_taken_out_elsewhere(kind, text, tmp_path):
    secret = KINDS[kind].regex.search(text.encode())
    assert secret is not None
    told = secret["value" if "value" in secret.re.groupindex else 0].decode()
    for given in ({"explicit": {"prompt": f"what is {text}?"}}, {"env": {"DATA_FILES": f"a.jsonl, {text}"}}):
        with pytest.raises(InputError) as error:
            resolve(**{"env": {}, **given})
        assert kind in str(error.value)
        assert told not in str(error.value)
    assert told not in str(InputError("a row", where=f"x.jsonl: {text}", fix=text))
    run = RunDir(tmp_path / "run")
    run.write_json("environment", {"a": [f"see {text}"], f"key {text}": 1})
    assert told not in run.path("environment").read_text()
    notebook = json.dumps({"text": f"printed:\n{text}\n"})
    assert told not in portable(notebook)
    assert json.loads(portable(notebook))["text"].startswith("printed:")


HARMLESS = [
    '{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": null, "token": 151643}',
    '{"Ġpassword": 16522, "Ġtoken": 4037, "hf": 1, "token_type_ids": [0, 0]}',
    "max_new_tokens: 120, HF_TOKEN_PATH=/somewhere/under/a/long/path/token1",
    "token = get_token_from_the_environment()",
    "my password: what was it? PWD=/srv/user1/work1",
    "fingerprint: sha256:" + "5e" * 32,
    "https://huggingface.co/docs/hub/security-tokens#how-to-use-user-access-tokens-0123456789",
    "hf_hub_download, hf_transfer, sk-learn and risk-averse-investments-in-a-long-hyphenated-phrase",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_left_alone(text):
    assert (find_secrets(text), portable(text)) == ([], text)


def test_a_secret_of_the_environment_is_known_by_value(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery")
    assert portable("it said: correct horse battery!") == f"it said: {REMOVED}!"


def test_the_home_directory_becomes_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/Users/someone")
    assert portable("in /Users/someone/a, not /Users/someone2/a") == "in ~/a, not /Users/someone2/a"
