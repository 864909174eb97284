"""How long notebook 03's memory bar takes to follow a change in a real JupyterLab: from the browser's event to the new bar.

The embedded model, after Run All of the notebooks 01 to 03 with a training of three steps; changes about two seconds apart.
Needs what the browser tests need.

    python benchmarks/form_in_browser.py
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import lab as jupyter  # noqa: E402

from mac_lora_helpers.artifacts import NOTEBOOKS  # noqa: E402

#: In this order: a number is typed, a word that is a choice is chosen.
CHANGES = [
    ("lora_r", "64"),
    ("per_device_train_batch_size", "4"),
    ("lora_targets", "all-linear"),
    ("lora_dropout", "0"),
    ("lora_r", "8"),
    ("lora_layers", "2"),
    ("fast_path", "off"),
    ("gradient_checkpointing", "true"),
    ("dtype", "bfloat16"),
]
CHOICES = {"fast_path", "gradient_checkpointing", "dtype"}
#: Notes when a field changed, and when the bar's words became others.
WATCH = """() => {
  const labels = () => [...document.querySelectorAll("[role=img]")].map((e) => e.getAttribute("aria-label") || "");
  const words = () => labels().find((label) => /fits?: needs about/.test(label));
  window.bar = { words: words(), changed: 0, followed: 0 };
  document.addEventListener("change", () => { window.bar.changed = performance.now(); window.bar.followed = 0; }, true);
  new MutationObserver(() => {
    const now = words();
    if (now && now !== window.bar.words) { window.bar.words = now; window.bar.followed ||= performance.now(); }
  }).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root, home = Path(temporary) / "project", Path(temporary) / "home"
        home.mkdir()
        shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns("outputs", ".ipynb_checkpoints"))
        with jupyter.jupyterlab(root, home, MAX_STEPS="3") as lab, jupyter.browser_page() as page:
            for name in NOTEBOOKS[:3]:
                jupyter.open_notebook(page, lab, name)
                jupyter.run_all(page)
            page.evaluate(WATCH)
            taken = [(name, value, followed(page, name, value)) for name, value in CHANGES]
    print("| change | ms |\n|---|---:|")
    for name, value, milliseconds in taken:
        print(f"| {name}={value} | {milliseconds} |")
    print(json.dumps({"longest_ms": max(milliseconds for _, _, milliseconds in taken)}))


def followed(page: Any, name: str, value: str) -> int:
    """Makes one change; milliseconds until the bar says something else."""
    if name in CHOICES:
        page.locator(jupyter.NOTEBOOK).get_by_label(name, exact=True).select_option(value)
    else:
        jupyter.type_into(page, name, value)
    page.wait_for_function("() => window.bar.followed > 0", timeout=30_000)
    page.wait_for_timeout(1500)
    return round(page.evaluate("() => window.bar.followed - window.bar.changed"))


if __name__ == "__main__":
    main()
