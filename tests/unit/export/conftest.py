"""Fixtures of the export room."""

import pytest
from trained_run import copy_of, make_trained


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    return make_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def trained(trained_once, tmp_path):
    """A tiny Qwen2 with an adapter on the attention projections; the test's own copy."""
    return copy_of(trained_once, tmp_path)
