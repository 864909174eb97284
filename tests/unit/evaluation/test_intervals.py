"""Differences, their intervals, and the words that they support."""

import numpy as np
import pytest

from mac_lora_helpers.evaluation.intervals import BETTER, NO_DIFFERENCE, WORSE, compare, sign_flip_p


def test_the_difference_is_weighted_by_tokens():
    found = compare([10.0, 1.0], [5.0, 1.0], [9, 1], higher_is_better=False)
    assert found.value == pytest.approx(-0.5)


def test_pairs_are_kept_together():
    """A tiny gain on every example shows, however much the examples differ from each other."""
    generator = np.random.default_rng(0)
    base = generator.uniform(0, 100, 60)
    found = compare(base, base - generator.uniform(0.5, 1.5, 60), higher_is_better=False)
    assert found.outcome == BETTER
    assert -1.2 < found.low < found.high < -0.8
    shuffled = generator.permutation(base)
    assert compare(base, shuffled - 1, higher_is_better=False).outcome == NO_DIFFERENCE


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    hits = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        base = generator.normal(0, 1, 60)
        found = compare(base, base + generator.normal(0.2, 1, 60), higher_is_better=True, seed=seed)
        hits += found.low <= 0.2 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("higher", "outcome"), [(True, BETTER), (False, WORSE)])
def test_direction(higher, outcome):
    assert compare([0.0] * 30, [1.0] * 30, higher_is_better=higher).outcome == outcome


def test_a_change_below_the_margin_is_none():
    base = np.linspace(1, 2, 200)
    assert compare(base, base - 0.005, higher_is_better=False, margin=0.01).outcome == NO_DIFFERENCE
    assert compare(base, base - 0.005, higher_is_better=False, margin=0.001).outcome == BETTER


@pytest.mark.parametrize(("right", "outcome"), [(4, NO_DIFFERENCE), (6, NO_DIFFERENCE), (7, BETTER)])
def test_few_answers_that_turned_right_are_no_proof(right, outcome):
    """The bootstrap alone says better from four; a coin does four in a row one time in sixteen."""
    tuned = [1.0] * right + [0.0] * (40 - right)
    found = compare([0.0] * 40, tuned, higher_is_better=True, shares=True)
    assert found.low > 0 or right < 4
    assert found.outcome == outcome


def test_all_examples_agreeing_is_not_certainty():
    """120 of 120 right: at 97 % right in truth that happens one time in forty."""
    found = compare([0.0] * 120, [1.0] * 120, higher_is_better=True, shares=True)
    assert found.value == 1 == found.high
    assert 0.93 < found.low < 0.95
    same = compare([1.0] * 40, [1.0] * 40, higher_is_better=True, shares=True)
    assert same.low == pytest.approx(-0.088, abs=0.001) == -same.high
    assert same.verdict == "no difference: the same on all 40 examples"


@pytest.mark.parametrize("count", [10, 12, 16])
def test_sign_flips_are_counted_exactly(count):
    generator = np.random.default_rng(count)
    values = generator.normal(0.3, 1, count)
    signs = np.array(np.meshgrid(*[[1, -1]] * count)).reshape(count, -1)
    expected = np.mean(np.abs(signs.T @ values) >= abs(values.sum()) - 1e-12)
    assert sign_flip_p(values) == pytest.approx(expected)


@pytest.mark.parametrize("count", [10, 40, 120])
def test_pure_noise_is_called_better_in_at_most_five_per_cent_of_runs(count):
    """Loss and score both drawn anew for base and tuned: the two that decide, together."""
    called_better = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        right = generator.random((2, count)) < 0.5
        score = compare(*right, higher_is_better=True, shares=True, seed=seed)
        tokens = generator.integers(3, 40, count)
        sums = generator.lognormal(0, 1, (2, count)) * tokens
        loss = compare(*sums, tokens, higher_is_better=False, margin=0.01, seed=seed)
        called_better += BETTER in (score.outcome, loss.outcome)
    assert called_better / 200 <= 0.05
