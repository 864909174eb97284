"""What can be wrong with a row, told by kind, place, field and what to do (the kinds stand in ``problems.toml``)."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.redaction import portable

#: Problems of one kind that are kept in full; the others are only counted.
FIRST = 5

_KINDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
#: Kind → what to do. Kinds in NOTES are told but stop nothing.
FIXES: dict[str, str] = _KINDS["errors"] | _KINDS["notes"]
NOTES = frozenset(_KINDS["notes"])
#: Name → (what it means, what to do), for what deserves a look once the tokens are made.
LINTS: dict[str, tuple[str, str]] = {name: tuple(told) for name, told in _KINDS["lints"].items()}


class Fault(NamedTuple):
    """A problem without its place: kind, field (empty: the whole row) and what is wrong."""

    kind: str
    field: str
    what: str


Faults = list[Fault]


def stops(faults: Iterable[Fault]) -> bool:
    """Whether one of them is more than a note."""
    return any(fault.kind not in NOTES for fault in faults)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one row or file; ``level`` is 'error' or 'note'."""

    kind: str
    where: str
    field: str
    what: str
    fix: str
    level: str = "error"

    def __str__(self) -> str:
        return f"{self.where}{' ' + self.field if self.field else ''}: {self.what}"


class Problems:
    """Collects problems: a count a kind, the first few of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: list[Problem] = []

    def add(self, fault: Fault, where: str, count: int = 1) -> None:
        """Counts a problem, and keeps it if it is among the first of its kind."""
        self.counts[fault.kind] += count
        if self.counts[fault.kind] - count < FIRST:
            level = "note" if fault.kind in NOTES else "error"
            self.kept.append(Problem(fault.kind, portable(where), fault.field, fault.what, FIXES[fault.kind], level))

    @property
    def errors(self) -> dict[str, int]:
        """Count a kind, without the notes."""
        return {kind: count for kind, count in self.counts.items() if kind not in NOTES}


class DataError(InputError):
    """Rows or files that cannot be used; ``problems`` and ``counts`` hold the details."""

    problems: tuple[Problem, ...] = ()
    counts: dict[str, int] = {}  # noqa: RUF012 - replaced per instance

    @classmethod
    def of(cls, what: str, problems: Problems, more_fix: str = "") -> DataError:
        """The error for everything collected: ``what``, then the first places, then a fix a kind."""
        errors = [problem for problem in problems.kept if problem.level == "error"]
        counts = ", ".join(f"{kind} {count}" for kind, count in problems.errors.items())
        fixes = dict.fromkeys(f"{problem.kind}: {problem.fix}" for problem in errors)
        error = cls(
            f"{what} ({counts})" if counts else what,
            where="\n         ".join(f"{problem} [{problem.kind}]" for problem in errors[:12]),
            fix="\n         ".join([*fixes, *([more_fix] if more_fix else [])]),
        )
        error.problems, error.counts = tuple(errors), dict(problems.errors)
        return error


def file_error(kind: str, where: str, what: str, fix: str = "") -> DataError:
    """The error for one file- or source-level problem."""
    problems = Problems()
    problems.add(Fault(kind, "", what), where)
    error = DataError(what, where=portable(where), fix=fix or FIXES[kind])
    error.problems, error.counts = tuple(problems.kept), dict(problems.counts)
    return error


def brief(value: Any, limit: int = 60) -> str:
    """A value for a message: short, on one line, safe to print."""
    text = str(value) if isinstance(value, (str, Exception)) else repr(value)
    text = " ".join(text[: 4 * limit + 100].encode("utf-8", "backslashreplace").decode().split())
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(names: Iterable[Any], limit: int = 8, width: int = 30) -> str:
    """Names joined by commas, at most ``limit`` of them."""
    names = [brief(name, width) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
