"""Batches: without replacement in a pass, never padding, fixed by key and pass."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies

from dasm_jax.sampling import (
    make_clusters,
    make_table,
    next_batch,
    one_of_each,
    prefix_table,
    start_sampler,
)

WIDTH = 9


@partial(jax.jit, static_argnums=(2, 3))
def scanned(key, table, size, count):
    """``count`` batches i32[count, G, size] by ``lax.scan``, and the state after."""

    def body(state, _):
        return next_batch(key, state, table, size)

    return jax.lax.scan(body, start_sampler(table), None, length=count)


def draw(seed, groups, size, count):
    """As ``scanned``, in NumPy; a table of one width, so that it compiles once."""
    table = make_table([np.asarray(group) for group in groups], WIDTH)
    state, batches = scanned(jax.random.key(seed), table, size, count)
    return jax.tree.map(np.asarray, state), np.asarray(batches)


def members(first, count):
    """A group that holds no 0, which is what padding looks like."""
    return np.arange(first, first + count)


GROUPS = [members(100, 9), members(200, 7), members(300, 2)]


def test_a_pass_hands_out_no_image_twice_and_drops_the_rest():
    state, batches = draw(0, GROUPS, 3, 12)
    passes = batches[:, 0].reshape(4, 9)  # 9 = 3 batches: the whole group, every time
    np.testing.assert_array_equal(np.sort(passes, axis=1), [GROUPS[0]] * 4)
    passes = batches[:, 1].reshape(6, 6)  # 7 = 2 batches and one image that waits
    assert [len(set(row)) for row in passes] == [6] * 6
    np.testing.assert_array_equal(np.unique(passes), GROUPS[1])
    np.testing.assert_array_equal(state.epoch, [3, 5, 11])


def test_a_group_smaller_than_a_batch_goes_round():
    _, batches = draw(1, GROUPS, 5, 20)
    small = batches[:, 2]
    np.testing.assert_array_equal(np.sort(small[:, :2]), [[300, 301]] * 20)
    np.testing.assert_array_equal(small[:, 2:4], small[:, :2])
    np.testing.assert_array_equal(small[:, 4], small[:, 0])
    assert set(small[:, 0]) == {300, 301}  # shuffled anew for every batch


def test_passes_are_shuffled_differently():
    _, batches = draw(2, GROUPS, 3, 30)
    assert len({tuple(row) for row in batches[:, 0].reshape(10, 9)}) == 10


def test_key_decides():
    np.testing.assert_array_equal(draw(3, GROUPS, 3, 12)[1], draw(3, GROUPS, 3, 12)[1])
    assert (draw(3, GROUPS, 3, 12)[1] != draw(4, GROUPS, 3, 12)[1]).any()


def test_groups_do_not_disturb_each_other():
    _, batches = draw(5, GROUPS, 3, 12)
    others = [members(500, 1), GROUPS[1], members(600, 4)]
    _, beside_others = draw(5, others, 3, 12)
    np.testing.assert_array_equal(batches[:, 1], beside_others[:, 1])
    _, twins = draw(5, [members(0, 9), members(0, 9), members(0, 9)], 3, 12)
    assert (twins[:, 0] != twins[:, 1]).any()  # nor do they move in step
    assert (twins[:, 1] != twins[:, 2]).any()


def test_one_call_at_a_time_equals_the_scan():
    key, table = jax.random.key(6), make_table(GROUPS, WIDTH)
    state, batches = start_sampler(table), []
    step = jax.jit(next_batch, static_argnums=3)
    for _ in range(7):
        state, batch = step(key, state, table, 3)
        batches.append(np.asarray(batch))
    np.testing.assert_array_equal(batches, draw(6, GROUPS, 3, 12)[1][:7])


@settings(max_examples=25, deadline=None)
@given(
    strategies.lists(strategies.integers(1, WIDTH), min_size=3, max_size=3),
    strategies.integers(0, 2**31 - 1),
)
def test_every_pass_of_groups_of_any_size(counts, seed):
    groups = [members(100 * (g + 1), n) for g, n in enumerate(counts)]
    size, total = 4, 9
    state, batches = draw(seed, groups, size, total)
    for g, (group, n) in enumerate(zip(groups, counts)):
        per_pass = max(n // size, 1)
        for first in range(0, total, per_pass):
            taken = batches[first : first + per_pass, g].ravel()
            assert set(taken) <= set(group)
            times = np.array([(taken == member).sum() for member in group])
            most = 1 if n >= size else -(-size // n)
            assert times.max() <= most
            assert n >= size or times.min() >= size // n
        assert state.epoch[g] == (total - 1) // per_pass


def test_table_layout():
    table = make_table([np.array([4, 2]), np.array([7, 8, 9])])
    np.testing.assert_array_equal(table.indices, [[4, 2, 0], [7, 8, 9]])
    np.testing.assert_array_equal(table.counts, [2, 3])
    assert table.indices.dtype == table.counts.dtype == np.int32
    assert make_table([np.array([4])], 5).indices.shape == (1, 5)


def test_prefix_table():
    table = prefix_table(3, 5)
    np.testing.assert_array_equal(table.indices, [[0, 1, 2, 0, 0]])
    np.testing.assert_array_equal(table.counts, [3])


@pytest.mark.parametrize(
    ("sizes", "width"), [((2, 0), None), ((2, 3), 2), ((0,), 4)], ids=str
)
def test_groups_that_do_not_fit(sizes, width):
    with pytest.raises(ValueError, match="groups must have 1 to"):
        make_table([np.arange(size) for size in sizes], width)


# --- one of each cluster --------------------------------------------------------------

CLUSTERS = [np.array([2, 0, 2, 1, 0, 2, 2, 1, 0]), np.array([3, 3, 1, 0, 0, 1, 3])]


def test_clusters_lie_one_after_another():
    table, clusters = make_clusters(GROUPS[:2], CLUSTERS, 4, WIDTH)
    np.testing.assert_array_equal(table.counts, [9, 7])
    for row, group, of in zip(range(2), GROUPS, CLUSTERS, strict=False):
        for number in range(4):
            start, count = clusters.starts[row, number], clusters.counts[row, number]
            held = table.indices[row, start : start + count]
            own = group[of == number]
            if len(own):
                np.testing.assert_array_equal(held, own)
            else:  # the whole group
                np.testing.assert_array_equal(np.sort(held), group)


def test_a_batch_has_one_image_of_each_cluster():
    table, clusters = make_clusters(GROUPS[:2], CLUSTERS, 4, WIDTH)
    draw_at = jax.jit(
        lambda number: one_of_each(
            jax.random.fold_in(jax.random.key(0), number), table, clusters
        )
    )
    drawn = np.stack([np.asarray(draw_at(number)) for number in range(600)])
    assert drawn.shape == (600, 2, 4)
    for row, (group, of) in enumerate(zip(GROUPS, CLUSTERS, strict=False)):
        for number in range(4):
            own = group[of == number] if (of == number).any() else group
            members, times = np.unique(drawn[:, row, number], return_counts=True)
            np.testing.assert_array_equal(members, own)
            np.testing.assert_allclose(times, 600 / len(own), rtol=0.35)
    np.testing.assert_array_equal(draw_at(7), drawn[7])
