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
def jupyterlab(root: Path, home: Path) -> Iterator[Lab]:
    """Starts JupyterLab over ``root``; every settings folder lies below ``home``."""
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
    environment = {**os.environ, **folders, "JUPYTER_TOKEN": token, "JUPYTER_PATH": os.path.join(sys.prefix, "share", "jupyter")}
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
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        """(panel) => { const prompts = [...document.querySelectorAll(panel + ' .jp-CodeCell .jp-InputPrompt')].map(p => p.innerText);
        return prompts.length && prompts.every(p => /\\[\\d+\\]/.test(p)); }""",
        arg=PANEL,
        timeout=1000 * seconds,
    )
    wait_idle(page)


def errors(page: Any) -> list[str]:
    """Texts of the red outputs."""
    found = page.locator(f"{NOTEBOOK} .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
    return [found.nth(i).inner_text() for i in range(found.count())]


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
