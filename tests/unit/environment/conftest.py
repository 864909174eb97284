"""The fixture that gives a recorded machine."""

from __future__ import annotations

from typing import Any

import pytest
from recorded_probe import RecordedProbe, load_recording


@pytest.fixture
def recorded():
    """Gives the probe of a recording by its name, with changes: ``recorded("m1-8gb", env={...})``."""

    def probe(name: str, **changes: Any) -> RecordedProbe:
        return RecordedProbe({**load_recording(name), **changes})

    return probe
