"""The interval of a difference: what it holds, and what it is made of."""

import itertools

import numpy as np
import pytest

from dasm_jax.bootstrap import (
    Difference,
    paired_bootstrap,
    paired_difference,
    students_interval,
)


def test_mean_and_ends_of_a_known_case():
    # One network per seed: all 27 draws of three seeds are equally likely.
    values = np.array([[0.0], [0.1], [0.5]])
    means = [np.mean(draw) for draw in itertools.product(values[:, 0], repeat=3)]
    # 1 of 27 draws is three times the lowest: it is more than 2.5 %.
    assert paired_bootstrap(values) == pytest.approx((min(means), 0.5))
    found = paired_difference(values)
    assert (found.mean, found.seeds) == (pytest.approx(0.2), 3)


def test_networks_are_drawn_inside_seeds():
    # Seeds agree on the mean: what spreads is between networks alone.
    spread = np.array([[-0.1, 0.1]] * 4)
    low, high = paired_bootstrap(spread)
    # The mean of eight fair signs of 0.1: 2.5 % lie below −0.075.
    assert -0.1 < low < -0.04
    assert 0.04 < high < 0.1
    # Networks of one seed never stand in for those of another.
    apart = np.array([[-0.1, -0.1], [0.1, 0.1]])
    assert paired_bootstrap(apart) == pytest.approx((-0.1, 0.1))
    low, high = paired_bootstrap(np.array([[0.0, 0.0, 0.3]] * 2))
    assert 0 <= low < 0.05 < high <= 0.3


def test_it_covers_a_normal_difference_about_as_often_as_it_says():
    key = np.linspace(0.001, 0.999, 400)
    # Normal scores without a generator: the quantiles, taken apart by a fixed stride.
    scores = np.array([_quantile(p) for p in key])
    samples = scores[(np.arange(400) * 173) % 400].reshape(40, 10, 1)
    inside = [paired_bootstrap(s + 1, draws=2000) for s in samples]
    covered = np.mean([low <= 1 <= high for low, high in inside])
    assert 0.8 <= covered <= 1.0


def _quantile(p):
    """Of the standard normal, by bisection."""
    from math import erf, sqrt

    low, high = -5.0, 5.0
    for _ in range(50):
        middle = (low + high) / 2
        if (1 + erf(middle / sqrt(2))) / 2 < p:
            low = middle
        else:
            high = middle
    return low


def test_equal_differences_give_equal_intervals():
    values = np.arange(12.0).reshape(4, 3) / 100
    assert paired_bootstrap(values) == paired_bootstrap(values.copy())
    shifted = paired_bootstrap(values + 1)
    assert shifted[0] == pytest.approx(paired_bootstrap(values)[0] + 1)


def test_one_seed_says_nothing_of_others():
    found = paired_difference(np.array([[0.1, 0.2]]))
    assert found == Difference(pytest.approx(0.15), None, None, 1)
    assert not found.seen


@pytest.mark.parametrize(
    ("low", "high", "seen"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (1e-9, 0.1, False)],
)
def test_seen_is_an_interval_without_zero(low, high, seen):
    assert Difference(0.05, low, high, 3).seen is seen


def test_students_interval_of_a_known_case():
    # Three seeds: 4.303 / √3 standard deviations.
    margin = 4.302653 * 0.01 / 3**0.5
    found = students_interval(np.array([0.01, 0.02, 0.03]))
    assert found == pytest.approx((0.02 - margin, 0.02 + margin), rel=1e-6)


def test_each_end_is_the_outer_one():
    # Of three seeds that agree on the sign, Student's holds zero.
    values = np.array([[0.01], [0.02], [0.03]])
    found = paired_difference(values)
    assert paired_bootstrap(values)[0] == pytest.approx(0.01)
    assert (found.low, found.high) == students_interval(values[:, 0])
    assert not found.seen
    assert paired_difference(values + 0.01).seen
    # Of seeds that agree altogether, networks leave the bootstrap the wider one.
    spread = np.array([[-0.1, 0.1]] * 4)
    found = paired_difference(spread)
    assert (found.low, found.high) == paired_bootstrap(spread)
