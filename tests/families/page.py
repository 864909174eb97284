"""What the families' tests found, kept in ``results.json``, and the page ``docs/models.md`` that is written from it.

``make families`` runs the tests and writes both. A test of another room adds columns of its own by ``record``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = """# Models

<!-- written by `make families` from tests/families/results.json; edit tests/families/page.py instead -->

Families of small models that are trained today. Each was made tiny by transformers' own classes, with the family's kinds of
layers and TRL's chat template where it ships one, and trained three steps on the CPU by the notebooks' own code. "yes" means
that every adapter moved and that the saved adapter gives the trained model's answers. It says that the code fits together, not
how well such a model learns. None was run on a Mac.

*targets* are what `lora_targets=auto` takes: the projections of attention, and of what stands in its place in hybrid models
(Mamba, linear attention, short convolutions). Never adapted: towers for images and sound, routers of experts, the output head.
*left out* names what a checkpoint has besides its language part: it is trained, evaluated and exported as a text model. *path*
is what `fast_path=auto` takes.

"""
FOOT = """
Any other causal language model of transformers is trained by the same rule; `lora_targets` names modules where the rule finds
none. A vision-text model whose language part transformers does not have as a text model (Qwen2.5-VL, for one) is refused in
notebooks 01 and 02. Mamba's `out_proj` gets no adapter: its fused kernels read the weight directly, and PEFT refuses it. A loss
that balances experts is off: their routers are not trained.
"""


def record(family: str, found: dict[str, Any]) -> None:
    """Adds columns to a family's row, where the tests were asked to write (``make families``)."""
    if os.environ.get("MAC_LORA_WRITE_MODELS") != "1":
        return
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    known[family] = {**known.get(family, {}), **found}
    RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def page() -> str:
    """The page as Markdown: a row for each family, a column for each thing that was recorded."""
    from families.models import FAMILIES

    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    columns = list(dict.fromkeys(name for row in known.values() for name in row))
    lines = [["family", *columns], ["---"] * (len(columns) + 1)]
    lines += [[one.name, *(_cell(known.get(one.name, {}).get(name)) for name in columns)] for one in FAMILIES]
    return HEAD + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + FOOT


def _cell(value: Any) -> str:
    """Lists with commas, names as code; nothing recorded is a dash."""
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value) or "–"
    return str(value) if value else "–"


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1]))
    PAGE.write_text(page(), encoding="utf-8")
