"""The joint polish: against a literal loop, its budget, and what becomes of the set."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import run, sampling, training
from dasm_jax.dasm import run_dasm
from dasm_jax.keys import Use, key_for
from dasm_jax.plan import matching_flops, plan_segments
from dasm_jax.pools import make_pool_maker
from dasm_jax.segment import make_class_images
from dasm_jax.settings import from_config
from tests.small import small_config, small_problem
from tests.test_methods import embedding_distance

ROOT = jax.random.key(0)
DM = {
    "matcher__name": "dm",
    "matcher__dm__image__lr": 2.0,
    "matcher__dm__loop__niter": 8,
    "matcher__dm__loop__inner": 3,
    "dasm__polish": 0.5,
    "dasm__polish_rate": 0.25,
}


def literal_polish(problem, segments, rates):
    """All stored images as one set against every real image, at a rate per iteration.

    Plain SGD with momentum on what networks see; each step has a network of its own.
    Half the FLOPs of ten outer iterations are two at twice the cost.
    """
    m, statistics = problem.settings.matcher.dm, problem.statistics
    low, high = (
        training.normalize(jnp.full((1, 1, 1, 1), level), statistics)[None]
        for level in (0.0, 1.0)
    )
    together = jnp.concatenate([result.pixels for result in segments], axis=1)
    inputs = training.normalize(together.reshape(-1, 8, 8, 1), statistics)
    inputs = inputs.reshape(together.shape)
    everything = sampling.make_table(problem.class_indices)
    place, velocity = sampling.start_sampler(everything), jnp.zeros_like(inputs)
    matched = jax.jit(
        jax.value_and_grad(
            lambda z, params, real, key: embedding_distance(
                problem, params, z, real, key
            )
        )
    )
    distances, step = [], 0
    for rate in rates:
        inputs = jnp.clip(inputs, low, high)
        for _ in range(m.loop.inner):
            params = problem.network.init(key_for(ROOT, Use.NETWORK_INIT, 3, step))
            place, index = sampling.next_batch(
                key_for(ROOT, Use.REAL_ORDER, 3, 0), place, everything, m.real_batch
            )
            real = training.normalize(
                training.to_unit(problem.real.images[index.reshape(-1)]), statistics
            ).reshape(2, m.real_batch, 8, 8, 1)
            key = key_for(ROOT, Use.MATCH, 3, step)
            value, grad = matched(inputs, params, real, key)
            velocity = m.image.momentum * velocity + grad
            inputs = inputs - rate * m.image.lr * velocity
            distances.append(float(value))
            step += 1
    pixels = training.denormalize(inputs.reshape(-1, 8, 8, 1), statistics)
    return np.clip(pixels, 0, 1).reshape(together.shape), np.array(distances)


def run_watched(problem):
    seen = []
    results = run_dasm(problem, on_outer=seen.append)
    return results, [each for each in seen if each.plan.covers]


@pytest.mark.parametrize(
    ("target", "of_segments"), [("class", "pool"), ("pool", "pool"), ("pool", "class")]
)
def test_what_a_polish_is_matched_against(target, of_segments):
    problem = small_problem(
        **DM,
        dasm__polish_target=target,
        dasm__target=of_segments,
        dasm__rho=0.5,
        dasm__random_share=0.0,
    )
    make_pool = make_pool_maker(problem, ROOT)
    finished = [np.full((2, 2, 8, 8, 1), level, np.float32) for level in (0.2, 0.7)]
    last, polish = make_pool(2, 0, finished[:1]), make_pool(3, 0, finished)
    if "class" in (target, of_segments):
        assert polish.difficulty is None
        for members, indices in zip(polish.members, problem.class_indices, strict=True):
            np.testing.assert_array_equal(members, indices)
        return
    # By networks that have seen both segments, at the place of the last one.
    assert (polish.difficulty.scores != last.difficulty.scores).any()
    for members, indices in zip(polish.members, problem.class_indices, strict=True):
        ranks = np.argsort(np.argsort(polish.difficulty.scores[indices]))
        quantiles = (ranks + 0.5) / len(indices)
        inside = (quantiles >= 0.5) & (quantiles <= 0.95)
        assert len(members) < len(indices)
        assert {*indices[inside]} <= {*members}


@pytest.mark.parametrize(
    ("of_images", "of_polish", "rates"),
    [
        ("constant", "matcher", (0.25, 0.25)),
        ("constant", "cosine", (0.25, 0.125)),
        ("cosine", "matcher", (0.25, 0.125)),
    ],
)
@pytest.mark.slow
def test_a_polish_is_the_matcher_on_the_whole_set(of_images, of_polish, rates):
    problem = small_problem(
        **DM, matcher__dm__image__schedule=of_images, dasm__polish_schedule=of_polish
    )
    *plans, last = plan_segments(problem)
    # Half of eight iterations would be four; all images at once cost more than half.
    problem_plans = [*plans, last._replace(outer_iterations=2)]
    before = run_dasm(problem, plans)
    seen = []
    results = run_dasm(problem, problem_plans, on_outer=seen.append)
    ours = [each.distances for each in seen if each.plan.covers]
    pixels, distances = literal_polish(problem, before, rates)
    np.testing.assert_allclose(np.concatenate(ours).sum(axis=1), distances, rtol=1e-4)
    together = np.concatenate([result.pixels for result in results], axis=1)
    np.testing.assert_allclose(together, pixels, atol=2e-5)
    moved = [np.abs(a.pixels - b.pixels).max() for a, b in zip(results, before)]
    assert min(moved) > 0.01  # every segment


def test_segments_stay_what_the_set_is_made_of():
    problem = small_problem(**DM, dasm__segments=3, dasm__pool="full")
    results, _ = run_watched(problem)
    *plans, last = plan_segments(problem)
    assert [result.plan.size for result in results] == [2, 1, 1] == [*last.covers]
    assert [result.plan.segment for result in results] == [1, 2, 3]
    for result in results:
        assert result.pixels.shape[:2] == (2, result.plan.size)
        assert 0 <= result.pixels.min() <= result.pixels.max() <= 1
    # What it cost belongs to all images alike.
    shares = [result.plan.polish_flops / last.flops for result in results]
    assert shares == pytest.approx([0.5, 0.25, 0.25])
    spent = sum(result.plan.flops for result in results)
    assert spent == sum(plan.flops for plan in plans) + last.flops


@pytest.mark.parametrize("kind", ["flops", "steps", "per_segment"])
def test_a_polish_is_paid_by_the_segments(kind):
    loop = {"matcher__idc__loop__niter": 200, "dasm__budget": kind}
    plain = plan_segments(small_problem(**loop))
    *plans, last = plan_segments(
        small_problem(**loop, dasm__polish=0.25, dasm__polish_rate=0.5)
    )
    assert last.covers == (2, 2)
    assert last.learning_rate == pytest.approx(0.5 * 0.5 * 4 / 10)
    whole = sum(plan.flops for plan in plain)
    assert last.flops == pytest.approx(0.25 * whole, rel=0.02)
    for ours, theirs in zip(plans, plain, strict=True):
        assert ours.flops == pytest.approx(0.75 * theirs.flops, rel=0.02)
        assert ours._replace(outer_iterations=0) == theirs._replace(outer_iterations=0)
    problem = small_problem(**loop)
    together = matching_flops(problem, 4, None)
    assert last.flops_per_step == pytest.approx(together, rel=0.02)


def test_one_segment_is_never_polished():
    whole = {"dasm__segments": 1, "matcher__name": "dm"}
    assert plan_segments(small_problem(**whole, dasm__polish=0.5)) == plan_segments(
        small_problem(**whole)
    )


def test_trajectory_matching_is_never_polished():
    mtt = {"matcher__name": "mtt"}
    assert plan_segments(small_problem(**mtt, dasm__polish=0.5)) == plan_segments(
        small_problem(**mtt)
    )


def test_a_rate_of_zero_leaves_every_bit():
    changes = {**DM, "dasm__polish_rate": 0.0, "matcher__dm__image__momentum": 0.5}
    problem = small_problem(**changes)
    before = run_dasm(problem, plan_segments(problem)[:-1])
    for a, b in zip(run_dasm(problem), before, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize(
    "changes",
    [
        {"dasm__context": "cumulative"},
        {"matcher__idc__trajectory__start": "segments", "dasm__rescore_every": 1},
        {"matcher__name": "dsa"},
    ],
    ids=["cumulative", "segments", "dsa"],
)
@pytest.mark.slow
def test_a_polish_of_other_kinds(changes):
    problem = small_problem(**{"network__depth": 1, "dasm__polish": 0.3, **changes})
    results, outer = run_watched(problem)
    for members in results[-1].pool.members:
        assert len(members) < 40
    pool = outer[0].snapshot().active.pool
    np.testing.assert_array_equal(pool.members, problem.class_indices)
    assert pool.difficulty is None
    assert len(pool.networks) == 2 * ("segments" in changes.values())
    assert len(results) == 2


def test_tiles_are_those_of_the_segments():
    """Their stored images are decoded as ``export`` does, not as one larger set's."""
    tiles = {"synthetic__factor": 2, "synthetic__formation": "bound"}
    problem = small_problem(**tiles, dasm__polish=0.3, dasm__segments=3)
    last, make = plan_segments(problem)[-1], make_class_images
    pixels = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    images = make(problem.parameterization, last.covers)
    together = images(jnp.asarray(pixels), jnp.asarray(pixels[:0]), None, None)
    apart = [
        problem.parameterization.decode(
            jnp.asarray(part), problem.parameterization.tiles(len(part))
        )
        for part in np.split(pixels, [2, 3])
    ]
    np.testing.assert_array_equal(together, jnp.concatenate(apart))


@pytest.mark.slow
def test_a_run_with_a_polish(tmp_path):
    config = small_config(
        **DM, evaluate__networks=1, network__depth=1, measure__networks=1
    )
    run.run(from_config(config), str(tmp_path))
    records = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    kinds = [record["kind"] for record in records if record["kind"] != "outer"]
    assert kinds[:3] == ["segment", "segment", "polish"]
    assert kinds.count("measures") == 2
    named = [r.get("part") for r in records if r["kind"] == "outer"]
    assert named.count("polish") >= 1
    assert "polish outer 1/" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "images" / "polished.png").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())
    parts = [r for r in records if r["kind"] in ("segment", "polish")]
    assert summary["matching_flops"] == sum(r["matching_flops"] for r in parts)
    with np.load(tmp_path / "synthetic.npz") as stored:
        assert stored["stored_segments"].tolist() == [1] * 20 + [2] * 20
