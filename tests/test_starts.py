"""Which real images the segments start from, and what they are matched against."""

import itertools

import jax
import numpy as np
import pytest

from dasm_jax.dasm import run_dasm
from dasm_jax.plan import plan_segments
from dasm_jax.pools import Pool, digest, matched_members
from dasm_jax.starts import start_pixels
from tests.small import small_problem

ROOT = jax.random.key(0)


def starts(members=None, **changes):
    """Pixels that each segment starts with; its pool is every image by default."""
    problem = small_problem(**changes)
    pool = Pool(members or problem.class_indices, None, [], 0.0)
    plans = plan_segments(problem)
    return [np.asarray(start_pixels(problem, ROOT, plan, pool, [])) for plan in plans]


@pytest.mark.parametrize("init", ["mix", "random", "kmeans"])
def test_no_two_segments_start_from_the_same_image(init):
    of_segments = starts(ipc=20, dasm__segments=5, synthetic__init=init)
    for label in range(2):
        images = np.concatenate([pixels[label] for pixels in of_segments])
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 20


def test_a_pool_without_enough_of_its_own_is_used_whole():
    problem = small_problem(ipc=20, dasm__segments=5)
    few = [indices[:5] for indices in problem.class_indices]
    of_segments = starts(few, ipc=20, dasm__segments=5)
    real = problem.dataset.train.images / np.float32(255)
    for pixels, label in itertools.product(of_segments, range(2)):
        distance = np.abs(pixels[label][:, None] - real[few[label]][None])
        nearest = distance.max(axis=(2, 3, 4)).argmin(axis=1)
        assert len(set(nearest.tolist())) == 4  # without replacement inside a segment


def test_the_class_as_target_leaves_the_pool_its_starts():
    problem = small_problem(dasm__target="class")
    few = [indices[:5] for indices in problem.class_indices]
    assert matched_members(problem, few) is problem.class_indices
    assert matched_members(small_problem(), few) is few
    pool, whole = run_dasm(small_problem()), run_dasm(problem)
    # The first pool is everything; the second one starts alike, and is matched apart.
    np.testing.assert_array_equal(pool[0].pixels, whole[0].pixels)
    pools = [digest(np.concatenate(r[1].pool.members)) for r in (pool, whole)]
    assert pools[0] == pools[1]
    assert not np.array_equal(pool[1].pixels, whole[1].pixels)
