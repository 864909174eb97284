"""What lies in a run directory: every artefact's name once, who makes it, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.redaction import portable

NOTEBOOKS = (
    "01_environment_check",
    "02_data_formatting",
    "03_lora_training",
    "04_evaluation",
    "05_export_and_push",
)

#: Artefact → (path below the run directory, number of the notebook that makes it; 0: the suite).
ARTIFACTS: dict[str, tuple[str, int]] = {
    "environment": ("environment.json", 1),
    "data": ("data", 2),
    "train": ("data/train.jsonl", 2),
    "valid": ("data/valid.jsonl", 2),
    "test": ("data/test.jsonl", 2),
    "tokens": ("data/tokens", 2),
    "manifest": ("data/manifest.json", 2),
    "data_report": ("data/report.png", 2),
    "rejected": ("data/rejected.jsonl", 2),
    "train_config": ("train_config.json", 3),
    "checkpoints": ("checkpoints", 3),
    "adapter": ("adapter", 3),
    "train_log": ("train_log.jsonl", 3),
    "train_metrics": ("train_metrics.json", 3),
    "loss_figure": ("loss.png", 3),
    "memory_figure": ("memory.png", 3),
    "eval_metrics": ("eval/metrics.json", 4),
    "eval_samples": ("eval/samples.jsonl", 4),
    "eval_figure": ("eval/comparison.png", 4),
    "export": ("export", 5),
    "merged": ("export/merged", 5),
    "gguf": ("export/gguf", 5),
    "mlx": ("export/mlx", 5),
    "job": ("export/job", 5),
    "card": ("export/README.md", 5),
    "equivalence": ("export/equivalence.json", 5),
    "push": ("export/push.json", 5),
    "job_result": ("job_result.json", 5),
    "job_log": ("job.log", 5),
    "fetched": ("fetched.json", 5),
    "executed": ("notebooks", 0),
    "run": ("run.json", 0),
    "draft": ("draft.json", 0),
}

_LOSS = (float, None)
#: JSON artefact → its shape, as far as other notebooks and programs read it.
SHAPES: dict[str, Any] = {
    "environment": {
        "packages?": dict,
        "device?": {"name?": str},
        "dtype?": {"name?": str},
        "checks?": [{"name": str, "status": str}],
        "verdict?": {"where": str, "reasons": [str]},
    },
    "manifest": {
        "rows?": {"read": int, "accepted": int, "rejected": int},
        "splits?": {"train": int, "valid": int, "test": int},
        "tokens?": {"total": int, "supervised": int},
        "truncation?": dict,
        "template?": {"name?": str},
        "config?": dict,
        "fingerprint": str,
        "fingerprint_parts?": dict,
    },
    "train_config": {"config?": dict, "lora?": dict, "base?": (dict, None), "versions?": dict},
    "train_metrics": {"steps": int, "first_loss?": _LOSS, "last_loss?": _LOSS, "audit?": dict, "versions?": dict},
    "eval_metrics": {"base": {"loss?": _LOSS}, "tuned": {"loss?": _LOSS}, "examples?": int, "difference?": dict, "findings?": [str]},
    "equivalence": {"artefacts": [{"name": str, "passed": (bool, None)}], "control?": (dict, None), "conditions?": dict},
    "push": {"repo_id": (str, None), "dry_run": bool, "files": [{"path": str}], "url?": (str, None)},
    "run": {"status": str, "notebooks": [{"name": str, "status": str, "seconds": float}]},
}

#: JSON artefacts that carry a digest of themselves: what later stages decide by. Edited or damaged, they are refused.
SEALED = ("manifest", "train_config", "train_metrics", "eval_metrics")
#: JSON artefact → the lines beside it whose digest it gets when its stage is finished.
LINES = {"train_metrics": "train_log", "eval_metrics": "eval_samples"}
#: What a notebook reads at its end, and looks at before its first minute.
EARLY = {4: ("manifest", "train_config"), 5: ("environment", "manifest", "train_config", "train_metrics", "eval_metrics")}
#: Parameters by which a run acts on the world or runs foreign code: this run's own words decide, never a file.
CONSENT = ("trust_remote_code", "push", "submit_job")
#: Records of what left the house: a new export replaces them only where it writes its own.
LASTING = ("job", "push", "job_result", "job_log", "fetched")
#: Folders that hold artefacts and other things.
HOLDERS = sorted({path.split("/")[0] for path, _ in ARTIFACTS.values() if "/" in path})


def notebooks_folder(named: str | Path | None = None) -> Path:
    """Where the notebooks are that will be executed: the project's own, inside the package or beside it, unless others are named.

    What happens to lie in the current folder is not executed.

    Raises:
        InputError: they are not there.
    """
    package, first = Path(__file__).parent, f"{NOTEBOOKS[0]}.ipynb"
    beside = [package.parent / "notebooks"] if (package.parent / "pyproject.toml").is_file() else []
    for folder in [Path(named).expanduser()] if named else [package / "notebooks", *beside]:
        if (folder / first).is_file():
            return folder
    where = f"--notebooks {portable(str(named))}" if named else portable(str(package))
    raise InputError(f"the notebooks are not here ({first} is missing)", where=where, fix="name their folder with --notebooks")
