"""The pages: their code runs, their links lead somewhere, and what is made from the code is current.

A comment in front of a block says what it is: ``<!-- file: NAME -->`` is written to that file, ``<!-- needs: … -->`` cannot run
here, ``<!-- exit: N -->`` is expected to end so. ``mac-lora`` lines run in this process, by the function behind the command;
commands that take minutes or leave the machine are parsed only.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mac_lora_helpers import smoke
from mac_lora_helpers.config import resolve
from mac_lora_helpers.suite.cli import main, parse
from mac_lora_helpers.troubleshooting.__main__ import page

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EVERY = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>file|needs|exit): (?P<value>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    number: int
    language: str
    text: str
    mark: str | None
    value: str | None

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}-{self.language}"


def blocks(file: Path) -> list[Block]:
    return [
        Block(file.stem, number, found["language"], found["text"], found["mark"], found["value"])
        for number, found in enumerate(_BLOCK.finditer(file.read_text()), 1)
    ]


def named(chosen):
    """Parameters with a name; the whole environment check takes a while and is tested elsewhere too."""
    return [pytest.param(block, id=block.name, marks=[pytest.mark.slow] if "mac-lora doctor" in block.text else []) for block in chosen]


FILES = [block for file in PAGES for block in blocks(file) if block.mark == "file"]
_LONG = re.compile(r"\bmac-lora (run|train|regress|job)\b|\baccelerate launch\b")
RUN = [
    block
    for file in PAGES
    for block in blocks(file)
    if block.language in ("bash", "python") and block.mark != "needs" and not (block.language == "bash" and _LONG.search(block.text))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages name, and a short run of the embedded model in the usual place."""
    from mac_lora_helpers import data, training
    from mac_lora_helpers.artifacts import RunDir

    folder = tmp_path_factory.mktemp("pages")
    for block in FILES:
        (folder / block.value).write_text(block.text)
    rows = folder / "few.jsonl"
    rows.write_text("".join(smoke.data_files()["train"].read_text().splitlines(keepends=True)[:60]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = resolve(
            {"preset": "smoke", "data_files": "few.jsonl", "max_steps": 2, "gradient_accumulation_steps": 1, "fast_path": "off"}, {}
        )
        run, source = RunDir(config.out_dir), data.load(config)
        found = data.validate(source, config)
        splits, tokenizer = data.split(found, config), data.load_tokenizer(config)
        data.save(run, source, found, splits, data.encode(splits, tokenizer, config), config)
        training.run_training(run, config)
    return folder


@pytest.mark.parametrize("block", named(RUN))
@pytest.mark.filterwarnings("ignore")
def test_blocks_run(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if block.language == "python":
        exec(compile(block.text, block.name, "exec"), {"__name__": "page"})  # noqa: S102 - the page's own code
        return
    expected = int(block.value or 0)
    lines = [line.partition(" #")[0].strip() for line in block.text.splitlines()]
    if all(line.startswith("mac-lora ") and ">" not in line for line in lines if line):
        for line in filter(None, lines):
            assert main(shlex.split(line)[1:]) == expected, line
    else:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(["bash", "-euc", block.text], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == expected, done.stderr


def test_the_pages_have_blocks_of_each_kind():
    """So that a slip in the pattern above cannot leave everything out."""
    assert len(FILES) >= 6
    assert {block.language for block in RUN} == {"bash", "python"}
    fences = sum(line.startswith("```") for file in PAGES for line in file.read_text().splitlines())
    assert fences == 2 * sum(len(blocks(file)) for file in PAGES)


@pytest.mark.parametrize(
    "block", named([block for block in FILES if block.value not in ("broken.jsonl", "named.jsonl", "preference.jsonl")])
)
def test_every_shape_is_read_as_what_it_is(block, folder, monkeypatch):
    from mac_lora_helpers import data

    monkeypatch.chdir(folder)
    shapes = {"messages": "messages", "pairs": "prompt_completion", "sharegpt": "conversations", "alpaca": "alpaca", "text": "text"}
    config = resolve({"data_files": block.value}, {})
    found = data.validate(data.load(config), config)
    assert found.shape == shapes[Path(block.value).stem]
    assert not found.counts
    assert main(["check-data", block.value]) == 0


def commands():
    """Every ``mac-lora`` line in a fenced block or in running text."""
    for file in EVERY:
        text = file.read_text()
        inside = re.findall(r"^(?:[A-Z_]+=\S* )*(mac-lora .*)$", text, re.M) + re.findall(r"`(mac-lora [a-z-]+[^`\n]*)`", text)
        for line in inside:
            yield pytest.param(line.partition(" #")[0].strip(), id=f"{file.stem}: {line[:40]}")


@pytest.mark.parametrize("line", [*commands()])
def test_every_command_is_one(line):
    """Parsed as it stands; ``NAME VALUE``, ``[…]`` and ``…`` are placeholders."""
    if re.search(r"[\[…|]|NAME VALUE|^mac-lora \w+/", line):
        return
    words = shlex.split(line)[1:]
    if "--help" in words or words[:1] == [">"]:
        return
    try:
        arguments = parse(words)
    except SystemExit as error:
        pytest.fail(f"{line}: {error}")
    resolve({name: value for name, value in getattr(arguments, "parameters", [])}, {})


@pytest.mark.parametrize("file", EVERY, ids=lambda file: file.stem)
def test_links_lead_somewhere(file):
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            page_file = file.parent / path if path else file
            assert page_file.exists(), target
            assert not anchor or f'<a id="{anchor}"></a>' in page_file.read_text(), target


def test_the_table_of_failures_is_current():
    assert (ROOT / "docs/troubleshooting.md").read_text() == page(), "make docs"


def test_every_page_is_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [file.name for file in PAGES if f"docs/{file.name}" not in readme] == []


#: Parameters → hidden size, layers, heads, key-value heads, MLP width of Qwen2.5.
SIZES = {"0.5B": (896, 24, 14, 2, 4864), "1.5B": (1536, 28, 12, 2, 8960), "3B": (2048, 36, 16, 2, 11008)}


@pytest.mark.slow
def test_the_table_of_memory_is_what_is_predicted():
    from transformers import AutoConfig

    from mac_lora_helpers import training

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    table = dict(re.findall(r"^\| (\S+B) \| (.+) \|$", (ROOT / "docs/memory.md").read_text(), re.M))
    assert set(table) == set(SIZES)
    for size, shape in SIZES.items():
        model = AutoConfig.for_model("qwen2", **dict(zip(names, shape, strict=True)), vocab_size=151936, tie_word_embeddings=True)
        columns = [{"max_seq_length": 512}, {"max_seq_length": 1024}, {"max_seq_length": 512, "dtype": "bfloat16"}]
        for told, parameters in zip(table[size].split(" | "), columns, strict=True):
            config = resolve({"preset": "local", "gradient_checkpointing": True, **parameters}, {})
            predicted = training.forecast(config, model, None, "mps", 10**12).total_bytes / 1e9
            assert float(told.removesuffix(" GB")) == pytest.approx(predicted, rel=0.2), (size, parameters)
