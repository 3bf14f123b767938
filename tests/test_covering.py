"""Segments that start from what the finished ones leave uncovered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import coreset, selection
from dasm_jax.dasm import run_dasm
from dasm_jax.plan import plan_segments
from dasm_jax.pools import make_pool_maker
from dasm_jax.selection import Covered
from dasm_jax.starts import start_pixels
from tests.small import small_problem, small_results

ROOT = jax.random.key(0)
COVER = {"synthetic__init": "uncovered"}


def three_groups():
    """Evidence of 12 images in each of three places, and where those are."""
    places = 50 * jnp.eye(3, 5)
    draws = jax.random.normal(jax.random.key(1), (3, 12, 5))
    rows = (draws + places[:, None]).reshape(36, 5)
    return selection.evidence_of(ROOT, np.asarray(rows), 40), places


def test_new_centres_go_to_what_is_not_covered():
    evidence, places = three_groups()
    exists = jnp.array([True, False])  # what does not exist covers nothing
    for covered in range(3):
        rows = places[jnp.array([covered, (covered + 1) % 3])]
        chosen = selection.cover(evidence, 2, Covered(rows, exists))
        groups = {int(place) // 12 for place in chosen}
        assert groups == {0, 1, 2} - {covered}


def test_where_nothing_is_covered_it_is_k_means():
    evidence, places = three_groups()
    nothing = Covered(places, jnp.zeros(3, bool))
    np.testing.assert_array_equal(
        selection.cover(evidence, 7, nothing), selection.k_means(evidence, 7)
    )


def test_a_pool_of_another_size_compiles_nothing(caplog):
    """Nearly every class of every segment has one of its own."""
    rows = np.zeros((50, 3), np.float32)
    selection.evidence_of(ROOT, rows, 50)
    with jax.log_compiles():
        for count in (7, 23, 41):
            selection.evidence_of(ROOT, rows[:count], 50)
    assert not [r.message for r in caplog.records if "ompil" in r.message]


def test_where_all_is_covered_no_image_is_taken_twice():
    evidence = selection.evidence_of(ROOT, np.zeros((6, 2), np.float32), 9)
    covered = Covered(jnp.zeros((1, 2)), jnp.ones(1, bool))
    chosen = np.asarray(selection.cover(evidence, 6, covered))
    assert sorted(chosen.tolist()) == list(range(6))


def gaps(rows, centres):
    """Squared distance of every row to the nearest centre."""
    return ((rows[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1)


@pytest.mark.slow
def test_the_second_segment_covers_what_the_first_does_not():
    dm = {"matcher__name": "dm", "matcher__dm__trajectory__start": "segments"}
    problem = small_problem(**COVER, **dm, ipc=8)
    make_pool = make_pool_maker(problem, ROOT)
    images, (first, second) = problem.dataset.train.images, plan_segments(problem)
    pool = make_pool(1, 0, [])
    finished = np.asarray(start_pixels(problem, ROOT, first, pool, []))
    pool = make_pool(2, 0, [finished])
    network = pool.networks[0]
    embedded = np.asarray(coreset.embed(problem, network))
    embed = coreset.make_embedder(problem)
    pixels = np.asarray(start_pixels(problem, ROOT, second, pool, [finished]))
    for label, members in enumerate(pool.members):
        starts = pool.starts[label]
        assert len(starts) == 4
        assert set(starts) <= set(members)
        levels = np.rint(255 * pixels[label]).reshape(4, -1)
        np.testing.assert_array_equal(
            np.sort(levels, axis=0), np.sort(images[starts].reshape(4, -1), axis=0)
        )
        held = np.asarray(embed(network, jnp.asarray(finished[label])))
        rows = embedded[members]
        ours = gaps(rows, np.concatenate([held, embedded[starts]])).mean()
        draws = np.random.default_rng(0)
        by_chance = [
            gaps(rows, np.concatenate([held, draws.choice(rows, 4, replace=False)]))
            for _ in range(20)
        ]
        assert ours < np.quantile(np.mean(by_chance, axis=1), 0.1)


def test_covering_changes_every_segment_but_the_first():
    ours, plain = run_dasm(small_problem(**COVER)), small_results()
    np.testing.assert_array_equal(ours[0].pixels, plain[0].pixels)
    assert np.isfinite(ours[1].pixels).all()
    assert not np.array_equal(ours[1].pixels, plain[1].pixels)
    assert ours[1].pool.starts is None  # of no use any more


def test_a_class_smaller_than_a_segment_is_gone_round_again():
    problem = small_problem(**COVER, ipc=24)
    few = [indices[:5] for indices in problem.class_indices]
    problem = problem._replace(class_indices=few)
    finished = np.zeros((len(few), 12, *problem.dataset.image_shape), np.float32)
    pool = make_pool_maker(problem, ROOT)(2, 0, [finished])
    for starts, own in zip(pool.starts, few, strict=True):
        assert len(starts) == 12
        assert set(starts) == set(own)
