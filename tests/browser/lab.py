"""A real JupyterLab and a real browser, both with temporary settings and nothing of the user's."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
NOTEBOOK = f"{PANEL} .jp-Notebook"
#: The outputs of kind error, from the notebook's model: on the page they look like anything else written to stderr.
_ERRORS = """window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code')
        .flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type === 'error')"""

_FINISHED = (
    "{ const prompts = [...document.querySelectorAll(panel + ' .jp-CodeCell .jp-InputPrompt')].map(p => p.innerText);"
    f" if (prompts.some(p => p.includes('*'))) return false; if ({_ERRORS}.length) return true;"
    " return prompts.length && prompts.every(p => /\\[\\d+\\]/.test(p)); }"
)


@dataclass(frozen=True)
class Lab:
    """Address and token of a running server; its root folder holds ``notebooks/``."""

    address: str
    token: str

    def url(self, notebook: str) -> str:
        return f"{self.address}/lab/tree/notebooks/{notebook}.ipynb?token={self.token}&reset"


def browser_path() -> str | None:
    """An installed Chromium or Chrome; the browser that playwright would download is not used."""
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    return shutil.which("chromium") or shutil.which("google-chrome") or (mac if os.path.exists(mac) else None)


@contextlib.contextmanager
def jupyterlab(root: Path, home: Path, **variables: str) -> Iterator[Lab]:
    """Starts JupyterLab over ``root``; every settings folder lies below ``home``; the kernels see ``variables``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    folders = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    _settings(home / "settings")
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        "--allow-root", "--expose-app-in-browser", f"--ServerApp.root_dir={root}",
    ]  # fmt: skip
    environment = {
        **os.environ,
        **variables,
        **folders,
        "JUPYTER_TOKEN": token,
        "JUPYTER_PATH": os.path.join(sys.prefix, "share", "jupyter"),
    }
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=root)
        try:
            _wait(f"http://127.0.0.1:{port}/api", server, home / "server.log")
            yield Lab(f"http://127.0.0.1:{port}", token)
        finally:
            server.terminate()
            server.wait(30)


def _settings(folder: Path) -> None:
    values = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
        "notebook-extension/tracker": {"windowingMode": "none"},
        "docmanager-extension/plugin": {"autosave": False},
    }
    for name, value in values.items():
        file = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))


def _wait(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise RuntimeError("JupyterLab did not start:\n" + log.read_text()[-2000:])


@contextlib.contextmanager
def browser_page(**context: Any) -> Iterator[Any]:
    """A page of a headless browser; ``context``: what playwright's ``new_page`` takes."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=flags)
        try:
            yield browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **context})
        finally:
            browser.close()


def open_notebook(page: Any, lab: Lab, name: str) -> None:
    """Opens a notebook and waits until its kernel is ready."""
    page.goto(lab.url(name))
    page.wait_for_selector(NOTEBOOK, timeout=60_000)
    wait_idle(page)


def wait_idle(page: Any, seconds: float = 60) -> None:
    """The status bar reads idle; the notebook's own mark does so before the kernel has connected."""
    page.wait_for_function(
        "() => (document.querySelector('#jp-main-statusbar')?.innerText || '').includes('| Idle')", timeout=1000 * seconds
    )


def run_all(page: Any, seconds: float = 300) -> None:
    """Run All Cells, as the menu does, and waits for the last cell."""
    start(page, "notebook:run-all-cells")
    finished(page, seconds)


def start(page: Any, command: str, cell: str | None = None) -> None:
    """Starts a command of JupyterLab's menus, with the named cell selected, and does not wait for it.

    Args:
        cell: the start of a code cell's source.
    """
    if cell is not None:
        select(page, cell)
    page.evaluate("(command) => { window.jupyterapp.commands.execute(command); }", command)
    page.wait_for_timeout(300)


def select(page: Any, cell: str) -> None:
    """Makes a code cell the active one."""
    found = page.evaluate(
        """(text) => { const content = window.jupyterapp.shell.currentWidget.content;
        const at = content.widgets.findIndex(c => c.model.type === 'code' && c.model.sharedModel.getSource().includes(text));
        content.activeCellIndex = at; return at; }""",
        cell,
    )
    assert found >= 0, f"no cell holds {cell!r}"


def finished(page: Any, seconds: float = 300) -> None:
    """Waits until every code cell has run; after an error, for the error."""
    page.wait_for_function(f"(panel) => {_FINISHED}", arg=PANEL, timeout=1000 * seconds)
    wait_idle(page)


def type_into(page: Any, name: str, text: str) -> None:
    """Types a value into the field of that accessible name, by keyboard alone, and leaves it with Tab."""
    field = page.locator(NOTEBOOK).get_by_label(name, exact=True)
    # Through the field, not the page: JupyterLab may take the focus for a cell that has just ended.
    field.press("ControlOrMeta+a")
    field.press_sequentially(text)
    field.press("Tab")


def errors(page: Any) -> list[str]:
    """Texts of the cells' errors, as the page shows them."""
    return page.evaluate(f"() => {_ERRORS}.map(o => o.traceback.join('\\n') || o.ename + ': ' + o.evalue)")


def screenshot(page: Any, file: Path, width: int = 1200) -> None:
    """The whole notebook on one picture: the window is made as high as the notebook is."""
    page.evaluate("() => window.jupyterapp.shell.leftCollapsed || window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": width, "height": 900})
    inner = page.evaluate(f"() => Math.max(...[...document.querySelectorAll('{PANEL} *')].map(item => item.scrollHeight))")
    page.set_viewport_size({"width": width, "height": min(16_000, inner + 160)})
    page.evaluate(f"() => document.querySelectorAll('{PANEL} *').forEach(item => {{ item.scrollTop = 0; }})")
    page.wait_for_timeout(500)
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=file)
    page.set_viewport_size({"width": width, "height": 900})
