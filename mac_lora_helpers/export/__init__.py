"""Stage 05: merge, GGUF, MLX, equivalence, model card, the Hub and the cloud job.

Names load their module on first use; importing this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Public name → module of this package that holds it. No module may bear a public function's name: importing
#: the module would put it in the function's place.
_HOMES = {
    "open_source": "source",
    "Source": "source",
    "write_merged": "merged",
    "Merged": "merged",
    "Gguf": "gguf.write",
    "write_mlx": "mlx",
    "Mlx": "mlx",
    "Reference": "equivalence.reference",
    "Check": "equivalence.check",
    "ask_exported": "gguf.chat",
    "write_card": "card.write",
    "plan_push": "hub.plan",
    "PushPlan": "hub.plan",
    "push": "hub.send",
    "finish_push": "hub.send",
    "refusals": "hub.errors",
    "HubError": "hub.errors",
    "offer_job": "job.write",
    "write_job": "job.write",
    "submit_job": "job.submit",
    "fetch_job": "job.fetch",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
