"""Stage 04: base against tuned on held-out examples, and what the numbers support.

One loaded model answers as both, with the adapter off and on. Names load their module on first use;
importing this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Public name → module of this package that holds it. No module may bear a public function's name: importing
#: the module would put it in the function's place.
_HOMES = {
    "load": "trained",
    "Trained": "trained",
    "prepare": "trained",
    "check_fits": "trained",
    "check_applied": "trained",
    "compare_losses": "losses",
    "compare_general": "losses",
    "prompt_ids": "questions",
    "read_answer": "questions",
    "compare_answers": "answers",
    "sampling": "answers",
    "generate": "answers",
    "stream": "answers",
    "mark_difference": "metrics",
    "score": "scoring",
    "save": "scoring",
    "metric_rows": "scoring",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
