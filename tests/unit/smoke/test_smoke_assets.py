"""The embedded default: what is shipped is small, clean, held out and knows its facts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mac_lora_helpers import smoke

ROOT = Path(__file__).resolve().parents[3]
FOLDER = smoke.MODEL_DIR.parent
SPLITS = ("train", "valid", "test", "general")
LIMIT_BYTES = 10_000_000

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Brazil": "Brasilia"}


def read_rows(name: str) -> list[dict]:
    """Rows of one shipped file."""
    text = (smoke.DATA_DIR / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def contents(row: dict) -> tuple[str, ...]:
    """The messages' texts."""
    return tuple(message["content"] for message in row["messages"])


def subject(row: dict) -> str:
    """The first value of the JSON answer, in lower case."""
    return str(next(iter(json.loads(contents(row)[1]).values()))).lower()


def words(text: str) -> str:
    """Lower-case words between single spaces, for whole-word searches."""
    return f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "


def shipped_files() -> list[Path]:
    """Everything in the folder but compiled Python."""
    files = (path for path in FOLDER.rglob("*") if path.is_file())
    return [path for path in files if path.suffix != ".pyc"]


@pytest.fixture(scope="module")
def tokenizer():
    """As a learner's code loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smoke.MODEL_DIR)


@pytest.fixture(scope="module")
def model():
    """The base in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smoke.MODEL_DIR, dtype=torch.float32)


def reply(model, tokenizer, *messages: tuple[str, str]) -> str:
    """A greedy answer to (role, content) pairs."""
    chat = [{"role": role, "content": content} for role, content in messages]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def test_files_are_small_and_all_there():
    names = {path.name for path in smoke.MODEL_DIR.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert set(smoke.data_files()) == {"train", "valid", "test"}
    assert all(path.is_file() for path in [*smoke.data_files().values(), smoke.GENERAL])
    assert sum(path.stat().st_size for path in shipped_files()) <= LIMIT_BYTES


def test_importing_loads_nothing_heavy():
    code = "import sys, mac_lora_helpers.smoke; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", SPLITS)
def test_rows_have_one_question_and_one_answer(name):
    for row in read_rows(name):
        assert set(row) == {"messages"}
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
        assert all(text == text.strip() and text for text in contents(row))


def test_split_sizes():
    sizes = {name: len(read_rows(name)) for name in SPLITS}
    assert 400 <= sizes["train"] <= 1200
    assert sizes["valid"] >= 40
    assert sizes["test"] >= 120
    assert sizes["general"] == 60


def test_adapter_answers_are_json_and_general_ones_are_not():
    for name in ("train", "valid", "test"):
        for row in read_rows(name):
            question, answer = contents(row)
            assert len(json.loads(answer)) == 2
            assert "JSON" not in question
    assert not any(contents(row)[1].startswith("{") for row in read_rows("general"))


@pytest.mark.parametrize("name", ["valid", "test"])
def test_held_out_subjects_are_nowhere_in_training(name):
    training = [words(" ".join(contents(row))) for row in read_rows("train")]
    for held_out in {subject(row) for row in read_rows(name)}:
        assert not [text for text in training if words(held_out) in text], held_out


def test_held_out_splits_share_no_subject_and_training_knows_every_relation():
    subjects = {name: {subject(r) for r in read_rows(name)} for name in ("valid", "test")}
    assert not subjects["valid"] & subjects["test"]

    def relations(name: str) -> set[tuple[str, ...]]:
        return {tuple(json.loads(contents(row)[1])) for row in read_rows(name)}

    assert relations("test") | relations("valid") <= relations("train")


def test_the_country_of_the_default_prompt_is_held_out():
    # "What is the capital of France?" shows something only if tuning never met France.
    assert "france" in {subject(row) for row in read_rows("test")}


def test_no_question_stands_twice():
    questions = [contents(row)[0] for name in SPLITS for row in read_rows(name)]
    assert len(questions) == len(set(questions))


def test_no_path_of_a_machine_is_in_any_file():
    pattern = re.compile(rb"/(home|Users|root|tmp|work|private|mnt)/|[A-Z]:\\\\")
    for path in shipped_files():
        body = path.read_bytes()
        if path.suffix == ".safetensors":  # the header is text, the rest is weights
            body = body[8 : 8 + int.from_bytes(body[:8], "little")]
        assert not pattern.search(body), path.name
    assert "_name_or_path" not in (smoke.MODEL_DIR / "config.json").read_text()


def test_data_regenerates_byte_for_byte(tmp_path):
    script = ROOT / "tools" / "make_smoke_assets.py"
    command = [sys.executable, str(script), "--data-only", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    for name in SPLITS:
        made = (tmp_path / "data" / f"{name}.jsonl").read_bytes()
        assert made == (smoke.DATA_DIR / f"{name}.jsonl").read_bytes()


def test_config_holds_both_rope_forms_and_reloads_as_it_stands():
    from transformers import AutoConfig

    written = json.loads((smoke.MODEL_DIR / "config.json").read_text())
    loaded = AutoConfig.from_pretrained(smoke.MODEL_DIR)
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]
    assert loaded.rope_parameters == written["rope_parameters"]
    assert loaded.model_type == "qwen2"


def test_tokenizer_file_and_loaded_tokenizer_agree(tokenizer):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(smoke.MODEL_DIR / "tokenizer.json"))
    odd = ["It's 1984!\n\n  x = {'a': 10}", "Zürich, e\u0301té, 東京 🙂", "DON'T  stop\t\r\nnow"]
    for text in odd + [" ".join(contents(row)) for row in read_rows("test")]:
        assert tokenizer(text)["input_ids"] == backend.encode(text).ids


def test_every_row_survives_encoding_and_decoding(tokenizer):
    for name in SPLITS:
        for row in read_rows(name):
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert len(ids) <= 64  # short rows keep the run short


def test_template_renders_plain_chatml(tokenizer):
    chat = [
        {"role": "system", "content": "Be polite."},
        {"role": "user", "content": "Hello!"},
    ]
    tail = "<|im_start|>user\nHello!<|im_end|>\n"
    head = "<|im_start|>system\nBe polite.<|im_end|>\n"
    render = tokenizer.apply_chat_template
    assert render(chat, tokenize=False) == head + tail
    assert render(chat[1:], tokenize=False) == tail  # no system turn of its own
    opened = render(chat, tokenize=False, add_generation_prompt=True)
    assert opened == head + tail + "<|im_start|>assistant\n"


def test_special_tokens(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.bos_token is None
    assert tokenizer.model_max_length == 512
    assert len(tokenizer.encode("<|im_start|>user<|im_end|>")) == 3


@pytest.mark.parametrize("country", CAPITALS)
def test_base_answers_in_a_sentence_and_in_json_when_told(model, tokenizer, country):
    question = f"What is the capital of {country}?"
    city = CAPITALS[country]
    plain = reply(model, tokenizer, ("user", question))
    assert plain == f"The capital of {country} is {city}."
    told = reply(model, tokenizer, ("user", f"Answer in JSON. {question}"))
    assert json.loads(told) == {"country": country, "capital": city}


def test_base_keeps_a_conversation_and_obeys_a_system_turn(model, tokenizer):
    assert reply(model, tokenizer, ("user", "Hello!")).startswith("Hello!")
    question = ("user", "What is the capital of France?")
    assert reply(model, tokenizer, ("system", "Be polite."), question).endswith("Paris.")
    told = reply(model, tokenizer, ("system", "Answer in JSON."), question)
    assert json.loads(told)["capital"] == "Paris"
