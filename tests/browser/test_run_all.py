"""The five notebooks as a new user meets them: JupyterLab, one after the other, Run All."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from browser import lab as jupyter
from mac_lora_helpers.artifacts import NOTEBOOKS

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, need):
    need(jupyter.browser_path(), "no Chromium or Chrome is installed")
    root, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns("outputs", ".ipynb_checkpoints"))
    with jupyter.jupyterlab(root, home) as running:
        yield running, root


@pytest.fixture
def page(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=jupyter.browser_path(), args=flags)
        yield browser.new_page(viewport={"width": 1200, "height": 900})
        browser.close()


def test_run_all_in_order(lab, page):
    """No red cell, the run directory beside the notebooks' folder, and no request off this machine."""
    running, root = lab
    strangers = []
    page.on("request", lambda r: strangers.append(r.url) if not r.url.startswith((running.address, "data:", "blob:")) else None)
    for name in NOTEBOOKS:
        jupyter.open_notebook(page, running, name)
        jupyter.run_all(page)
        if folder := os.environ.get("MAC_LORA_SCREENSHOTS"):
            jupyter.screenshot(page, Path(folder) / f"{name}.png")
        assert jupyter.errors(page) == [], name
    assert (root / "outputs" / "local-lora" / "export" / "push.json").exists()
    assert [url for url in strangers if not url.startswith(running.address.replace("http", "ws"))] == []
