"""Which of the usual causes makes an exported weight differ: compared with base + update, hypothesis by hypothesis."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mac_lora_helpers.export.adapter import Adapter, LoraUpdate

UNMERGED = "LoRA layer left unmerged"
UNTUNED = "adapter not applied: this is the untuned base"
DOUBLED = "alpha doubled"
RANK_SCALE = "rank-stabilised scale ignored"
SCALED = "update has the wrong scale"
PERMUTED = "query/key rows permuted wrongly"
SHIFTED = "vocabulary shifted by one"
WEIGHTS = "weights differ"
#: Relative error (Frobenius) up to which weights count as equal: order of summation; rounding of a cast or a block.
CLOSE = {"exact": 1e-5, "rounded": 3e-3}


@dataclass(frozen=True)
class Stored:
    """One weight as an artefact holds it.

    Args:
        values: float32, rows in transformers' order. rounding: the rounding that the artefact's type applies.
        exact: whether values should equal base + update but for the order of summation.
        reordered: the same values with query/key rows put into the other order, or None.
    """

    values: np.ndarray
    rounding: Callable[[np.ndarray], np.ndarray] | None
    exact: bool
    reordered: np.ndarray | None = None


class Expected:
    """What every merged weight must be.

    Args:
        tensors: weights by name: the untuned base's for a plain LoRA adapter, else the merged model's.
        adapter: the adapter. plain: whether it is a plain LoRA; if not, only equality with ``tensors`` is checked.
        transposed: weights that are stored as ``(in, out)``: GPT-2's Conv1D.
        saved: name → name in the merged folder's files, where the two differ.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        adapter: Adapter,
        plain: bool = True,
        transposed: Collection[str] = (),
        saved: Mapping[str, str] | None = None,
    ) -> None:
        self.tensors, self.adapter, self.transposed, self.saved = tensors, adapter, transposed, saved or {}
        self.updates = {f"{name}.weight": update for name, update in adapter.updates.items()} if plain else {}

    def base(self, name: str) -> np.ndarray | None:
        return self.tensors[name].detach().float().cpu().numpy() if name in self.tensors else None

    def delta(self, name: str) -> np.ndarray | None:
        """The update of a weight, in the weight's own orientation; None if it has none."""
        update = self.updates.get(name)
        if update is None:
            return None
        return update.delta().T if name in self.transposed else update.delta()


def weight_faults(stored: Iterator[tuple[str, Stored]], expected: Expected) -> list[str]:
    """Faults of an artefact that holds whole weights; empty if every one is what it must be."""
    by_fault: dict[str, list[str]] = {}
    seen = set()
    for name, weight in stored:
        seen.add(name)
        base = expected.base(name)
        fault = WEIGHTS if base is None or base.shape != weight.values.shape else _fault(weight, base, name, expected)
        if fault:
            by_fault.setdefault(fault, []).append(name)
    by_fault.setdefault(UNMERGED, []).extend(name for name in expected.updates if name not in seen)
    return _told({fault: names for fault, names in by_fault.items() if names}, len(expected.updates))


def update_faults(found: Mapping[str, Callable[[], tuple[np.ndarray, np.ndarray | None]]], expected: Expected) -> list[str]:
    """Faults of an artefact that holds the updates alone.

    Args:
        found: module → gives its update ``(out, in)`` and, where rows can be reordered, the other order.
    """
    by_fault: dict[str, list[str]] = {}
    for name, update in expected.updates.items():
        module = name.removesuffix(".weight")
        if module not in found:
            by_fault.setdefault(UNMERGED, []).append(module)
            continue
        values, reordered = found[module]()
        fault = _update_fault(values, reordered, update, expected)
        if fault:
            by_fault.setdefault(fault, []).append(module)
    by_fault.setdefault(WEIGHTS, []).extend(module for module in found if f"{module}.weight" not in expected.updates)
    return _told({fault: names for fault, names in by_fault.items() if names}, len(expected.updates))


def _update_fault(values: np.ndarray, reordered: np.ndarray | None, update: LoraUpdate, expected: Expected) -> str:
    delta = update.delta()
    if values.shape != delta.shape:
        return WEIGHTS
    if _error(values, delta) <= CLOSE["rounded"]:
        return ""
    for factor, name in _hypotheses(update, expected):
        if _error(values, factor * delta) <= CLOSE["rounded"] * max(1.0, factor):
            return name
    if reordered is not None and _error(reordered, delta) <= CLOSE["rounded"]:
        return PERMUTED
    share = float((values * delta).sum() / max(float((delta * delta).sum()), 1e-30))
    return f"{SCALED} ({share:.2f} of it)" if _error(values, share * delta) <= 0.05 else WEIGHTS


def _fault(weight: Stored, base: np.ndarray, name: str, expected: Expected) -> str:
    rounding = weight.rounding or (lambda values: values)
    delta = expected.delta(name)
    wanted = rounding(base if delta is None else base + delta)
    error = _error(weight.values, wanted)
    if error <= CLOSE["exact" if weight.exact else "rounded"] and (delta is None or _resembles(weight.values, wanted, rounding(base))):
        return ""
    if delta is not None:
        for factor, cause in _hypotheses(expected.updates[name], expected):
            if _error(weight.values, rounding(base + np.float32(factor) * delta)) < error / 2:
                return cause
    if weight.reordered is not None and _error(weight.reordered, wanted) < error / 2:
        return PERMUTED
    if weight.values.ndim == 2 and any(_error(weight.values[cut], wanted[other]) < error / 2 for cut, other in _SHIFTS):
        return SHIFTED
    return "" if weight.rounding is None and not weight.exact and error < 0.4 else WEIGHTS


_SHIFTS = ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None)))


def _resembles(values: np.ndarray, tuned: np.ndarray, base: np.ndarray) -> bool:
    """Whether the values lie by the tuned weight rather than by the base, or the two are one after rounding."""
    gap = np.linalg.norm(tuned - base)
    return bool(np.linalg.norm(values - tuned) <= 0.25 * gap or gap == 0)


def _hypotheses(update: LoraUpdate, expected: Expected) -> list[tuple[float, str]]:
    """Factors of the update that the usual mistakes give."""
    factors = [(0.0, UNMERGED), (2.0, DOUBLED)]
    if expected.adapter.settings.get("use_rslora") and update.rank > 1:
        factors.append((1 / math.sqrt(update.rank), RANK_SCALE))
    return factors


def _error(values: np.ndarray, wanted: np.ndarray) -> float:
    """Relative error in the Frobenius norm; infinite where something is not finite."""
    error = float(np.linalg.norm(values - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))
    return error if math.isfinite(error) else math.inf


def _told(by_fault: dict[str, list[str]], updates: int) -> list[str]:
    """One line per fault, with the first places it was found at."""
    if len(by_fault.get(UNMERGED, [])) == updates > 0:
        return [UNTUNED, *_told({fault: names for fault, names in by_fault.items() if fault != UNMERGED}, -1)]
    lines = []
    for fault, names in by_fault.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"{fault}: {', '.join(names[:3])}{more}")
    return lines
