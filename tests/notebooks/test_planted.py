"""A few planted regressions, each caught by the right figure; the whole drill is `make planted`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mac_lora_helpers.suite.regress.figures import made_by

ROOT = Path(__file__).parents[2]
DRILL = ROOT / "tests" / "regression" / "planted"
sys.path.insert(0, str(DRILL))

from plants import PLANTS  # noqa: E402

#: One that strikes the data, one the evaluation, one the export: the training is run once, clean.
FEW = ("eos_lost", "adapter_off", "gguf_template_not_read")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_clean_run_is_green_and_planted_faults_turn_it_red(tmp_path):
    command = [sys.executable, str(DRILL / "drill.py"), "--report", str(tmp_path / "planted"), *FEW]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(FEW)} of {len(FEW)} planted regressions were caught" in done.stdout


def test_plants_name_figures_that_there_are():
    for name, plant in PLANTS.items():
        assert None not in map(made_by, plant.red), name
        assert plant.red or plant.stops, name
        assert all(module.startswith("mac_lora_helpers.") for module in plant.patches), name


def test_the_documentation_lists_every_plant():
    text = (ROOT / "docs" / "regression.md").read_text()
    assert [name for name in PLANTS if f"| `{name}` |" not in text] == []


def test_the_product_knows_nothing_of_planting():
    for file in (ROOT / "mac_lora_helpers").rglob("*.py"):
        assert "PLANTED" not in file.read_text(), file
