"""Generated cases: settings, schedules, pools and decoding. 6,200 in all."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dasm_jax import schedule
from dasm_jax.errors import UserError
from dasm_jax.parameterization import (
    BOUND,
    FORMATIONS,
    PADDING_VALUE,
    decoded_count,
    make_parameterization,
)
from dasm_jax.schedule import ClassDifficulty, PoolContext, Window
from dasm_jax.settings import check_against_data, from_config, to_dict
from tests.generated import cases, result_or_one_line
from tests.settings_cases import LEAVES, config_with

# --- settings -------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**31, 2**63]),
    st.floats(),
    st.floats(0, 1),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from([*{v for v in LEAVES.values() if isinstance(v, str)}]),
    st.sampled_from(["vgg11/batch/16", "vgg11/" + "9" * 5000, "\x1b[2J\n", "\ud800"]),
)
SCALARS = st.one_of(NUMBERS, TEXTS, st.booleans(), st.none())
ANYTHING = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.lists(SCALARS, max_size=3).map(tuple)
)


def like(value):
    """Values of the type that a field has, in range or not, and now and then others."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int | float):
        return NUMBERS
    return TEXTS if isinstance(value, str) else ANYTHING


CHANGES = st.lists(st.sampled_from(sorted(LEAVES)), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries(
        {name: st.one_of(like(LEAVES[name]), ANYTHING) for name in names}
    )
)


@cases(1500)
@given(
    changes=CHANGES,
    counts=st.lists(st.integers(1, 100), min_size=1, max_size=3),
    shape=st.tuples(*[st.integers(1, 300)] * 2, st.sampled_from([1, 3])),
)
def test_a_config_is_settings_or_one_line(changes, counts, shape):
    def read():
        found = from_config(config_with(**changes))
        check_against_data(found, counts, shape)
        return found

    found = result_or_one_line(read)
    if found is None:
        return
    # What was accepted is what was asked for, and holds the promises of its fields.
    plain = to_dict(found)
    for name, value in changes.items():
        kept = plain
        for key in name.split("__"):
            kept = kept[key]
        if name != "network__width":
            assert kept == (tuple(value) if isinstance(value, list) else value)
    assert found.dasm.segments >= 1
    made_whole = found.experiment in ("recover", "evaluate")
    assert made_whole or found.dasm.segments <= found.ipc
    assert 0 <= found.dasm.rho < found.dasm.high <= 1
    assert 0 <= found.seed < 2**31


# --- schedules ------------------------------------------------------------------------


@cases(1000)
@given(ipc=st.integers(1, 10_000), data=st.data())
def test_segments_share_the_images(ipc, data):
    segments = data.draw(st.integers(1, min(ipc, 300)))
    sizes = schedule.segment_sizes(ipc, segments)
    assert sum(sizes) == ipc
    assert len(sizes) == segments
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)


@cases(500)
@given(
    rise=st.sampled_from(sorted(schedule.RISES)),
    segments=st.integers(1, 40),
    rho=st.floats(0, 1),
)
def test_windows_rise_from_nothing_to_rho(rise, segments, rho):
    lows = [schedule.RISES[rise](k, segments, rho) for k in range(1, segments + 1)]
    assert lows[0] == 0
    assert all(a <= b + 1e-12 for a, b in pairwise(lows))
    assert max(lows) <= rho + 1e-12
    if segments > 1:
        assert lows[-1] == pytest.approx(rho, abs=1e-12)


BUDGETS = st.floats(1, 1e12)


@cases(500)
@given(steps=st.integers(1, 10**6), segments=st.integers(1, 50), costs=st.data())
def test_budgets_hold(steps, segments, costs):
    from dasm_jax.budget import steps_of_segment

    whole = costs.draw(BUDGETS)
    each = costs.draw(st.lists(BUDGETS, min_size=segments, max_size=segments))
    spent = {
        name: [steps_of_segment(name, steps, segments, whole, one) for one in each]
        for name in ("flops", "steps", "per_segment")
    }
    flops = sum(count * one for count, one in zip(spent["flops"], each))
    assert flops == pytest.approx(steps * whole)
    assert sum(spent["steps"]) == pytest.approx(steps)
    assert spent["per_segment"] == [steps] * segments


# --- pools ----------------------------------------------------------------------------


@st.composite
def classes(draw):
    """Difficulty of the n images of a class, ties and all, and three draws of each."""
    count = draw(st.integers(1, 40))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0, -3.0, 1e30])

    def array(of, dtype):
        return draw(hnp.arrays(dtype, count, elements=of))

    difficulty = ClassDifficulty(
        array(values, np.float32),
        array(st.booleans(), bool),
        array(st.sampled_from([0.0, 0.5, 1.0]), np.float32),
    )
    draws = st.floats(0, 1, exclude_max=True, width=32)
    return difficulty, *(array(draws, np.float32) for _ in range(3))


@cases(1500)
@given(
    name=st.sampled_from(sorted(schedule.POOLS)),
    of_class=classes(),
    segment=st.integers(1, 6),
    more=st.integers(0, 5),
    rho=st.floats(0, 0.9),
    width=st.floats(1e-3, 1),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    gamma=st.floats(0, 5),
    minimum=st.integers(0, 60),
)
def test_pools_are_of_their_class(
    name, of_class, segment, more, rho, width, shares, gamma, minimum
):
    difficulty, draws, ties, extra = of_class
    count, segments = len(draws), segment + more
    low = schedule.linear_low(segment, segments, rho)
    high = min(rho + width, 1.0)
    context = PoolContext(
        Window(low, high), segment, segments, rho, gamma, shares[0], draws, ties
    )

    def pool(random_share, minimum):
        return schedule.class_pool(
            schedule.POOLS[name],
            difficulty,
            context,
            extra=extra,
            random_share=random_share,
            minimum=minimum,
        )

    try:
        members = pool(shares[1], minimum)
    except UserError:
        # Nothing was chosen, and nothing was asked for beside the rule.
        assert minimum == 0
        assert round(shares[1] * count) == 0
        return
    assert members.tolist() == sorted(set(members.tolist()))
    assert members[0] >= 0
    assert members[-1] < count
    assert len(members) >= max(min(minimum, count), round(shares[1] * count), 1)
    # Whoever is chosen without a random share is chosen with one, and with more room.
    alone = pool(0.0, max(minimum, 1))
    assert set(alone) <= set(pool(shares[1], max(minimum, 1)))
    assert set(alone) <= set(pool(0.0, max(minimum, 1) + 3))


@cases(300)
@given(of_class=classes(), segments=st.integers(1, 6))
def test_disjoint_pools_are_a_partition(of_class, segments):
    difficulty, draws, ties, _ = of_class
    found = []
    for segment in range(1, segments + 1):
        context = PoolContext(
            Window(0.0, 1.0), segment, segments, 0.0, 0.0, 0.0, draws, ties
        )
        draws = draws[::-1]  # those of another segment
        priority, size = schedule.disjoint_rule(difficulty, context)
        found += np.argsort(priority, kind="stable")[:size].tolist()
    assert sorted(found) == list(range(len(draws)))


# --- decoding -------------------------------------------------------------------------


@cases(600)
@given(
    kind=st.sampled_from(FORMATIONS),
    factor=st.integers(1, 8),
    count=st.integers(0, 300),
    bound=st.integers(1, 400),
)
def test_decoded_counts(kind, factor, count, bound):
    size = (factor, factor + 1)
    made = make_parameterization(kind, factor, size, bound=bound)
    formation = made.tiles(count)
    found = decoded_count(kind, factor, count, bound=bound)
    assert [len(field) for field in formation] == [found] * 3
    assert set(formation.sources.tolist()) == set(range(count))  # all take part
    pieces = set(zip(*(field.tolist() for field in formation)))
    assert len(pieces) == found  # no tile twice
    assert count <= found <= count * sum(f**2 for f in range(1, factor + 1))
    if kind == "bound":
        assert found <= max(count, bound)
    assert kind != "single" or found == count * factor**2
    assert BOUND == 128


SIZES = ((4, 4), (5, 7), (8, 6))
COUNT = 3


def enlarged(lines, side):
    """Bilinear along the first axis, centres half a pixel in, edges repeated."""
    count = len(lines)
    places = np.clip((np.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
    columns = [np.interp(places, np.arange(count), line) for line in lines.T]
    return np.stack(columns, axis=1)


@cases(300)
@given(
    kind=st.sampled_from(FORMATIONS),
    factor=st.integers(1, 3),
    size=st.sampled_from(SIZES),
    numbers=st.lists(st.integers(0, 255), min_size=8, max_size=8),
)
def test_decoded_images_are_tiles_of_their_source(kind, factor, size, numbers):
    made = make_parameterization(kind, factor, size)
    values = np.resize(np.float32(numbers) / 255, (COUNT, *size, 1))
    formation = made.tiles(COUNT)
    images = np.asarray(made.decode(jnp.asarray(values), formation))
    assert images.shape == (len(formation.sources), *size, 1)
    if factor == 1:
        np.testing.assert_array_equal(images, values[formation.sources])
        return
    for image, source, row, column in zip(images, *formation):
        # Factors lie one behind the other in the tables: 1, then 2 twos, …
        f = next(f for f in (1, 2, 3) if row < f * (f + 1) // 2)
        first = f * (f - 1) // 2
        height, width = (-(-side // f) for side in size)
        top, left = (row - first) * height, (column - first) * width
        whole = np.pad(
            values[source, ..., 0],
            [(0, f * part - side) for part, side in zip((height, width), size)],
            constant_values=PADDING_VALUE,
        )
        tile = whole[top : top + height, left : left + width]
        expected = enlarged(enlarged(tile, size[0]).T, size[1]).T
        np.testing.assert_allclose(image[..., 0], expected, atol=1e-5)
        assert expected.min() >= tile.min() - 1e-6  # never outside of what is stored
        assert expected.max() <= tile.max() + 1e-6
