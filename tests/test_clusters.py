"""Real batches of one image per cluster of the pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import coreset, selection
from dasm_jax.clusters import make_clusterer
from dasm_jax.dasm import run_dasm
from dasm_jax.keys import Use, key_for
from dasm_jax.plan import plan_segments
from dasm_jax.pools import make_pool_maker
from dasm_jax.segment_setup import parts_of, segment_data, step_of
from tests.small import small_problem, small_results

ROOT = jax.random.key(0)
KMEANS = {"matcher__name": "dm", "matcher__dm__batches": "kmeans"}


def is_nearest_to_its_own_mean(rows, of):
    means = np.stack([rows[of == number].mean(axis=0) for number in np.unique(of)])
    gaps = ((rows[:, None] - means[None]) ** 2).sum(axis=2)
    return np.unique(of)[gaps.argmin(axis=1)] == of


def test_groups_that_are_apart_are_found():
    draws = jax.random.normal(jax.random.key(1), (3, 12, 5))
    rows = (draws + 50 * jnp.arange(3.0)[:, None, None]).reshape(36, 5)
    padded = jnp.pad(rows, ((0, 4), (0, 0)))
    nothing = jnp.zeros(40)
    evidence = selection.ClassEvidence(
        ROOT, padded, nothing, nothing, jnp.arange(40) < 36
    )
    found = np.asarray(selection.clusters(evidence, 3))[:36].reshape(3, 12)
    assert (found == found[:, :1]).all()
    assert len(set(found[:, 0])) == 3


def test_pools_are_clustered_by_pixels_first_and_by_embeddings_then():
    problem = small_problem(**KMEANS, matcher__dm__trajectory__start="segments")
    make_pool = make_pool_maker(problem, ROOT)
    images = problem.dataset.train.images
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    first = make_pool(1, 0, [])
    half = images.reshape(2, 40, 8, 8, 1)[:, :2].astype(np.float32) / 255
    second = make_pool(2, 0, [half])
    embedded = np.asarray(coreset.embed(problem, second.networks[0]))
    for pool, rows, others in [(first, pixels, None), (second, embedded, pixels)]:
        for members, of in zip(pool.members, pool.clusters, strict=True):
            assert of.shape == members.shape
            assert 5 <= len(np.unique(of)) <= 8
            assert is_nearest_to_its_own_mean(rows[members], of).all()
            if others is not None:
                assert not is_nearest_to_its_own_mean(others[members], of).all()


def test_a_class_smaller_than_a_batch():
    cluster = make_clusterer(small_problem(**KMEANS), ROOT)
    members = [np.arange(3), np.array([41, 50])]
    found = cluster(1, 0, members, None)
    assert [len(set(of)) for of in found] == [3, 2]


def test_a_step_sees_one_random_image_of_every_cluster():
    problem = small_problem(**KMEANS)
    (plan, _), m = plan_segments(problem), problem.settings.matcher.dm
    pool = make_pool_maker(problem, ROOT)(1, 0, [])
    data = segment_data(problem, plan, pool, 0, [])
    parts = parts_of(problem, plan)
    step = step_of(problem, parts)
    pixels = np.zeros((2, plan.size, 8, 8, 1), np.float32)
    state = parts.start(pixels, (), None, data)
    batches = []
    for number in range(3):
        state, seen = step.look(ROOT, state, data)
        # Restated: a uniform number below the size of every cluster, class by class.
        groups = [
            [own[of == b] if (of == b).any() else own for b in range(m.real_batch)]
            for own, of in zip(pool.members, pool.clusters, strict=True)
        ]
        sizes = np.array([[len(group) for group in of] for of in groups], np.int32)
        key = key_for(ROOT, Use.REAL_MEMBERS, 1, number)
        places = np.asarray(jax.random.randint(key, sizes.shape, 0, sizes))
        for label in range(2):
            if (np.bincount(pool.clusters[label], minlength=m.real_batch) == 0).any():
                continue  # of an empty cluster the order is another
            index = [g[p] for g, p in zip(groups[label], places[label], strict=True)]
            np.testing.assert_array_equal(
                seen.real[label], problem.dataset.train.images[index]
            )
            batches.append(index)
    assert len(batches) >= 3
    assert len({tuple(index) for index in batches}) == len(batches)


@pytest.mark.parametrize("rule", ["full", "window"])
def test_batches_by_clusters_change_the_set(rule):
    ours = run_dasm(small_problem(**KMEANS, dasm__pool=rule))
    plain = small_results(matcher__name="dm", dasm__pool=rule)
    for a, b in zip(ours, plain, strict=True):
        assert np.isfinite(a.pixels).all()
        assert not np.array_equal(a.pixels, b.pixels)
        assert a.pool.clusters is None  # of no use any more
    np.testing.assert_array_equal(ours[0].pool.members, plain[0].pool.members)
