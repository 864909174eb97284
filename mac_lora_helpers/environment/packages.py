"""Installed versions against the tested ranges; the ranges are read off this project's own metadata."""

from __future__ import annotations

from dataclasses import dataclass

from mac_lora_helpers.environment.probe import Probe, this_machine

#: Extras that are checked when installed and not missed when not.
OPTIONAL_EXTRAS = ("lab", "mlx")


@dataclass(frozen=True)
class Package:
    """One dependency.

    Attributes:
        version: what is installed; ``None`` if nothing is.
        tested: the range that this project is tested with, such as ``<2.14,>=2.13``; empty if it is unknown.
        status: ``ok``, ``missing``, ``outside`` (installed, but not in the range), ``optional`` (not installed, not
            needed) or ``unknown`` (the range cannot be read).
        requirement: what pip takes to mend it.
    """

    name: str
    version: str | None
    tested: str
    status: str
    requirement: str


def read_packages(probe: Probe | None = None) -> list[Package]:
    """Every dependency of this project with its installed version and tested range."""
    probe = probe or this_machine()
    lines = (probe.metadata() or {}).get("requires", [])
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [_unread(line, probe) for line in lines if "extra ==" not in line]
    packages: dict[str, Package] = {}
    for requirement in map(Requirement, lines):
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        optional = requirement.marker is not None and any(requirement.marker.evaluate({"extra": extra}) for extra in OPTIONAL_EXTRAS)
        if needed or optional:
            packages.setdefault(requirement.name, _package(requirement, needed, probe.version(requirement.name)))
    return list(packages.values())


def requirement_for(name: str, probe: Probe | None = None) -> str:
    """What pip takes for one dependency, such as ``torch<2.14,>=2.13``; the bare name if it is unknown."""
    return next((package.requirement for package in read_packages(probe) if package.name == name), name)


def _package(requirement, needed: bool, version: str | None) -> Package:
    text = requirement.name + str(requirement.specifier)
    if version is None:
        status = "missing" if needed else "optional"
    else:
        status = "ok" if requirement.specifier.contains(version, prereleases=True) else "outside"
    return Package(requirement.name, version, str(requirement.specifier), status, text)


def _unread(line: str, probe: Probe) -> Package:
    text = line.split(";")[0].strip()
    name = text[: next((i for i, letter in enumerate(text) if not (letter.isalnum() or letter in "-_.")), len(text))]
    version = probe.version(name)
    return Package(name, version, text[len(name) :], "unknown" if version else "missing", text)
