"""How one answer is scored against the expected one; higher is better, 1.0 is perfect."""

from __future__ import annotations

import json
import math
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from mac_lora_helpers.errors import InputError

Metric = Callable[[str, str], float]


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the two texts are equal, white space around them aside."""
    return float(answer.strip() == expected.strip())


def contains(answer: str, expected: str) -> float:
    """1.0 if the expected text stands somewhere in the answer, in any case; nothing expected: the answer must be empty."""
    wanted = expected.strip().casefold()
    return float(wanted in answer.casefold()) if wanted else exact_match(answer, expected)


def valid_json(answer: str, expected: str = "") -> float:
    """1.0 if the whole answer is one JSON object or array (RFC 8259, so no NaN); ``expected`` is not looked at."""
    try:
        value = json.loads(answer, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return 0.0
    return float(isinstance(value, (dict, list)))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall over the words of the two texts, as in SQuAD (Rajpurkar et al. 2016).

    Words are runs of letters and digits, in any case; unlike SQuAD, English articles count.
    """
    got, wanted = (Counter(re.findall(r"\w+", text.casefold())) for text in (answer, expected))
    shared = (got & wanted).total()
    if not got or not wanted:
        return float(got == wanted)
    return 2 * shared / (got.total() + wanted.total())


#: Metrics that are always computed; ``parameters.METRICS`` holds the same names.
BUILT_IN: dict[str, Metric] = {"exact_match": exact_match, "contains": contains, "valid_json": valid_json, "token_f1": token_f1}


def find_metric(name: str) -> Metric:
    """A built-in metric, or the user's own function ``module:function``, called with (answer, expected).

    A module beside the notebook or in the current folder is found too. Importing it runs its code.

    Raises:
        InputError: no such metric, module or function.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    here, fix = str(Path.cwd()), f"one of {', '.join(BUILT_IN)}, or module:function with a module that Python can import from here"
    sys.path.insert(0, here)
    try:
        function = pkgutil.resolve_name(name)
    except Exception as error:
        what = f"the metric {name!r} cannot be imported: {type(error).__name__}: {error}"
        raise InputError(what, where="parameter metric", fix=fix) from error
    finally:
        sys.path.remove(here)
    if ":" not in name or not callable(function):
        raise InputError(f"{name!r} is not a metric: no function", where="parameter metric", fix=fix)
    return _checked(function, name)


def _checked(function: Callable[[str, str], object], name: str) -> Metric:
    """The user's function, with its own errors and values that are no number told in the user's terms."""

    def metric(answer: str, expected: str) -> float:
        where, fix = (
            f"metric {name}, expected answer {expected[:60]!r}",
            "it gets (answer, expected) and returns a finite number or true/false",
        )
        try:
            value = function(answer, expected)
        except Exception as error:
            raise InputError(f"the metric failed: {type(error).__name__}: {error}", where=where, fix=fix) from error
        if not isinstance(value, (int, float, np.number, np.bool_)) or not math.isfinite(value):
            raise InputError(f"the metric returned {value!r}", where=where, fix=fix)
        return float(value)

    return metric


def score_answer(answer: str, expected: str, metrics: dict[str, Metric]) -> dict[str, float]:
    """Every metric's value for one answer."""
    return {name: metric(answer, expected) for name, metric in metrics.items()}


def mark_difference(text: str, other: str) -> list[tuple[str, bool]]:
    """``text`` in pieces (piece, stands in ``other`` too), cut at words: what a table marks."""
    words, others = (re.findall(r"\w+|\s+|[^\w\s]", said) for said in (text, other))
    steps = SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
    return [("".join(words[start:stop]), tag == "equal") for tag, start, stop, _, _ in steps if stop > start]
