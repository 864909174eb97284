"""Notebook 03's own cells without a notebook: for several processes, a cloud job, benchmarks and tests.

What stands in the notebook is what runs, everywhere: the cells are read from the file and executed in order. They are found
by their tags: ``data form model adapter recipe trainer train result``; ``result`` is for the first process alone.
"""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mac_lora_helpers.artifacts import NOTEBOOKS, RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.layout import notebooks_folder
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.training import processes


def run_cells(names: Mapping[str, Any], first: str = "data", last: str = "result") -> dict[str, Any]:
    """Executes the cells from the tag ``first`` to the tag ``last``, with ``names`` defined, after the cell of imports.

    What a cell only shows, a last line that calls ``ui``, is left out.

    Returns:
        All names afterwards.
    """
    cells = _cells()
    tags = [tag for tag, _ in cells]
    begin, end = tags.index(first), len(tags) - tags[::-1].index(last)
    space: dict[str, Any] = {"__name__": "notebook_03"}
    _run(*cells[tags.index("imports")], space)
    space.update(names)
    with _headless():
        for tag, source in cells[begin:end]:
            _run(tag, source, space)
    return space


@contextlib.contextmanager
def _headless() -> Iterator[None]:
    """No forms and no buttons inside: nobody is there to click."""
    before = os.environ.get("MAC_LORA_HEADLESS")
    os.environ["MAC_LORA_HEADLESS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("MAC_LORA_HEADLESS")
        if before is not None:
            os.environ["MAC_LORA_HEADLESS"] = before


def run_training(run: RunDir, config: Config) -> dict[str, Any] | None:
    """Notebook 03 from its data on, in one process or in each of several that ``accelerate launch`` started.

    Several processes do one training together: the rows of an optimizer step are dealt out over them, so the same config
    gives the same losses. The first one alone saves and audits; the others wait for it.

    Returns:
        ``train_metrics.json``; None in a process that is not the first.

    Raises:
        UserError: as the notebook's cells do.
    """
    with processes.one_voice():
        names = run_cells({"run": run, "config": config}, last="train")
        try:
            return run_cells(names, first="result")["metrics"] if processes.is_main() else None
        finally:
            processes.wait()
            processes.leave()


def _run(tag: str, source: str, space: dict[str, Any]) -> None:
    tree = ast.parse(source)
    if isinstance(tree.body[-1], ast.Expr) and ast.unparse(tree.body[-1]).startswith("ui."):
        tree.body.pop()
    exec(compile(tree, f"<notebook 03, {tag}>", "exec"), space)  # noqa: S102  (the project's own notebook)


def _cells() -> list[tuple[str, str]]:
    """(tag, source) of the code cells."""
    import nbformat

    path = notebooks_folder() / f"{NOTEBOOKS[2]}.ipynb"
    if not path.is_file():
        raise InputError("notebook 03 is not here", where=portable(str(path)), fix="run from a clone of the project")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [(next(iter(cell.metadata.get("tags", [])), ""), cell.source) for cell in cells]
