"""Base against tuned on the same examples: the difference, its interval, and the word that they support.

Two things must agree before "better" or "worse" is said: a paired bootstrap interval that lies beyond
the smallest difference that counts, and a sign-flip test. The interval alone is too bold on few
examples: four answers that turned right and none that turned wrong give an interval above zero, though
tossing a coin for each does the same one time in sixteen. Loss and metric are both looked at, so the
test's limit is 2.5 %: in at most 5 % of runs without any effect one of the two is called different.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"
CONFIDENCE = 0.95
#: Largest p of a difference that is called one: two comparisons decide over a run, loss and metric, so each gets half of 5 %.
LARGEST_P = (1 - CONFIDENCE) / 2
RESAMPLES = 2000
#: A change of the loss below this many nats per token (one per cent of the perplexity), or below this share of the
#: loss, is not called one: on many rows the interval of a change that nobody would notice misses zero too.
LOSS_MARGIN = 0.01
#: Up to this many examples that differ, all sign patterns are counted; above, their sum is close to normal.
_EXACT = 16
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Difference:
    """Tuned minus base over ``examples`` pairs, in the unit of what was compared.

    ``low``, ``high``: 95 % paired bootstrap interval. ``p``: two-sided sign-flip test. ``margin``: smallest difference
    that counts. ``identical``: no pair differs.
    ``outcome``: better, worse or no difference shown; ``verdict``: the same in words with the number of examples.
    """

    value: float
    low: float
    high: float
    p: float
    examples: int
    margin: float
    identical: bool
    outcome: str
    verdict: str

    def to_dict(self) -> dict[str, float | int | str]:
        """Plain values for JSON."""
        return dict(vars(self))


def compare(
    base: Sequence[float],
    tuned: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    higher_is_better: bool,
    margin: float = 0.0,
    shares: bool = False,
    seed: int = 42,
) -> Difference:
    """Compares two columns of per-example values that belong together row by row.

    Args:
        base, tuned: one value an example. With weights: sums over the example, such as the negative
            log-likelihood in nats of all its tokens.
        weights: what the sums are divided by, such as tokens per example; the difference is then the
            ratio sum(tuned - base) / sum(weights), resampled over examples.
        margin: smallest difference that counts.
        shares: the values lie between 0 and 1. Where all examples agree, resampling them would show no
            uncertainty at all; the interval then allows for examples of which none was met.

    Source: percentile bootstrap, Efron & Tibshirani 1993, chapter 13; sign-flip test, Fisher 1935.
    """
    step = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    weight = np.ones_like(step) if weights is None else np.asarray(weights, dtype=float)
    value = float(step.sum() / weight.sum())
    low, high = _unanimous(value, len(step)) if shares and np.ptp(step) == 0 else _bootstrap(step, weight, seed)
    p, identical = sign_flip_p(step), not step.any()
    outcome = _outcome(low, high, p, higher_is_better, margin)
    return Difference(value, low, high, p, len(step), margin, identical, outcome, words(outcome, len(step), identical))


def words(outcome: str, examples: int, identical: bool = False) -> str:
    """What a table says beside a difference."""
    counted = f"{examples} example" + ("" if examples == 1 else "s")
    if outcome != NO_DIFFERENCE:
        return outcome
    return f"no difference: the same on all {counted}" if identical else f"{NO_DIFFERENCE} with {counted}"


def interval_text(low: float, high: float) -> str:
    """``+0.9 to +0.98``; no sign before zero."""
    return " to ".join(f"{bound:+.3g}" if bound else "0" for bound in (low, high))


def sign_flip_p(differences: np.ndarray) -> float:
    """How often random signs move the sum of the differences at least as far from zero as it is, both sides."""
    moved = differences[differences != 0]
    if len(moved) == 0:
        return 1.0
    observed = abs(moved.sum())
    if len(moved) > _EXACT:
        return math.erfc(observed / math.sqrt(2 * float(np.square(moved).sum())))
    signs = 1 - 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
    return float(np.mean(np.abs(signs @ moved) >= observed * (1 - 1e-9)))


def _bootstrap(step: np.ndarray, weight: np.ndarray, seed: int) -> tuple[float, float]:
    """Interval of sum(step) / sum(weight) over draws of examples with replacement, in blocks that fit in memory."""
    count, generator, ratios = len(step), np.random.default_rng(seed), []
    edges = [*range(0, RESAMPLES, max(1, _CHUNK // count)), RESAMPLES]
    for start, stop in pairwise(edges):
        drawn = generator.integers(count, size=(stop - start, count))
        ratios.append(step[drawn].sum(axis=1) / weight[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _unanimous(value: float, count: int) -> tuple[float, float]:
    """Interval when every example gave the same difference: such examples are at least 0.025^(1/n) of all (Clopper & Pearson
    1934), and the rest may do anything between -1 and +1."""
    share = ((1 - CONFIDENCE) / 2) ** (1 / count)
    return max(-1.0, share * value - (1 - share)), min(1.0, share * value + (1 - share))


def _outcome(low: float, high: float, p: float, higher_is_better: bool, margin: float) -> str:
    if p > LARGEST_P:
        return NO_DIFFERENCE
    if low > margin:
        return BETTER if higher_is_better else WORSE
    if high < -margin:
        return WORSE if higher_is_better else BETTER
    return NO_DIFFERENCE
