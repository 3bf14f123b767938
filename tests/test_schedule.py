"""From scores to pools, against examples worked out by hand."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasm_jax.errors import UserError
from dasm_jax.schedule import (
    POOLS,
    ClassDifficulty,
    PoolContext,
    Window,
    class_pool,
    cosine_low,
    covered_low,
    linear_low,
    reached_high,
    segment_sizes,
    within_reach,
)

# Five images, two of equal difficulty. Ranks 4, 1, 2, 3, 0 (of a tie, that with the
# smaller draw is easier), so quantiles .9, .3, .5, .7, .1.
DIFFICULTY = ClassDifficulty(
    scores=np.array([3.0, 1.0, 1.0, 2.0, 0.0]),
    learned=np.array([False, True, False, False, True]),
    confidence=np.array([0.1, 0.95, 0.4, 0.3, 0.8]),
)
CONTEXT = PoolContext(
    window=Window(0.2, 0.6),
    segment=2,
    segments=3,
    start=0.4,
    gamma=1.0,
    easiest_share=0.5,
    draws=np.array([0.9, 0.1, 0.5, 0.2, 0.7]),
    ties=np.array([0.9, 0.1, 0.5, 0.2, 0.7]),
)


def pool_of(rule, difficulty=DIFFICULTY, context=CONTEXT, **options):
    options = {"random_share": 0.0, "minimum": 1, **options}
    options.setdefault("extra", np.linspace(0, 0.9, len(difficulty.scores)))
    return class_pool(POOLS[rule], difficulty, context, **options).tolist()


# --- segments and windows -------------------------------------------------------------


def test_segment_sizes():
    assert segment_sizes(10, 5) == (2, 2, 2, 2, 2)
    assert segment_sizes(13, 5) == (3, 3, 3, 2, 2)
    assert segment_sizes(7, 1) == (7,)
    assert segment_sizes(3, 3) == (1, 1, 1)


@given(st.integers(1, 200), st.data())
def test_segments_are_equal_but_for_the_remainder(ipc, data):
    sizes = segment_sizes(ipc, data.draw(st.integers(1, ipc)))
    assert sum(sizes) == ipc
    assert sizes == tuple(sorted(sizes, reverse=True))
    assert 0 <= sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("low", [linear_low, cosine_low])
def test_window_rises_from_0_to_rho(low):
    lows = [low(k, 5, 0.3) for k in range(1, 6)]
    assert lows[0] == 0
    assert lows[2] == pytest.approx(0.15)
    assert lows[4] == pytest.approx(0.3)
    assert (np.diff(lows) > 0).all()
    assert low(1, 1, 0.3) == 0


def test_shapes_of_the_rise():
    assert [linear_low(k, 4, 0.3) for k in (2, 3)] == pytest.approx([0.1, 0.2])
    # Half a cosine: (1 − cos 60°)/2 = 1/4 and (1 − cos 120°)/2 = 3/4.
    assert [cosine_low(k, 4, 0.4) for k in (2, 3)] == pytest.approx([0.1, 0.3])


def test_coverage_drops_what_is_right_and_sure():
    four = ClassDifficulty(
        scores=np.zeros(4),
        learned=np.array([True, True, False, True]),
        confidence=np.array([0.95, 0.5, 0.99, 0.92]),
    )
    assert covered_low(four, 0.9, 0.95) == 0.5
    assert covered_low(four, 0.4, 0.95) == 0.75
    assert covered_low(four, 0.4, 0.8) == pytest.approx(0.7)  # a tenth is left
    assert covered_low(four, 0.4, 0.05) == 0


def test_a_ceiling_leaves_out_what_is_given_less_than_a_guess():
    five = DIFFICULTY._replace(confidence=np.array([0.1, 0.95, 0.4, 0.3, 0.8]))
    assert reached_high(five, 0.1, 1.0) == 1.0  # a guess is enough
    assert reached_high(five, 0.25, 1.0) == 0.8
    assert reached_high(five, 0.25, 0.7) == 0.7
    assert reached_high(five, 0.99, 1.0) == 0.1  # a tenth is left
    assert reached_high(five, 0.99, 0.05) == 0.05


def test_within_reach_is_what_is_given_a_guess_and_no_fewer_than_asked():
    confidence = np.array([0.1, 0.95, 0.4, 0.3, 0.8])
    assert within_reach(confidence, 0.1, 0).tolist() == [0, 1, 2, 3, 4]
    assert within_reach(confidence, 0.35, 0).tolist() == [1, 2, 4]
    assert within_reach(confidence, 0.9, 2).tolist() == [1, 4]  # the most confident
    assert within_reach(confidence, 0.9, 9).tolist() == [0, 1, 2, 3, 4]
    thirty = np.arange(30) / 100
    assert within_reach(thirty, 0.5, 0).tolist() == [27, 28, 29]  # a tenth is left


# --- rules ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("window", [1, 2]),  # quantiles .3, .5
        ("reverse", [2, 3]),  # from the top: .1, .3, .5, .7, .9 of 0, 3, 2, 1, 4
        ("random", [1, 3]),  # two, as the window holds; draws .1 and .2
        # Largest u^(1/w) of .965, .1, .5, .447, 0 (Efraimidis & Spirakis 2006).
        ("weighted", [0, 2]),
        ("disjoint", [2]),  # the second third of .1, .3, .5, .7, .9
        ("static_filter", [0, 2, 3]),  # all above .4
        ("static_window", [2]),  # the rest of that, as high as the window
        ("not_yet_learned_easiest", [2, 3]),  # half of 0, 2, 3, rounded up
        ("full", [0, 1, 2, 3, 4]),
    ],
)
def test_rules_by_hand(rule, expected):
    assert pool_of(rule) == expected


def test_every_rule_is_worked_out_above():
    assert len(POOLS) == 9


def test_gamma_sharpens_the_weights():
    # u^(1/w²): .988, .1, .5, .669, 0
    assert pool_of("weighted", context=CONTEXT._replace(gamma=2.0)) == [0, 3]
    # no weights: the largest draws
    assert pool_of("weighted", context=CONTEXT._replace(gamma=0.0)) == [0, 4]


def test_weighted_draws_in_proportion_to_the_score():
    difficulty = ClassDifficulty(np.array([1.0, 2.0, 5.0]), *[np.zeros(3, bool)] * 2)
    numbers = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(3000):
        draws = numbers.random(3)
        context = CONTEXT._replace(window=Window(0, 0.3), draws=draws, ties=draws)
        (chosen,) = pool_of("weighted", difficulty, context)
        counts[chosen] += 1
    np.testing.assert_allclose(counts / 3000, [1 / 8, 2 / 8, 5 / 8], atol=0.03)


def test_weighted_takes_scores_below_zero():
    """A margin lies in [−1, 1]; the easiest image gets weight 0."""
    margins = DIFFICULTY._replace(scores=np.array([0.5, -0.9, -1.0, 0.9, -0.8]))
    keys = [0.9 ** (1 / 1.5), 0.1 ** (1 / 0.1), 0, 0.2 ** (1 / 1.9), 0.7 ** (1 / 0.2)]
    expected = sorted(np.argsort(keys)[-2:].tolist())
    assert pool_of("weighted", margins) == expected


def test_disjoint_parts_make_up_the_class():
    twelve = ClassDifficulty(np.arange(12.0)[::-1], *[np.zeros(12, bool)] * 2)
    of_twelve = CONTEXT._replace(segments=4, draws=np.zeros(12), ties=np.zeros(12))
    parts = [
        pool_of("disjoint", twelve, of_twelve._replace(segment=k)) for k in (1, 2, 3, 4)
    ]
    assert parts == [[9, 10, 11], [6, 7, 8], [3, 4, 5], [0, 1, 2]]


def test_disjoint_parts_make_up_a_class_of_equals():
    numbers = np.random.default_rng(0)
    equal = ClassDifficulty(np.zeros(12), *[np.zeros(12, bool)] * 2)
    context = CONTEXT._replace(segments=4, ties=numbers.random(12))
    parts = [
        pool_of(
            "disjoint", equal, context._replace(segment=k, draws=numbers.random(12))
        )
        for k in (1, 2, 3, 4)
    ]
    assert sorted(np.concatenate(parts).tolist()) == list(range(12))


def test_chance_breaks_ties():
    # Not the place in the dataset, which would leave out the same images every time.
    equal = DIFFICULTY._replace(scores=np.zeros(5))
    easiest = [x.item() for x in np.sort(np.argsort(CONTEXT.ties)[:3])]
    half = CONTEXT._replace(window=Window(0, 0.5))
    assert pool_of("window", equal, half) == easiest == [1, 2, 3]
    assert pool_of("reverse", equal, half) == [0, 2, 4]


# --- size of a pool -------------------------------------------------------------------


def test_too_small_a_window_is_filled_up_with_the_nearest():
    context = CONTEXT._replace(window=Window(0.6, 0.75))  # holds 3 (.7)
    sizes = [pool_of("window", context=context, minimum=n) for n in range(1, 8)]
    # then 2 (.1 away), 0 (.15), 1 (.3), 4 (.5)
    whole = [0, 1, 2, 3, 4]
    assert sizes == [[3], [2, 3], [0, 2, 3], [0, 1, 2, 3], whole, whole, whole]


def test_not_yet_learned_is_filled_up_with_the_hardest_learned():
    fill = partial(pool_of, "not_yet_learned_easiest")
    assert fill(minimum=3) == [0, 2, 3]
    assert fill(minimum=4) == [0, 1, 2, 3]  # of 1 (.3) and 4 (.1)


def test_random_share_joins_whatever_its_difficulty():
    extra = np.array([0.5, 0.9, 0.8, 0.3, 0.1])
    assert pool_of("window", extra=extra, random_share=0.4) == [1, 2, 3, 4]
    assert pool_of("window", extra=extra, random_share=1.0) == [0, 1, 2, 3, 4]
    context = CONTEXT._replace(window=Window(0.95, 1.0))  # holds nobody
    share = {"extra": extra, "random_share": 0.2, "minimum": 0}
    assert pool_of("window", context=context, **share) == [4]


def test_empty_pool():
    context = CONTEXT._replace(window=Window(0.95, 1.0))
    with pytest.raises(UserError, match=r"segment 2: the window \[0.95, 1.00\]") as e:
        pool_of("window", context=context, minimum=0)
    assert "dasm.rho" in str(e.value)
    assert "\n" not in str(e.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pools_of_anything(data):
    rule = data.draw(st.sampled_from(sorted(POOLS)))
    scores = data.draw(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
    count = len(scores)
    low = data.draw(st.floats(0, 1))
    segments = data.draw(st.integers(1, 6))
    share = data.draw(st.floats(0, 1))
    minimum = data.draw(st.integers(1, 15))
    numbers = np.random.default_rng(data.draw(st.integers(0, 9)))
    pool = class_pool(
        POOLS[rule],
        ClassDifficulty(
            np.array(scores, np.float32),
            numbers.random(count) < 0.5,
            numbers.random(count),
        ),
        PoolContext(
            window=Window(low, data.draw(st.floats(low, 1))),
            segment=data.draw(st.integers(1, segments)),
            segments=segments,
            start=data.draw(st.floats(0, 1)),
            gamma=data.draw(st.floats(0, 3)),
            easiest_share=data.draw(st.floats(0, 1)),
            draws=numbers.random(count),
            ties=numbers.random(count),
        ),
        extra=numbers.random(count),
        random_share=share,
        minimum=minimum,
    )
    assert len(pool) >= max(min(minimum, count), round(share * count))
    assert (np.diff(pool) > 0).all()
    assert pool[0] >= 0
    assert pool[-1] < count
