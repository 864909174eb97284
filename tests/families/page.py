"""What the families' tests found, kept in ``results.json``, and the page ``docs/models.md`` that is written from it.

``python tests/families/page.py`` writes the page again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def record(family: str, found: dict[str, Any]) -> None:
    """Adds columns to a family's row, where the tests were asked to write (``make families``)."""
    import os

    if os.environ.get("MAC_LORA_WRITE_MODELS") != "1":
        return
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    known[family] = {**known.get(family, {}), **found}
    RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def page() -> str:
    """The page as Markdown."""
    return ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
