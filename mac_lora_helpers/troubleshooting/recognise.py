"""Which known failure an error is, if any."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mac_lora_helpers.troubleshooting.failure import PAGE, Failure
from mac_lora_helpers.troubleshooting.known_hub import HUB
from mac_lora_helpers.troubleshooting.known_libraries import LIBRARIES
from mac_lora_helpers.troubleshooting.known_machine import MACHINE

#: The table; where two could answer, the one that stands first does.
FAILURES: tuple[Failure, ...] = (*HUB, *LIBRARIES, *MACHINE)


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
    return next((failure for failure in FAILURES if failure.key in keys), None)


def _first(kinds: set[str], text: str, module: str) -> Failure | None:
    return next((failure for failure in FAILURES if any(sign.holds(kinds, text, module) for sign in failure.signs)), None)


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
