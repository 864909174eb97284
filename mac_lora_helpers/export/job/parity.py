"""Is the cloud run the same run? The job's script runs here for a few steps, beside the local recipe, and both are compared.

Compared: the tokens' fingerprint, every batch (ids and labels, in order), every resolved argument, and the losses.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config, resolve
from mac_lora_helpers.errors import CheckFailed, MissingArtifact
from mac_lora_helpers.export.job import record as records
from mac_lora_helpers.export.job import script as job_script
from mac_lora_helpers.export.job.record import SCRIPT
from mac_lora_helpers.files import portable

#: Largest difference of a step's loss, in nats per token.
TOLERANCE = 1e-5
#: What may differ, and why: places and names of this machine's run, nothing that decides a number.
ALLOWED = {
    "config.out_dir": "the job has a run directory of its own",
    "config.push": "a job pushes, or its result is lost",
    "config.repo_id": "a job must know where to push to",
    "config.push_artifacts": "a job pushes the adapter and its records",
    "config.adapter_dir": "belongs to the local run",
    "config.gguf_types": "belongs to the local run",
    "config.job_flavor": "belongs to the command",
    "config.job_timeout": "belongs to the command",
    "config.job_overrides": "the job was written from them",
    "config.check_parity": "belongs to the local run",
    "config.submit_job": "belongs to the local run",
    "config.track": "a dashboard of the local machine",
    "config.device": "auto in the job; the device that was taken is compared by the losses",
    "config.model_id": "a local model travels in inputs.zip; its tokenizer is compared by the fingerprint, its weights by the losses",
    "config.data_files": "local data travel in inputs.zip; they are compared by the fingerprint",
    "SFTConfig.output_dir": "the job has a run directory of its own",
    "SFTConfig.logging_dir": "the job has a run directory of its own",
    "LoraConfig.base_model_name_or_path": "the same base at another place",
}
_PARITY = "parity.json"


@dataclass(frozen=True)
class ParityReport:
    """The comparison. ``record`` is the content of ``export/job/parity.json``."""

    record: dict[str, Any]

    @property
    def passed(self) -> bool:
        return bool(self.record["passed"])

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, passed or failed, detail) for a table."""
        if not self.record["checks"]:
            return [("parity", "not checked", "check_parity is off")]
        return [(check["name"], "passed" if check["passed"] else "failed", check["detail"]) for check in self.record["checks"]]

    def require_passed(self) -> None:
        """
        Raises:
            CheckFailed: the job would not be the same run; names what differs.
        """
        failed = [f"{check['name']}: {check['detail']}" for check in self.record["checks"] if not check["passed"]]
        if failed:
            raise CheckFailed("the job is not the same run", where="; ".join(failed), fix="write the job again from the run as it is now")


def check_parity(run: RunDir, config: Config, steps: int = 10, python: Sequence[str] = (sys.executable,)) -> ParityReport:
    """Runs recipe and script side by side for ``steps`` optimizer steps and writes ``export/job/parity.json``.

    What was asked to differ (``job_overrides``) differs on both sides, so that what is compared is the rest; it is listed
    as allowed. A base that the job takes from the Hub and the local run from a folder is taken from the folder here.

    Args:
        config: the local run's, as notebook 05 has it.
        python: what runs the script: this Python, or for example ``("uv", "run")`` for an environment made from its header.

    Raises:
        MissingArtifact: no job was written. CheckFailed: the script did not get through.
    """
    record, script = records.read(run), run.path("job") / SCRIPT
    if not script.is_file():
        fix = "write the job first: export.write_job(run, config)"
        raise MissingArtifact(f"export/job/{SCRIPT} is missing", where=portable(str(run.root)), fix=fix)
    saved = run.config("train_config")
    asked = [item["parameter"] for item in record["differences"]]
    model = saved["model_id"] if "model_id" in asked and Path(saved["model_id"]).expanduser().is_dir() else None
    more = ["--local-model", str(Path(model).expanduser().resolve())] if model else []
    with tempfile.TemporaryDirectory(prefix="mac-lora-parity-") as scratch:
        local = _local(run, config, record, Path(scratch) / "local", steps)
        job = _job([*python, str(script), *more], Path(scratch), steps, saved.get("device", config.device))
    compared = compare(local, job, {f"config.{name}": "asked for by job_overrides" for name in asked})
    (run.path("job") / _PARITY).write_text(json.dumps(compared, indent=2) + "\n", encoding="utf-8")
    return ParityReport(compared)


def prove_job(run: RunDir, config: Config) -> ParityReport:
    """:func:`check_parity` where the parameter of that name is on; an empty report otherwise.

    Differences that ``job_overrides`` asked for are allowed. Raises as :func:`check_parity`.
    """
    return check_parity(run, config) if config.check_parity else ParityReport({"passed": False, "checks": []})


def _local(run: RunDir, config: Config, record: Mapping[str, Any], folder: Path, steps: int) -> dict[str, Any]:
    """Notebook 03's calls on the tokens of 02 as they stand, in a run directory of their own; new data are made anew."""
    scratch, saved = RunDir(folder), run.config("train_config")
    if run.has("environment"):
        shutil.copyfile(run.need("environment"), scratch.path("environment"))
    trained = {name: saved[name] for name in config.names("data", "training") if name in saved}
    asked = {item["parameter"]: record["parameters"][item["parameter"]] for item in record["differences"]}
    asked |= {name: value for name, value in record["at_home"].items() if name in asked}
    if "model_id" in asked and Path(saved["model_id"]).expanduser().is_dir():
        del asked["model_id"]
    short = {"max_steps": steps, "logging_steps": 1, "out_dir": str(folder)}
    resolved = resolve({**config.model_dump(), **trained, **asked, **short}, env={})
    with contextlib.redirect_stdout(io.StringIO()):
        if record["fingerprint"]:
            shutil.copytree(run.need("data"), scratch.path("data"))
        else:
            job_script.write_data(scratch, resolved)
        return job_script.traced(scratch, resolved)


def _job(words: Sequence[str], folder: Path, steps: int, device: str) -> dict[str, Any]:
    trace = folder / "trace.json"
    options = ["--any-device", "--no-push", "--processes", "1", "--max-steps", str(steps), "--device", device]
    options += ["--trace", str(trace), "--out", str(folder / "job")]
    done = subprocess.run([*words, *options], capture_output=True, text=True, check=False)
    if done.returncode or not trace.is_file():
        said = portable(" ".join(done.stderr.strip().splitlines()[-4:]))
        fix = "correct what it names, then write the job again"
        raise CheckFailed("the job's script did not get through", where=f"exit {done.returncode}: {said}", fix=fix)
    return json.loads(trace.read_text(encoding="utf-8"))


def compare(local: Mapping[str, Any], job: Mapping[str, Any], asked: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The record of two traces: one check each for data, batches, arguments and losses, and the allowed differences.

    Args:
        asked: names that were asked to differ, and why; they are listed as allowed although both traces have them.
    """
    differing, allowed = _differences(local["resolved"], job["resolved"]), {**ALLOWED, **(asked or {})}
    named = [name for name in differing if name not in allowed]
    here, there = local["losses"][:10], job["losses"][:10]
    apart = [abs(a - b) for a, b in zip(here, there, strict=False)]
    same_losses = len(here) == len(there) > 0 and all(difference <= TOLERANCE for difference in apart)  # NaN is no match
    order = next((i for i, (a, b) in enumerate(zip(local["batches"], job["batches"], strict=False)) if a != b), None)
    same_batches = order is None and len(local["batches"]) == len(job["batches"]) > 0
    prints = local["fingerprint"], job["fingerprint"]
    checks = [
        _check("fingerprint", prints[0] == prints[1], f"{prints[0][:12]} here, {prints[1][:12]} in the job"),
        _check("batches", same_batches, f"{len(local['batches'])} batches" if same_batches else f"batch {order} is the first that differs"),
        _check("arguments", not named, ", ".join(f"{name} ({differing[name][0]} → {differing[name][1]})" for name in named) or "all equal"),
        _check("losses", same_losses, f"largest difference {max(apart, default=math.nan):.2g} over {len(apart)} steps"),
    ]
    return {
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
        "allowed": [{"name": name, "why": allowed[name]} for name in sorted({*differing, *(asked or {})}) if name in allowed],
        "losses": {"local": _finite(here), "job": _finite(there)},
        "tolerance": TOLERANCE,
    }


def _finite(losses: Sequence[float]) -> list[float | None]:
    return [loss if math.isfinite(loss) else None for loss in losses]


def _check(name: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": bool(passed), "detail": portable(detail)}


def _differences(here: Mapping[str, Any], there: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name → both values, for every leaf that is not equal."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*here, *there}):
        a, b = here.get(name), there.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found[prefix + name] = (a, b)
    return found
