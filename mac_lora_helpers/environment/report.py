"""The whole environment check: everything read, every finding, the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mac_lora_helpers import threads
from mac_lora_helpers.config import Config
from mac_lora_helpers.environment import checks, storage
from mac_lora_helpers.environment.checks import Check, warn
from mac_lora_helpers.environment.device import Choice
from mac_lora_helpers.environment.machine import Machine, Package, read_machine, read_packages
from mac_lora_helpers.environment.probe import Probe, this_machine
from mac_lora_helpers.environment.verdict import Verdict, decide_verdict, memory_needed, vocabulary_of
from mac_lora_helpers.errors import CheckFailed, first_line
from mac_lora_helpers.model import Base, find_base
from mac_lora_helpers.redaction import portable_tree


@dataclass(frozen=True)
class EnvironmentReport:
    """What the check found; ``to_dict`` is ``environment.json``."""

    machine: Machine
    packages: list[Package]
    device: Choice
    dtype: Choice
    model: Base
    checks: list[Check]
    verdict: Verdict
    torch: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Name, status, detail and fix of each finding, for a table."""
        return [tuple(check.to_dict().values()) for check in self.checks]

    @property
    def failed(self) -> list[Check]:
        """Findings that make training impossible as asked."""
        return [check for check in self.checks if check.status == "fail"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without home directory and tokens."""
        kept = "python platform machine chip gpu_cores memory_bytes free_memory_bytes macos_version rosetta disk_free_bytes"
        found = {
            **{name: getattr(self.machine, name) for name in kept.split()},
            "packages": {package.name: package.version for package in self.packages},
            "tested": {package.name: package.tested for package in self.packages},
            "device": self.device.to_dict(),
            "dtype": self.dtype.to_dict(),
            "model": {name: getattr(self.model, name) for name in ("name", "parameters", "source", "kind")},
            "torch": self.torch,
            "checks": [check.to_dict() for check in self.checks],
            "verdict": self.verdict.to_dict(),
        }
        return json.loads(json.dumps(portable_tree(found), ensure_ascii=False))

    def require_trainable(self) -> None:
        """Stops where training cannot work.

        Raises:
            CheckFailed: a finding failed (the verdict unsupported always comes with one); all are named with their fixes.
        """
        if self.failed:
            what = "; ".join(f"{check.name}: {check.detail}" for check in self.failed)
            fixes = "; ".join(dict.fromkeys(check.fix for check in self.failed))
            raise CheckFailed(f"this environment cannot train: {what}", where="environment check", fix=fixes)


def check_environment(config: Config, probe: Probe | None = None, needed: float | None = None) -> EnvironmentReport:
    """Reads machine, packages, torch, model, disk and Hub, and judges them. Never raises for what it finds.

    Args:
        config: the run to judge.
        probe: where the answers come from; this machine unless given.
        needed: bytes of the memory forecast; None: a rough sum from the model's size.
    """
    probe = probe or this_machine()
    machine, packages, facts = read_machine(config.out_dir, probe), read_packages(probe), probe.torch_facts()
    model = find_base(config, probe.cached_folder)
    device, dtype, chosen = checks.device_and_dtype(config, machine, facts)
    needed = needed or memory_needed(model, config, dtype.name)
    questions: dict[str, Callable[[], list[Check]]] = {
        "Platform": lambda: checks.check_platform(machine),
        "Memory": lambda: [checks.check_memory(machine, needed)],
        "Variables": lambda: checks.check_variables(machine, probe.env),
        "torch": lambda: [checks.check_torch(facts, packages), *chosen],
        "Numbers": lambda: checks.check_numbers(device, vocabulary_of(model), facts),
        "Threads": lambda: [checks.ok("Threads", f"the CPU's threads wait {threads.settle()}")],
        "Packages": lambda: storage.check_packages(packages),
        "Model": lambda: [storage.check_model(model)],
        "Disk": lambda: [storage.check_disk(config, model, probe)],
        "Hub": lambda: storage.check_hub(config, model, probe),
    }
    found = _point_to_cause([check for name, question in questions.items() for check in _attempt(name, question)])
    return EnvironmentReport(
        machine, packages, device, dtype, model, found, decide_verdict(machine, device, model, config, needed, found, facts), facts
    )


def _attempt(name: str, question: Callable[[], list[Check]]) -> list[Check]:
    """A check that trips over an odd machine becomes a finding of its own instead of ending the others."""
    try:
        return question()
    except Exception as error:
        what = f"this check could not be made ({type(error).__name__}: {first_line(error)})"
        return [warn(name, what, "the other findings hold; look into this one by hand")]


def _point_to_cause(found: list[Check]) -> list[Check]:
    """What follows from the wrong platform or a too old macOS is mended there: pip has no torch for those."""
    cause = next((check for check in found if check.status == "fail" and check.name in ("Platform", "macOS", "torch")), None)
    follows = ("torch", "Package torch", "Device")
    return [replace(c, fix=cause.fix) if cause and c is not cause and c.name in follows and c.fix else c for c in found]
