"""What every test gets: an environment without this machine's own parameters, and a way to ask for optional engines."""

from __future__ import annotations

import os
import tempfile

# One thread a process: tiny models gain nothing from two, and two spinning threads beside other work lose tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What a test's training teaches about this machine is not for the user's next forecast.
os.environ["MAC_LORA_CACHE"] = "off"

# Nor does the Hub client's upload cache fill up in the user's home with what stand-ins were sent.
_XET = tempfile.TemporaryDirectory(prefix="xet-", ignore_cleanup_errors=True)
os.environ["HF_XET_CACHE"] = _XET.name

import pytest  # noqa: E402

from mac_lora_helpers.config import Config  # noqa: E402


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PROMPT or SEED that the shell exports must not decide a test."""
    for name in Config.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def need():
    """``need(condition, "what is missing")`` skips on a developer's machine and fails where all must be there (CI)."""

    def check(condition: object, missing: str) -> None:
        if not condition:
            (pytest.fail if os.environ.get("MAC_LORA_REQUIRE_ALL") == "1" else pytest.skip)(missing)

    return check
