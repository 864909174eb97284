"""Stage 05: merge, GGUF, MLX, equivalence, model card, the Hub and the cloud job.

Names load their module on first use; importing this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Public name → module of this package that holds it. No module may bear a public function's name: importing
#: the module would put it in the function's place.
_HOMES = {
    "merge": "merge_adapter",
    "MergeReport": "merge_adapter",
    "write_gguf": "gguf.write",
    "GgufFile": "gguf.file",
    "ask_exported": "gguf.chat",
    "ask_rows": "engine_files",
    "write_engine_files": "engine_files",
    "write_mlx": "mlx.write",
    "MlxReport": "mlx.write",
    "mlx_to_peft": "mlx.adapter",
    "check_equivalence": "equivalence.check",
    "EquivalenceReport": "equivalence.check",
    "write_card": "card.write",
    "plan_push": "hub.plan",
    "PushPlan": "hub.plan",
    "push": "hub.send",
    "HubError": "hub.errors",
    "write_job": "job.write",
    "check_parity": "job.parity",
    "ParityReport": "job.parity",
    "prove_job": "job.parity",
    "job_cost": "job.hardware",
    "submit_job": "job.submit",
    "job_status": "job.submit",
    "cancel_job": "job.submit",
    "JobState": "job.submit",
    "follow_job": "job.follow",
    "job_logs": "job.follow",
    "fetch_job": "job.fetch",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
