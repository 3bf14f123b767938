"""Pools of a run: windows, rules, judges, ceilings, rescoring."""

from itertools import pairwise

import chex
import jax
import numpy as np
import pytest

from dasm_jax import dasm, schedule
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import SameForAll
from tests.small import small_problem, small_results


def run_dm(**changes):
    """With the matcher that compiles fastest, where it is the pools that matter."""
    return small_results(matcher__name="dm", **changes)


@pytest.fixture(scope="module")
def base():
    return small_results()


def test_first_pool_is_everything_and_later_ones_follow_the_scores(base):
    problem = small_problem()
    first, second = base
    for members, indices in zip(first.pool.members, problem.class_indices, strict=True):
        np.testing.assert_array_equal(members, indices)
    assert first.pool.difficulty is None
    scores = second.pool.difficulty.scores
    for members, indices in zip(
        second.pool.members, problem.class_indices, strict=True
    ):
        ranks = np.argsort(np.argsort(scores[indices], kind="stable"))
        quantiles = (ranks + 0.5) / len(indices)
        inside = indices[(quantiles >= 0.3) & (quantiles <= 0.95)]
        assert set(inside) <= set(members)
        assert len(members) < len(indices)


@pytest.mark.parametrize("pool", sorted(schedule.POOLS))
def test_every_pool_rule_runs(pool):
    first, second = run_dm(dasm__pool=pool, dasm__random_share=0.0)
    scored = pool not in ("full", "random")
    assert (second.pool.difficulty is not None) == scored
    sizes = [len(members) for members in second.pool.members]
    if pool == "full":
        assert sizes == [40, 40]
    else:
        assert all(10 <= size < 40 for size in sizes)
    whole = [len(members) == 40 for members in first.pool.members]
    assert all(whole) == (pool not in schedule.STATIC)


def test_scored_by_networks_trained_on_real_images():
    _, second = run_dm(dasm__scored_by="real")
    first_disjoint, _ = run_dm(dasm__scored_by="real", dasm__pool="disjoint")
    _, other = run_dm()
    assert not np.array_equal(
        second.pool.difficulty.scores, other.pool.difficulty.scores
    )
    assert [len(members) for members in first_disjoint.pool.members] != [40, 40]


@pytest.mark.parametrize(
    "score", ["el2n", "margin", "grad_norm", "misclassified", "forgetting"]
)
def test_every_score_runs(score):
    _, second = run_dm(dasm__score=score)
    scores = second.pool.difficulty.scores
    assert scores.shape == (80,)
    assert np.isfinite(scores).all()
    assert not np.allclose(scores, run_dm()[1].pool.difficulty.scores)


def window_sizes(problem, result, low):
    """Images per class whose quantile lies in [low, 0.95]."""
    high = problem.settings.dasm.high
    quantiles = (np.arange(40) + 0.5) / 40
    return [int(((quantiles >= low) & (quantiles <= high)).sum())] * 2


@pytest.mark.parametrize(("rise", "low"), [("linear", 0.5 / 3), ("cosine", 0.125)])
def test_the_window_rises_as_scheduled(rise, low):
    changes = {"dasm__segments": 4, "dasm__schedule": rise, "dasm__rho": 0.5}
    changes |= {"matcher__name": "dm", "matcher__dm__loop__niter": 4}
    problem = small_problem(**changes, dasm__random_share=0.0)
    second = run_dasm(problem)[1]
    sizes = [len(members) for members in second.pool.members]
    assert sizes == window_sizes(problem, second, low)


@pytest.mark.parametrize("pool", ["window", "random"])
def test_a_ceiling_follows_what_the_networks_reach(pool):
    problem = small_problem(
        dasm__pool=pool,
        dasm__ceiling="chance",
        dasm__rho=0.0,
        dasm__high=1.0,
        dasm__random_share=0.0,
        dasm__score_steps=2,
        matcher__name="dm",
    )
    second = run_dasm(problem)[1]
    difficulty, smallest = second.pool.difficulty, 10
    reached = [
        max(int((difficulty.confidence[indices] >= 1 / 2).sum()), smallest)
        for indices in problem.class_indices
    ]
    assert [len(members) for members in second.pool.members] == reached
    assert smallest < max(reached) < 40  # or the test would see nothing
    for members, indices in zip(second.pool.members, problem.class_indices):
        easiest = indices[np.argsort(difficulty.scores[indices])][: len(members)]
        assert (set(easiest) == set(members)) == (pool == "window")


@pytest.mark.parametrize("pool", ["window", "static_window", "static_filter"])
def test_a_ceiling_below_the_window_leaves_a_tenth_of_the_class(monkeypatch, pool):
    monkeypatch.setattr(schedule, "reached_high", lambda *arguments: 0.59)
    problem = small_problem(
        dasm__pool=pool,
        dasm__ceiling="chance",
        dasm__rho=0.7,
        dasm__random_share=0.0,
        matcher__name="dm",
        matcher__dm__real_batch=1,
        ipc=2,
    )
    second = run_dasm(problem)[1]
    ranks = np.argsort(np.argsort(second.pool.difficulty.scores[:40]))
    held = np.sort(ranks[second.pool.members[0]])
    expected = {"static_filter": [*range(28, 40)]}  # which no ceiling touches
    # Quantiles .49 to .59, and the nearest one, for five are the fewest.
    assert held.tolist() == expected.get(pool, [19, 20, 21, 22, 23])


def test_a_ceiling_that_does_not_bind_changes_nothing(monkeypatch):
    changes = {"dasm__rho": 0.6, "dasm__high": 0.65, "dasm__random_share": 0.0}
    changes["matcher__name"] = "dm"
    plain = small_results(**changes)
    monkeypatch.setattr(schedule, "reached_high", lambda _, guess, high: high)
    under = run_dasm(small_problem(**changes, dasm__ceiling="chance"))
    for a, b in zip(plain, under, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


WITHIN_REACH = {
    "dasm__ceiling": "learnable",
    "dasm__rho": 0.0,
    "dasm__high": 1.0,
    "dasm__random_share": 0.0,
    "dasm__score_steps": 12,
    "matcher__name": "dm",
}


def test_what_the_real_data_do_not_teach_is_in_no_pool():
    real = small_problem(**WITHIN_REACH | {"dasm__scored_by": "real"})
    confidence = run_dasm(real)[1].pool.difficulty.confidence
    first, second = run_dasm(small_problem(**WITHIN_REACH))
    chex.assert_trees_all_equal(first.pool.members, real.class_indices)
    sizes = []
    for members, indices in zip(second.pool.members, real.class_indices, strict=True):
        surest = indices[np.argsort(-confidence[indices], kind="stable")]
        count = max(int((confidence[indices] >= 1 / 2).sum()), 10)
        assert members.tolist() == sorted(surest[:count])
        sizes.append(count)
    assert 10 < sum(sizes) / 2 < 40  # or the test would see nothing
    # The order within is that of networks trained on the segments.
    assert not np.array_equal(second.pool.difficulty.confidence, confidence)


@pytest.mark.parametrize("pool", sorted(schedule.POOLS))
def test_every_rule_but_the_full_pool_stays_within_reach(pool):
    changes = WITHIN_REACH | {"dasm__pool": pool, "dasm__random_share": 0.5}
    problem = small_problem(**changes)
    second = run_dasm(problem)[1]
    reach = run_dasm(small_problem(**WITHIN_REACH))[1].pool.members
    beyond = [
        set(members) - set(within)
        for members, within in zip(second.pool.members, reach, strict=True)
    ]
    assert any(beyond) == (pool == "full")


def test_one_segment_has_no_ceiling():
    changes = {"dasm__segments": 1, "matcher__name": "dm"}
    (plain,) = small_results(**changes)
    trained = []
    problem = small_problem(**changes, dasm__ceiling="learnable")
    (under,) = run_dasm(problem, on_network=lambda: trained.append(1))
    assert not trained
    np.testing.assert_array_equal(plain.pixels, under.pixels)


def test_coverage_drops_what_is_learned_with_confidence():
    problem = small_problem(
        dasm__schedule="coverage",
        dasm__coverage=0.5,
        dasm__random_share=0.0,
        matcher__name="dm",
    )
    second = run_dasm(problem)[1]
    difficulty = second.pool.difficulty
    for members, indices in zip(
        second.pool.members, problem.class_indices, strict=True
    ):
        sure = difficulty.learned[indices] & (difficulty.confidence[indices] > 0.5)
        low = min(sure.mean(), 0.85)
        quantiles = (np.arange(40) + 0.5) / 40
        expected = int(((quantiles >= low) & (quantiles <= 0.95)).sum())
        assert len(members) == max(expected, 10)


@pytest.mark.parametrize(
    ("polish", "expected"),
    [
        (0.0, [(1, 0, 0), (2, 0, 1), (2, 1, 2), (2, 2, 2)]),
        (0.7, [(1, 0, 0), (2, 0, 1), (3, 0, 2), (3, 1, 2), (3, 2, 2)]),
    ],
)
def test_rescoring_follows_the_images_that_move(polish, expected):
    rounds, sets = [], []
    problem = small_problem(
        dasm__rescore_every=1,
        dasm__polish=polish,
        dasm__polish_target="pool",
        matcher__idc__loop__niter=6,
        dasm__score_steps=4,
        matcher__idc__trajectory__data="pool",
    )
    original = dasm.make_pool_maker

    def watched(*arguments, **options):
        make_pool = original(*arguments, **options)

        def wrapped(segment, pool_round, finished):
            rounds.append((segment, pool_round, len(finished)))
            sets.append(np.concatenate(finished or [np.zeros(0)], axis=None))
            return make_pool(segment, pool_round, finished)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dasm, "make_pool_maker", watched)
        run_dasm(problem)
    assert rounds == expected
    for before, after in pairwise(sets):  # each of another set
        assert before.shape != after.shape or (before != after).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"dasm__score": "ce"},
        # Whether a network is wrong is a number even where its logits are none.
        {"dasm__score": "misclassified"},
        # Those that judge nothing, and choose starts or are matched on.
        {"dasm__pool": "full", "synthetic__init": "uncovered"},
        {"dasm__pool": "full", "matcher__idc__trajectory__start": "segments"},
    ],
)
def test_networks_that_diverge_stop_a_run(changes):
    problem = small_problem(
        **changes, evaluate__recipe__lr=1e30, evaluate__recipe__augment="none"
    )
    make_pool = dasm.make_pool_maker(problem, jax.random.key(0))
    finished = np.random.default_rng(0).random((4, 2, 8, 8, 1), np.float32)
    n_classes = problem.dataset.n_classes
    with pytest.raises(SameForAll, match=r"segment 2 diverged; lower config\.evaluate"):
        make_pool(2, 0, [finished[:n_classes]])
