"""The table of known failures, and which of them an error is."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = "docs/troubleshooting.md"
TABLE = Path(__file__).with_name("failures.toml")


@dataclass(frozen=True)
class Failure:
    """A line of the table; the head of ``failures.toml`` says what each field means."""

    key: str
    group: str
    title: str
    cause: str
    steps: tuple[str, ...]
    says: str = ""
    signs: tuple[Mapping[str, str], ...] = ()
    see: str = ""
    recorded: str = ""
    code: str = ""

    @property
    def anchor(self) -> str:
        """Where the page tells it."""
        return f"{PAGE}#{self.key}"

    @property
    def advice(self) -> list[str]:
        """The steps as plain text: without the page's links."""
        return [re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", step) for step in self.steps]

    def is_shown_by(self, kinds: set[str], text: str, module: str) -> bool:
        """Whether an error of these class names, with this text, raised in this module, carries one of the signs."""
        return any(
            kinds & set(sign["kinds"].split())
            and re.search(sign.get("pattern", ""), text, re.IGNORECASE | re.DOTALL)
            and re.search(sign.get("inside", ""), module)
            for sign in self.signs
        )

    def __str__(self) -> str:
        steps = "\n".join(f"  {'to do:' if i == 1 else '      '}  {i}. {step}" for i, step in enumerate(self.advice, 1))
        return f"Known failure: {self.title}\n  cause:  {self.cause}\n{steps}\n  more:   {self.anchor}"


@functools.cache
def failures() -> tuple[Failure, ...]:
    """The table, read when it is first needed; where two could answer, the one that stands first does."""
    return tuple(Failure(**line) for line in _content()["failure"])


def groups() -> list[str]:
    """The headings that the failures stand under, in the page's order."""
    return _content()["groups"]


def _content() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def explain(error: BaseException) -> Failure | None:
    """The known failure behind an error or behind what caused it; ``None`` for every other error.

    The error itself counts before its cause, so that a more exact answer is not hidden by a general one further down.
    """
    links = [({kind.__name__ for kind in type(link).__mro__}, _text(link), _module(link)) for link in _chain(error)]
    return next((found for link in links if (found := _first(*link))), None)


def recognise(name: str, text: str) -> Failure | None:
    """The known failure by an error's class name and text alone, as a stored notebook keeps them."""
    return _first({name}, text, "")


def shown_in(text: str) -> Failure | None:
    """The failure whose answer was already given in a text."""
    keys = re.findall(re.escape(PAGE) + r"#([a-z-]+)", text)
    return next((failure for failure in failures() if failure.key in keys), None)


def _first(kinds: set[str], text: str, module: str) -> Failure | None:
    return next((failure for failure in failures() if failure.is_shown_by(kinds, text, module)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _module(error: BaseException) -> str:
    """Name of the module whose line raised the error."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        name, trace = trace.tb_frame.f_globals.get("__name__") or "", trace.tb_next
    return name
