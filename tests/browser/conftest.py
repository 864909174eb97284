"""One JupyterLab and one browser for all the browser tests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from browser import lab as jupyter

ROOT = Path(__file__).parents[2]
#: The street in short: fewer steps and questions than the preset's.
SHORT = {"MAX_STEPS": "40", "LEARNING_RATE": "0.001", "EVAL_EXAMPLES": "12"}


@dataclass
class Desk:
    """A page in a running JupyterLab over a copy of the notebooks.

    Attributes:
        complaints: errors in the browser's console. strangers: addresses off this machine that the page asked for.
    """

    page: Any
    lab: jupyter.Lab
    root: Path
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._seen(request.url))
        self.page.on("websocket", lambda socket: self._seen(socket.url))

    def _seen(self, url: str) -> None:
        home = (self.lab.address, self.lab.address.replace("http", "ws", 1), "data:", "blob:")
        if not url.startswith(home):
            self.strangers.append(url)

    @property
    def run_dir(self) -> Path:
        return self.root / "outputs" / "local-lora"


# Not for the whole session: while it is open, Playwright's event loop counts as running in every other test of this process.
@pytest.fixture(scope="module")
def desk(tmp_path_factory, need):
    need(jupyter.browser_path(), "no Chromium or Chrome is installed")
    root, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns("outputs", ".ipynb_checkpoints"))
    with jupyter.jupyterlab(root, home, **SHORT) as lab, jupyter.browser_page() as page:
        yield Desk(page, lab, root)
