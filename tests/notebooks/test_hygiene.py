"""The stored notebooks: their anatomy, and that their parameters are the config's."""

import ast
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from mac_lora_helpers.artifacts import NOTEBOOKS
from mac_lora_helpers.config import Config, preset_values

FOLDER = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def test_the_five_are_there_and_no_other():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NOTEBOOKS)


def test_valid_with_unique_ids(notebook):
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_stored_without_outputs(notebook):
    assert [cell.id for cell in code_cells(notebook) if cell.outputs or cell.execution_count] == []
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def test_no_definitions_and_no_shell(notebook):
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*(!|%|get_ipython)", cell.source, re.M), cell.id
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)], cell.id


def test_cells_are_small_and_explained(notebook):
    for cell in code_cells(notebook):
        limit = 16 if cell is parameters_cell(notebook) else 12
        assert len(cell.source.splitlines()) <= limit, cell.id
        assert max(map(len, cell.source.splitlines())) <= 140, cell.id
    text = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert 4 <= len([cell for cell in text if re.match(r"## \d", cell.source)]) <= 7


def test_anatomy(notebook):
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith("# ")
    assert "| Reads | Writes | Minutes |" in first
    assert "←" in first
    assert "→" in first
    assert "## What you made" in last
    assert "Success looks like" in last
    assert "Three things to try" in last


def test_links_lead_somewhere(notebook):
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source) if cell.cell_type == "markdown" else []:
            assert (FOLDER / target).exists(), target


def test_parameters_are_the_configs(notebook):
    smoke = preset_values("smoke")
    body = ast.parse(parameters_cell(notebook).source).body
    assert all(isinstance(node, ast.AnnAssign) for node in body)
    values = {node.target.id: ast.literal_eval(node.value) for node in body}
    assert values == {name: smoke[name] for name in values}
    helps = {line.split(":")[0]: line.split("  # ", 1)[1] for line in parameters_cell(notebook).source.splitlines()}
    assert helps == {name: Config.model_fields[name].description for name in values}


def test_papermill_reads_every_parameter_with_its_type(notebook, tmp_path):
    file = tmp_path / "n.ipynb"
    nbformat.write(notebook, file)
    seen = papermill.inspect_notebook(file)
    names = [line.split(":")[0] for line in parameters_cell(notebook).source.splitlines()]
    assert list(seen) == names
    assert all(info["inferred_type_name"] != "None" and info["help"] for info in seen.values())
