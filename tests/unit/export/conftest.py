"""Fixtures of the export room."""

import pytest
from trained_run import make_trained


@pytest.fixture
def trained(tmp_path):
    """A tiny Qwen2 with an adapter on the attention projections."""
    return make_trained(tmp_path)
