"""A polish that pulls every segment by the prefix it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax.matching import Matcher
from dasm_jax.objectives import set_distance
from dasm_jax.parameterization import make_parameterization
from dasm_jax.plan import matching_flops, plan_segments
from dasm_jax.segment import Variables, make_groups
from dasm_jax.types import Batch
from tests.small import slow_but, small_problem

ROOT = jax.random.key(0)


def mean_of(group):
    """A matcher that compares the mean image with the target."""
    images, weights = group
    return jnp.tensordot(weights, images, 1) / weights.sum()


MEAN = Matcher(
    target=lambda view, real: real,
    summary=lambda view, batch: mean_of((batch.images, batch.weights)),
    compare=lambda mean, target: jnp.sum((mean - target) ** 2),
)


def nested_gradients(pixels, sizes, nested):
    """Of one class whose real images have the mean 0.25."""
    groups = make_groups(
        make_parameterization("single", 1, (4, 4)), sizes, apart=nested > 0
    )

    def distance(pixels):
        shown = groups(pixels, pixels[:0], ROOT, 100).moving
        batches = [Batch(images, None, weights) for images, weights in shown]
        return set_distance(MEAN, None, jnp.float32(0.25), [], batches, nested)

    return jax.grad(distance)(pixels)


def test_a_nested_polish_pulls_a_segment_by_the_prefix_it_ends():
    """As a run of that prefix alone would, at the rate that IDC has for its size."""
    sizes = (2, 1, 3)
    pixels = jax.random.uniform(ROOT, (6, 4, 4, 1))
    nested = nested_gradients(pixels, sizes, 1.0)
    together = nested_gradients(pixels, sizes, 0.0)
    first = 0
    for size in sizes:
        end = first + size
        alone = nested_gradients(pixels[:end], (end,), 0.0) * end / 6
        np.testing.assert_allclose(nested[first:end], alone[first:end], rtol=1e-5)
        first = end
    # Half of it is the pull of the whole set.
    half = nested_gradients(pixels, sizes, 0.5)
    np.testing.assert_allclose(half, (nested + together) / 2, rtol=1e-5)
    assert np.abs(nested - together)[:3].max() > 1e-3
    np.testing.assert_allclose(nested[3:], together[3:], rtol=1e-5)


def test_groups_stand_for_their_segments_where_some_images_are_chosen():
    groups = make_groups(make_parameterization("single", 1, (4, 4)), (6, 3), apart=True)
    pixels = jnp.arange(9.0)[:, None, None, None] * jnp.ones((9, 4, 4, 1))
    shown = groups(pixels, pixels[:0], ROOT, 5).moving
    assert [len(images) for images, _ in shown] == [3, 2]
    assert [float(weights.sum()) for _, weights in shown] == [6, 3]
    first, second = (set(images[:, 0, 0, 0].tolist()) for images, _ in shown)
    assert first < set(range(6))
    assert second < {6, 7, 8}
    assert [len(first), len(second)] == [3, 2]  # none twice


@pytest.mark.parametrize("formation", ["single", "multi", "bound"])
def test_groups_are_the_images_of_the_set(formation):
    sizes = (2, 1, 1)
    tiles = make_parameterization(formation, 2, (8, 8))
    pixels = jax.random.uniform(ROOT, (4, 8, 8, 1))
    given = (pixels, pixels[:0], ROOT, 1000)
    apart = make_groups(tiles, sizes, apart=True)(*given).moving
    ((together, weights),) = make_groups(tiles, sizes, apart=False)(*given).moving
    assert len(apart) == 3
    found = jnp.concatenate([images for images, _ in apart])
    np.testing.assert_array_equal(found, together)
    np.testing.assert_allclose(jnp.concatenate([w for _, w in apart]), weights)


@pytest.mark.parametrize("name", slow_but(["idc", "dm", "cafe"], "idc", "cafe"))
def test_what_comes_later_does_not_pull_a_nested_segment(name):
    """From the field to the gradients that a step is made of."""
    changes = {"matcher__name": name, "network__depth": 1, "dasm__segments": 2}
    sizes = (2, 2)

    def gradients_of(share):
        problem = small_problem(
            **changes, dasm__polish=0.5, dasm__polish_nested=share, ipc=4
        )
        real = problem.real.images[
            jnp.stack([jnp.asarray(own[:8]) for own in problem.class_indices])
        ]
        params = problem.network.init(ROOT)

        @jax.jit
        def gradients(pixels):
            _, grads = problem.method.objective(sizes, problem.loop).whole(
                problem.loop._replace(mesh=None),
                ROOT,
                Variables(pixels, ()),
                params,
                real,
                pixels[:, :0],
            )
            return grads.pixels

        return gradients

    pixels = jax.random.uniform(ROOT, (2, 4, 8, 8, 1))
    later = pixels.at[:, 2:].set(1 - pixels[:, 2:])
    nested, other = map(gradients_of(1.0), (pixels, later))
    np.testing.assert_array_equal(nested[:, :2], other[:, :2])
    together, moved = map(gradients_of(0.0), (pixels, later))
    assert np.abs(together - moved)[:, :2].max() > 1e-6
    # The last one ends the whole set.
    scale = np.abs(together).max()
    np.testing.assert_allclose(nested[:, 2:], together[:, 2:], atol=1e-4 * scale)
    assert np.abs(nested - together)[:, :2].max() > 1e-2 * scale


@pytest.mark.parametrize("name", slow_but(["idc", "dm", "dsa", "cafe"], "idc", "cafe"))
def test_a_nested_polish_costs_what_a_joint_one_does(name):
    """A prefix's summary is the mean of those of its segments."""
    changes = {"matcher__name": name, "dasm__polish": 0.5, "dasm__segments": 2}
    plain, nested = (
        plan_segments(small_problem(**changes, dasm__polish_nested=share))[-1]
        for share in (0.0, 1.0)
    )
    assert nested.flops_per_step == pytest.approx(plain.flops_per_step, rel=0.05)


def test_images_that_stand_still_leave_half_the_room_to_the_active_ones():
    """As many finished ones as there is room for; they stand for all of them."""
    groups = make_groups(make_parameterization("single", 1, (4, 4)), (6, 4), apart=True)
    pixels = jnp.arange(10.0)[:, None, None, None] * jnp.ones((10, 4, 4, 1))
    for most, still, moving in ((100, 6, 4), (9, 5, 4), (6, 3, 3), (1, 1, 1)):
        shown = groups(pixels[6:], pixels[:6], ROOT, most)
        ((first, of_first),), ((second, of_second),) = shown
        assert (len(first), len(second)) == (still, moving)
        assert set(first[:, 0, 0, 0].tolist()) <= set(range(6))
        assert set(second[:, 0, 0, 0].tolist()) <= set(range(6, 10))
        np.testing.assert_allclose(of_first.sum(), 6)
        np.testing.assert_allclose(of_second.sum(), 4)


def test_finished_segments_cost_no_second_derivative():
    """A step on one of two segments costs what it learns, not what it sees."""
    problem = small_problem(network__depth=1, dasm__budget="flops", ipc=8)
    alone = matching_flops(problem, 4, None)
    beside = matching_flops(problem, 4, (4, 4))
    whole = matching_flops(problem, 8, None)
    assert alone < beside < alone + 0.65 * (whole - alone)
