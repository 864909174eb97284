"""The table of version differences: each entry is still needed, and hides no more than it says."""

import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mac_lora_helpers import compat


@pytest.mark.parametrize("entry", compat.WARNINGS, ids=lambda entry: entry[0])
def test_an_entry_goes_when_the_lower_bound_has_passed_it(entry):
    stated = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, stated)}
    lowest = next(part.version for part in ranges[entry[0]] if part.operator == ">=")
    assert lowest in SpecifierSet(entry[1]), f"{entry[0]}: this difference is below the stated range; remove it"


def test_only_the_known_warnings_are_hidden():
    with warnings.catch_warnings(record=True) as seen, compat.known_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
        warnings.warn("something else is deprecated", UserWarning, stacklevel=1)
    assert [str(item.message) for item in seen] == ["something else is deprecated"]
