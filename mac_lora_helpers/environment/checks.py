"""One finding of the environment check; its texts name no home directory and no token."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mac_lora_helpers.files import portable


@dataclass(frozen=True)
class Check:
    """A finding.

    Attributes:
        name: what was looked at, in one or two words.
        status: ``ok``, ``warn`` (works, but not as well as it could) or ``fail`` (training cannot work).
        detail: what was found.
        fix: the command or the step that mends it; empty when there is nothing to mend.
    """

    name: str
    status: str
    detail: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """As in ``environment.json``."""
        return asdict(self)


def ok(name: str, detail: str) -> Check:
    return Check(name, "ok", portable(detail))


def warn(name: str, detail: str, fix: str) -> Check:
    return Check(name, "warn", portable(detail), portable(fix))


def fail(name: str, detail: str, fix: str) -> Check:
    return Check(name, "fail", portable(detail), portable(fix))
