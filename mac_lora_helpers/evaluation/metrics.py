"""How one answer is scored against the expected one; higher is better, 1.0 is perfect."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path

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


#: Metrics that are always computed; ``parameter_types.METRICS`` holds the same names.
BUILT_IN: dict[str, Metric] = {"exact_match": exact_match, "contains": contains, "valid_json": valid_json, "token_f1": token_f1}


def find_metric(name: str) -> Metric:
    """A built-in metric, or the user's own function ``module:function``, called with (answer, expected).

    A module beside the notebook or in the current folder is found too. Importing it runs its code.

    Raises:
        InputError: no such metric, module or function.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, _, function_name = name.partition(":")
    fix = f"one of {', '.join(BUILT_IN)}, or module:function with a module that Python can import from here"
    if not (module_name and function_name):
        raise InputError(f"{name!r} is not a metric", where="parameter metric", fix=fix)
    try:
        with _current_folder_on_path():
            module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"the module {module_name!r} of the metric cannot be imported: {type(error).__name__}: {error}",
            where="parameter metric",
            fix=fix,
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{module_name} has no function {function_name!r}", where="parameter metric", fix=fix)
    return _checked(function, name)


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _checked(function: Callable[[str, str], object], name: str) -> Metric:
    """The user's function, with its own errors and values that are no number told in the user's terms."""

    def metric(answer: str, expected: str) -> float:
        where = f"metric {name}, expected answer {expected[:60]!r}"
        try:
            value = function(answer, expected)
        except Exception as error:
            fix = "the function is called with (answer, expected), two texts, and returns a number: higher is better"
            raise InputError(f"the metric failed: {type(error).__name__}: {error}", where=where, fix=fix) from error
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"the metric returned {value!r}", where=where, fix="return a finite number or true/false")
        return number

    return metric


def score_answer(answer: str, expected: str, metrics: dict[str, Metric]) -> dict[str, float]:
    """Every metric's value for one answer."""
    return {name: metric(answer, expected) for name, metric in metrics.items()}


def mark_difference(text: str, other: str) -> list[tuple[str, bool]]:
    """``text`` in pieces (piece, stands in ``other`` too), cut at words: what a table marks."""
    words, others = (re.findall(r"\w+|\s+|[^\w\s]", said) for said in (text, other))
    steps = SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
    return [("".join(words[start:stop]), tag == "equal") for tag, start, stop, _, _ in steps if stop > start]
