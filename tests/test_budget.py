"""Loops, rates and shares of a budget, against figures worked out by hand."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from dasm_jax.budget import (
    SegmentPlan,
    count_flops,
    image_rate,
    published_loop,
    steps_of_segment,
    tapered,
)

PUBLISHED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15)}
PUBLISHED[50] = (50, 10)


@pytest.mark.parametrize(("ipc", "loop"), PUBLISHED.items())
def test_published_loops(ipc, loop):
    assert tuple(published_loop(ipc)) == loop
    assert (published_loop(ipc).inner, published_loop(ipc).epochs) == loop


@pytest.mark.parametrize(
    ("ipc", "loop"),
    [
        (2, (2, 6)),  # 1 + 49/9 = 6.4
        (4, (4, 17)),  # 1 + 3·49/9 = 17.3
        (9, (9, 45)),  # 1 + 8·49/9 = 44.6
        (12, (12, 42)),  # 500/12 = 41.7
        (25, (25, 20)),
        (45, (45, 11)),  # 500/45 = 11.1
        (100, (50, 5)),
        (500, (50, 1)),
        (5000, (50, 1)),
    ],
)
def test_loops_in_between(ipc, loop):
    assert tuple(published_loop(ipc)) == loop


def test_the_rule_is_monotone_and_never_nothing():
    loops = [published_loop(ipc) for ipc in range(1, 2001)]
    inner = [loop.inner for loop in loops]
    assert inner == sorted(inner)
    assert inner[0] == 1
    assert max(inner) == 50
    epochs = [loop.epochs for loop in loops]
    assert min(epochs) == 1
    assert all(type(count) is int for count in epochs)
    assert epochs[:10] == sorted(epochs[:10])
    # 30 and 40 are published and lie above the rule.
    rule = [n for ipc, n in enumerate(epochs, 1) if ipc >= 10 and ipc not in (30, 40)]
    assert rule == sorted(rule, reverse=True)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("flops", 300.0),  # 1000 steps · 6e9 are 5 equal shares of 1.2e12, 4e9 a step
        ("steps", 200.0),
        ("per_segment", 1000),
    ],
)
def test_steps_of_a_segment(budget, steps):
    assert steps_of_segment(budget, 1000, 5, 6e9, 4e9) == pytest.approx(steps)


@pytest.mark.parametrize("budget", ["flops", "steps", "per_segment"])
def test_one_segment_takes_all_steps(budget):
    assert steps_of_segment(budget, 70, 1, 3e9, 3e9) == pytest.approx(70)


def test_equal_flops_whatever_a_step_costs():
    for cost in (1e6, 2.5e6, 4e6):
        assert steps_of_segment("flops", 100, 4, 8e6, cost) * cost == 2e8


@pytest.mark.parametrize("taper", [0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("segments", [1, 2, 5, 49, 1000])
def test_what_tapers_has_equal_steps_and_the_same_sum(segments, taper):
    factors = tapered(segments, taper)
    assert sum(factors) == pytest.approx(segments)
    for one, after in itertools.pairwise(factors):
        assert after == pytest.approx(taper * one, rel=1e-9, abs=1e-300)
    if taper == 1 or segments == 1:  # exactly, so that no iteration is rounded away
        assert factors == [1.0] * segments


def test_an_unknown_budget_is_no_budget():
    with pytest.raises(KeyError):
        steps_of_segment("time", 1, 1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("size", "side", "base", "rate"),
    [
        (10, 32, 32, 5e-3),
        (2, 32, 32, 1e-3),
        (10, 8, 32, 3.125e-4),
        (50, 64, 32, 0.1),
        (1, 28, 32, 3.828125e-4),
    ],
)
def test_rate_of_the_images(size, side, base, rate):
    assert image_rate("idc", 5e-3, size, side, base) == pytest.approx(rate, rel=1e-12)
    assert image_rate("inputs", 5e-3, size, side, base) == 5e-3


def test_flops_of_a_plan():
    plan = SegmentPlan(1, 2, 3, 4, 5, 0.1, "constant", 1e6)
    assert plan.flops == 12e6


def test_flops_are_those_of_a_matrix_product():
    shape = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    other = jax.ShapeDtypeStruct((16, 4), jnp.float32)
    assert count_flops(jnp.dot, shape, other) == 2 * 8 * 16 * 4
