"""Pictures of every notebook after Run All, to look at: light, dark, and in a narrow window.

    python tools/screenshots.py [FOLDER] [--only 03] [--full]

Without ``--full`` the training is short (60 steps, 16 questions). Needs JupyterLab, playwright and an installed Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import lab as jupyter  # noqa: E402

from mac_lora_helpers.artifacts import NOTEBOOKS  # noqa: E402

#: Name of the picture → (theme, width of the window in pixels).
VIEWS = {"light": ("JupyterLab Light", 1200), "dark": ("JupyterLab Dark", 1200), "narrow": ("JupyterLab Light", 620)}
SHORT = {"MAX_STEPS": "60", "LEARNING_RATE": "0.001", "EVAL_EXAMPLES": "16"}


def main() -> int:
    """Runs the notebooks in order and takes three pictures of each; 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "outputs" / "screenshots")
    parser.add_argument("--only", action="append", default=[], metavar="NN", help="take pictures of this notebook; earlier ones still run")
    parser.add_argument("--full", action="store_true", help="the preset's own number of steps and questions")
    arguments = parser.parse_args()
    names = [name for name in NOTEBOOKS if not arguments.only or name[:2] in arguments.only]
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        root, home = Path(temporary) / "project", Path(temporary) / "home"
        home.mkdir()
        shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns("outputs", ".ipynb_checkpoints"))
        with jupyter.jupyterlab(root, home, **({} if arguments.full else SHORT)) as lab, jupyter.browser_page() as page:
            for name in NOTEBOOKS[: NOTEBOOKS.index(names[-1]) + 1]:
                failed += _run(page, lab, name)
                for view, (theme, width) in VIEWS.items() if name in names else ():
                    _picture(page, arguments.folder / f"{name}-{view}.png", theme, width)
    print(f"look at {arguments.folder}")
    return 1 if failed else 0


def _run(page: Any, lab: Any, name: str) -> bool:
    jupyter.open_notebook(page, lab, name)
    jupyter.run_all(page, seconds=900)
    for error in (found := jupyter.errors(page)):
        print(f"{name}: {error}", file=sys.stderr)
    return bool(found)


def _picture(page: Any, file: Path, theme: str, width: int) -> None:
    page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    page.wait_for_function(
        "(light) => document.body.getAttribute('data-jp-theme-light') === light", arg="false" if "Dark" in theme else "true", timeout=30_000
    )
    jupyter.screenshot(page, file, width)
    print(file.name, flush=True)


if __name__ == "__main__":
    sys.exit(main())
