"""The whole environment check: everything read, every finding, the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.environment import checks_machine, checks_storage, checks_torch
from mac_lora_helpers.environment.checks import Check, warn
from mac_lora_helpers.environment.device import Choice
from mac_lora_helpers.environment.fit import memory_needed
from mac_lora_helpers.environment.machine import Machine, read_machine
from mac_lora_helpers.environment.packages import Package, read_packages
from mac_lora_helpers.environment.probe import Probe, this_machine
from mac_lora_helpers.environment.verdict import Verdict, decide_verdict
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.files import portable
from mac_lora_helpers.model import Base, find_base


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
        machine = self.machine
        found = {
            "python": machine.python,
            "platform": machine.platform,
            "machine": machine.machine,
            "chip": machine.chip,
            "gpu_cores": machine.gpu_cores,
            "memory_bytes": machine.memory_bytes,
            "free_memory_bytes": machine.free_memory_bytes,
            "macos_version": machine.macos_version,
            "rosetta": machine.rosetta,
            "disk_free_bytes": machine.disk_free_bytes,
            "packages": {package.name: package.version for package in self.packages},
            "tested": {package.name: package.tested for package in self.packages},
            "device": self.device.to_dict(),
            "dtype": self.dtype.to_dict(),
            "model": {"name": self.model.name, "parameters": self.model.parameters, "source": self.model.source, "kind": self.model.kind},
            "torch": self.torch,
            "checks": [check.to_dict() for check in self.checks],
            "verdict": self.verdict.to_dict(),
        }
        return json.loads(portable(json.dumps(found, ensure_ascii=False)))

    def require_trainable(self) -> None:
        """Stops where training cannot work.

        Raises:
            CheckFailed: a finding failed (the verdict unsupported always comes with one); all are named with their fixes.
        """
        if not self.failed:
            return
        what = "; ".join(f"{check.name}: {check.detail}" for check in self.failed)
        fixes = "; ".join(dict.fromkeys(check.fix for check in self.failed))
        raise CheckFailed(f"this environment cannot train: {what}", where="environment check", fix=fixes)


def check_environment(config: Config, probe: Probe | None = None) -> EnvironmentReport:
    """Reads machine, packages, torch, model, disk and Hub, and judges them. Never raises for what it finds.

    Args:
        config: the run to judge.
        probe: where the answers come from; this machine unless given.
    """
    probe = probe or this_machine()
    machine, packages, facts = read_machine(config.out_dir, probe), read_packages(probe), probe.torch_facts()
    model = _model(config, probe)
    device, dtype, chosen = checks_torch.device_and_dtype(config, machine, facts)
    checks = [
        *_machine_checks(machine, config, model, dtype, probe),
        *_torch_checks(machine, config, device, packages, facts),
        *chosen,
        *_attempt("Packages", lambda: checks_storage.check_packages(packages)),
        *_attempt("Model", lambda: [checks_storage.check_model(model, config)]),
        *_attempt("Disk", lambda: [checks_storage.check_disk(config, model, probe)]),
        *_attempt("Home directory", lambda: checks_storage.check_home(probe)),
        *_attempt("Hub", lambda: checks_storage.check_hub(config, model, probe)),
    ]
    checks = _point_to_cause(checks)
    verdict = decide_verdict(machine, device, dtype, model, config, checks, facts)
    return EnvironmentReport(machine, packages, device, dtype, model, checks, verdict, facts)


def _machine_checks(machine: Machine, config: Config, model: Base, dtype: Choice, probe: Probe) -> list[Check]:
    requires_python = (probe.metadata() or {}).get("requires_python")
    needed = memory_needed(model, config, dtype.name)
    return [
        checks_machine.check_python(machine, requires_python),
        checks_machine.check_platform(machine),
        checks_machine.check_chip(machine),
        *checks_machine.check_macos(machine),
        *checks_machine.check_memory(machine, needed),
        *checks_machine.check_variables(machine, probe.env),
    ]


def _torch_checks(machine: Machine, config: Config, device: Choice, packages: list[Package], facts: dict[str, Any]) -> list[Check]:
    checks = [
        checks_torch.check_torch(facts, packages),
        checks_torch.check_mps(machine, facts, packages),
        *checks_torch.check_cuda(machine, facts),
    ]
    if facts.get("version"):
        checks += [checks_torch.check_numbers(device, facts), checks_torch.check_bfloat16(config, device, facts)]
    return checks


def _model(config: Config, probe: Probe) -> Base:
    try:
        return find_base(config, probe.cached_folder)
    except Exception as error:
        return Base(config.model_id, problem=f"the model folder cannot be read ({type(error).__name__}: {error})")


def _point_to_cause(checks: list[Check]) -> list[Check]:
    """What follows from the wrong platform or a too old macOS is mended there: pip has no torch for those."""
    cause = next((check for check in checks if check.status == "fail" and check.name in ("Platform", "macOS", "torch")), None)
    follows = ("torch", "Package torch", "MPS")
    return [
        replace(check, fix=cause.fix) if cause and check is not cause and check.name in follows and check.fix else check for check in checks
    ]


def _attempt(name: str, question: Callable[[], list[Check]]) -> list[Check]:
    """A check that trips over an odd machine becomes a finding of its own instead of ending the others."""
    try:
        return question()
    except Exception as error:
        return [
            warn(
                name,
                f"this check could not be made ({type(error).__name__}: {error})",
                "the other findings hold; look into this one by hand",
            )
        ]
