"""A small project for regression runs: five notebooks that write figures at once, and cases about them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import nbformat

from mac_lora_helpers.artifacts import NOTEBOOKS
from mac_lora_helpers.suite.cli import main

PARAMETERS = "out_dir: str = 'x'  # d\nseed: int = 42  # s\nmax_steps: int = 10  # m"
CODE = {
    2: """
        import json, pathlib
        run = pathlib.Path(out_dir)
        (run / 'data').mkdir(parents=True, exist_ok=True)
        manifest = {'fingerprint': 'abc', 'tokens': {'total': 100, 'supervised': 40}}
        (run / 'data/manifest.json').write_text(json.dumps(manifest))
    """,
    3: """
        import json, pathlib
        run = pathlib.Path(out_dir)
        assert (run / 'data/manifest.json').exists()
        first = {'step': 1, 'loss': 2.0, 'grad_norm': 1.0, 'learning_rate': 0.0002}
        (run / 'train_log.jsonl').write_text(json.dumps(first) + chr(10) + json.dumps({**first, 'step': 10, 'loss': 1.0}) + chr(10))
        (run / 'train_metrics.json').write_text(json.dumps({'steps': max_steps, 'last_loss': 1.0 + seed / 1e6}))
    """,
}
CASES = """
    defaults: {timeout: 60}
    bands:
      - {metric: data.manifest.fingerprint, kind: exact, reason: made by rule}
      - {metric: train_metrics.steps, kind: exact, reason: a parameter}
      - {metric: train_metrics.last_loss, kind: relative, width: 0.01, reason: rounding errors}
    cases:
      - {name: data, notebooks: [02]}
      - {name: train, about: "40 <b>steps</b>", after: data, notebooks: [03], parameters: {max_steps: 40}}
"""


class Project:
    """A folder that the test stands in; ``note(3, code)`` replaces a notebook."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "notebooks").mkdir()
        for number in range(1, 6):
            self.note(number, CODE.get(number, "pass"))
        self.cases(CASES)

    def note(self, number: int, code: str) -> None:
        cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        cells += [nbformat.v4.new_code_cell(textwrap.dedent(code).strip())]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(book, self.folder / "notebooks" / f"{NOTEBOOKS[number - 1]}.ipynb")

    def cases(self, text: str) -> None:
        (self.folder / "cases.yaml").write_text(textwrap.dedent(text))

    def regress(self, *arguments: str, report: str = "report") -> int:
        return main(["regress", "--cases", "cases.yaml", "--notebooks", "notebooks", "--report", report, *arguments])

    def tests(self, report: str = "report") -> dict[str, dict[str, str]]:
        """Case → test → ``passed`` or the message of its failure, from junit.xml."""
        suites = ElementTree.parse(self.folder / report / "junit.xml").getroot()
        return {
            suite.get("name"): {test.get("name"): test[0].get("message") if len(test) else "passed" for test in suite} for suite in suites
        }

    def baseline(self, case: str) -> dict:
        return json.loads((self.folder / f"baselines/{case}.json").read_text())
