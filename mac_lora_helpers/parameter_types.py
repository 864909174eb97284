"""The types of the parameters: what papermill, a shell or a form may write for a text, a number, a switch or a score."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

#: Scores of an answer that the package brings.
METRICS = ("exact_match", "contains", "valid_json", "token_f1")


def _text(value: Any) -> Any:
    """papermill's command line reads ``-p prompt 5`` as a number; for a text field it is text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true/false")
    return value.strip().replace("_", "") if isinstance(value, str) else value


def _known_metric(value: str) -> str:
    """A name of ours, or ``package.module:function``."""
    if value not in METRICS and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value):
        near = difflib.get_close_matches(value.lower(), METRICS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        allowed = f"one of {', '.join(METRICS)}, or module:function"
        raise PydanticCustomError("metric", f"no such metric{hint}; {allowed}")
    return value


def _switch(value: Any) -> Any:
    """auto, or what counts as true and false elsewhere."""
    words = {"true": True, "yes": True, "on": True, "1": True, "t": True, "y": True}
    words |= {"false": False, "no": False, "off": False, "0": False, "f": False, "n": False}
    text = str(value).strip().lower()
    return "auto" if text == "auto" else words.get(text, value)


def _bits(value: Any) -> Any:
    """A shell writes 4 as text."""
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


Text = Annotated[str, BeforeValidator(_text)]
Bits = Annotated[Literal[0, 4, 8], BeforeValidator(_bits)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]
Switch = Annotated[Literal["auto", True, False], BeforeValidator(_switch)]
Metric = Annotated[str, BeforeValidator(_text), AfterValidator(_known_metric)]
