"""This machine: chip, memory, macOS, disk; and the installed packages against the tested ranges. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.environment.probe import Probe, this_machine

GIB = 1024**3
#: Extras that are checked when installed and not missed when not.
OPTIONAL_EXTRAS = ("lab", "mlx")


@dataclass(frozen=True)
class Machine:
    """What the operating system says about this machine; sizes in bytes, ``None`` where it does not say."""

    python: str
    system: str
    platform: str
    machine: str
    chip: str
    gpu_cores: int | None
    memory_bytes: int | None
    free_memory_bytes: int | None
    swap_used_bytes: int
    macos_version: str | None
    rosetta: bool
    disk_free_bytes: int | None

    @property
    def is_mac(self) -> bool:
        return self.system == "Darwin"

    @property
    def apple_silicon(self) -> bool:
        """Whether the chip is Apple's, also when an x86_64 Python does not see it."""
        return self.is_mac and (self.machine == "arm64" or self.rosetta)

    @property
    def intel_mac(self) -> bool:
        return self.is_mac and not self.apple_silicon

    @property
    def macos_major(self) -> int | None:
        """14 for macOS 14.6.1; ``None`` if the version is unknown."""
        first = (self.macos_version or "").split(".")[0]
        return int(first) if first.isdigit() else None


def read_machine(out_dir: str = ".", probe: Probe | None = None) -> Machine:
    """Reads this machine.

    Args:
        out_dir: the run directory, for the free disk space.
        probe: where the answers come from; this machine unless given.
    """
    probe = probe or this_machine()
    facts, memory, disk = probe.system(), probe.memory() or {}, probe.disk(out_dir)
    mac = facts["system"] == "Darwin"
    cores = re.search(r'"gpu-core-count"\s*=\s*(\d+)', (mac and probe.command("ioreg", "-rc", "AGXAccelerator", "-d", "1")) or "")
    total = memory.get("total") or _whole(probe.command("sysctl", "-n", "hw.memsize") if mac else None)
    limit = None if mac else _container_limit(probe)
    free = memory.get("available")
    return Machine(
        python=facts["python"],
        system=facts["system"],
        platform=facts["platform"],
        machine=facts["machine"],
        chip=(_mac_chip(probe) if mac else _linux_chip(probe)) or facts["machine"],
        gpu_cores=int(cores[1]) if cores else None,
        memory_bytes=min(filter(None, (total, limit)), default=None),
        free_memory_bytes=min(free, limit) if free and limit else free,
        swap_used_bytes=memory.get("swap_used") or 0,
        macos_version=probe.command("sw_vers", "-productVersion") if mac else None,
        rosetta=mac and facts["machine"] == "x86_64" and _translated(probe),
        disk_free_bytes=disk["free"] if disk else None,
    )


def _translated(probe: Probe) -> bool:
    """Rosetta: the process is translated, or the hardware behind an x86_64 Python is arm64."""
    answers = (probe.command("sysctl", "-n", "sysctl.proc_translated"), probe.command("sysctl", "-n", "hw.optional.arm64"))
    return "1" in answers or "Apple" in (probe.command("sysctl", "-n", "machdep.cpu.brand_string") or "")


def _mac_chip(probe: Probe) -> str | None:
    brand = probe.command("sysctl", "-n", "machdep.cpu.brand_string") or ""
    if "VirtualApple" in brand:  # what Rosetta calls every chip
        return probe.command("arch", "-arm64", "/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string") or brand
    return brand


def _linux_chip(probe: Probe) -> str | None:
    found = re.search(r"^model name\s*:\s*(.+)$", probe.read_text("/proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else None


def _container_limit(probe: Probe) -> int | None:
    """A container's memory limit (cgroup v2, then v1), lower than what the machine has."""
    return _whole(probe.read_text("/sys/fs/cgroup/memory.max") or probe.read_text("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def _whole(text: Any) -> int | None:
    text = str(text or "").strip()
    return int(text) if text.isdigit() else None


@dataclass(frozen=True)
class Package:
    """One dependency.

    Attributes:
        version: what is installed; ``None`` if nothing is.
        tested: the range that this project is tested with, such as ``<2.14,>=2.13``.
        status: ``ok``, ``missing``, ``outside`` (installed, but not in the range) or ``optional`` (not installed, not needed).
        requirement: what pip takes to mend it.
    """

    name: str
    version: str | None
    tested: str
    status: str
    requirement: str


def read_packages(probe: Probe | None = None) -> list[Package]:
    """Every dependency of this project on this platform, with its installed version; empty where the ranges cannot be read."""
    probe = probe or this_machine()
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    platform = {"sys_platform": "darwin" if probe.system()["system"] == "Darwin" else "linux"}
    packages: dict[str, Package] = {}
    for wanted in map(Requirement, probe.requirements()):
        applies = {extra: wanted.marker is None or wanted.marker.evaluate({"extra": extra, **platform}) for extra in ("", *OPTIONAL_EXTRAS)}
        if any(applies.values()):
            packages.setdefault(wanted.name, _package(wanted, applies[""], probe.version(wanted.name)))
    return list(packages.values())


def _package(wanted: Any, needed: bool, version: str | None) -> Package:
    if version is None:
        status = "missing" if needed else "optional"
    else:
        status = "ok" if wanted.specifier.contains(version, prereleases=True) else "outside"
    return Package(wanted.name, version, str(wanted.specifier), status, wanted.name + str(wanted.specifier))
