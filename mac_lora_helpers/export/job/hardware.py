"""What a job's machine is and what it costs: asked of the Hub when it is needed, never written down here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.export.hub.errors import HubError, within
from mac_lora_helpers.export.job import record as records
from mac_lora_helpers.export.job.errors import ask

#: Seconds that the question may take.
PATIENCE = 8.0
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_FACTORS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class JobCost:
    """The machine as the Hub describes it now, and what a job on it may cost.

    Attributes:
        machine: processor, memory and GPU in words; empty if the Hub was not asked or did not answer.
        dollars_per_second: price while the job runs; None if not known.
        limit: seconds after which the job is stopped. here: seconds that training took on this machine; None if not known.
        why_not: why machine or price are not known.
    """

    flavor: str
    limit: float
    machine: str = ""
    dollars_per_second: float | None = None
    here: float | None = None
    why_not: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        if self.dollars_per_second is None:
            why = f"not known: {self.why_not}" if self.why_not else "not known"
            return [
                *([("machine", self.machine)] if self.machine else []),
                ("price", f"{why}; `hf jobs hardware` lists machines and prices"),
            ]
        rows = [("machine", self.machine), ("price", f"${self.dollars_per_second * 3600:.2f} an hour, read from the Hub just now")]
        rows.append(("costs at most", f"${self.dollars_per_second * self.limit:.2f}: the whole time limit of {_hours(self.limit)}"))
        if self.here is not None:
            cost = self.dollars_per_second * self.here
            rows.append(("at this machine's speed", f"${cost:.4f} for the {self.here:.0f} s that training took here, start-up not counted"))
        return rows


def job_cost(run: RunDir, config: Config) -> JobCost:
    """Asks the Hub for the written job's machine and price. Without a network, or offline, it says so and goes on.

    Raises:
        MissingArtifact: no job was written.
    """
    record = records.read(run)
    limit = seconds_of(record["timeout"])
    if (quiet := _offline(config)) is not None:
        return JobCost(record["flavor"], limit, why_not=quiet)
    try:
        found = within(PATIENCE, lambda: ask("jobs/hardware", _list, waits=()), "jobs/hardware")
    except HubError as error:
        return JobCost(record["flavor"], limit, why_not=error.what)
    machine = next((item for item in found if item.name == record["flavor"]), None)
    if machine is None:
        return JobCost(record["flavor"], limit, why_not=f"the Hub lists no flavor {record['flavor']} now")
    return _cost(machine, record, limit, run)


def seconds_of(timeout: str) -> float:
    """Seconds of a time limit such as 90m or 2h."""
    return float(timeout[:-1]) * _FACTORS[timeout[-1]]


def _offline(config: Config) -> str | None:
    """Why the Hub is not asked: the embedded run without a login talks to nobody."""
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        return "the Hub is switched off by HF_HUB_OFFLINE"
    if config.preset == "smoke" and get_token() is None:
        return "nobody is logged in, and the embedded run asks nobody"
    return None


def _list() -> list[Any]:
    from huggingface_hub import HfApi

    return HfApi(library_name="mac-lora-helpers").list_jobs_hardware()


def _cost(machine: Any, record: Mapping[str, Any], limit: float, run: RunDir) -> JobCost:
    gpu = machine.accelerator
    words = [machine.pretty_name, machine.cpu, f"{machine.ram} memory", f"{machine.ephemeral_storage} disk"]
    words += [f"{gpu.quantity} × {gpu.model}, {gpu.vram} in all"] if gpu else ["no GPU"]
    unit = _SECONDS.get(str(machine.unit_label).lower().rstrip("s"))
    price = machine.unit_cost_usd / unit if unit else None
    why = "" if unit else f"the Hub gives a price per {machine.unit_label}"
    return JobCost(record["flavor"], limit, ", ".join(words), price, _seconds_here(record, run), why)


def _seconds_here(record: Mapping[str, Any], run: RunDir) -> float | None:
    """How long the local training took, where the job does the same work."""
    if record["differences"] or not run.has("train_metrics"):
        return None
    seconds = run.read_json("train_metrics").get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else None


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"
