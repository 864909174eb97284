"""Every word of the glossary that a notebook uses is defined there at its first use, or linked."""

import re
from pathlib import Path

import nbformat
import pytest

from mac_lora_helpers.artifacts import NOTEBOOKS

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
#: Anchor → the words it explains.
TERMS = {
    entry[1]: re.findall(r"\*\*(.+?)\*\*", entry[2].partition(":")[0])
    for entry in re.finditer(r'^<a id="([a-z0-9-]+)"></a>(.+?)(?=\n\n|\Z)', GLOSSARY, re.M | re.S)
}
#: Everyday words as well: asked for where they are emphasised only.
EVERYDAY = {
    "base",
    "message",
    "split",
    "label",
    "interval",
    "parameter",
    "weights",
    "merge",
    "Hub",
    "batch",
    "adapter",
    "greedy",
    "base model",
}


def prose(notebook) -> str:
    """The notebook's text without code, tables, headings, navigation and the links' targets."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    lines = [line for line in "\n\n".join(cells).splitlines() if not line.startswith(("#", "|", "←", "Next:", "Back to"))]
    return re.sub(r"`[^`\n]*`", "``", "\n".join(lines))


def spans(text: str) -> list[tuple[int, int]]:
    """Where something is emphasised or linked to the glossary."""
    pattern = r"(?<!\*)\*(?!\*)[^*\n]+\*(?!\*)|\[[^\]\n]+\]\(\.\./docs/glossary\.md#[a-z0-9-]+\)"
    return [match.span() for match in re.finditer(pattern, text)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_words_are_explained_where_they_are_first_used(name):
    text = prose(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4))
    visible = re.sub(r"\]\([^)]*\)", lambda target: "]" + "(" + " " * (len(target[0]) - 3) + ")", text)
    unexplained = []
    for term in (word for words in TERMS.values() for word in words):
        uses = [match.start() for match in re.finditer(rf"(?<![\w-]){re.escape(term)}s?(?![\w-])", visible, re.IGNORECASE)]
        explained = [use for use in uses if any(begin <= use < end for begin, end in spans(text))]
        if uses and (not explained or (explained[0] != uses[0] and term not in EVERYDAY)):
            unexplained.append((term, visible[max(0, uses[0] - 40) : uses[0] + 40]))
    assert unexplained == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_to_the_glossary_lead_to_an_entry(name):
    for anchor in re.findall(r"glossary\.md#([a-z0-9-]+)", (ROOT / "notebooks" / f"{name}.ipynb").read_text()):
        assert anchor in TERMS


def test_the_glossary_is_in_order_and_whole():
    assert len(TERMS) > 45
    assert all(TERMS.values())
    assert list(TERMS) == [anchor for anchor, _ in re.findall(r'<a id="([a-z0-9-]+)"></a>\*\*([^*]+)', GLOSSARY)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_success_and_failure_are_shown(name):
    last = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells[-1].source
    assert "Success looks like" in last
    assert "Failure looks like" in last
    assert len(re.findall(r"^\d\. ", last, re.M)) == 3
