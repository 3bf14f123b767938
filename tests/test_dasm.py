"""The segment loop, and every choice that the method leaves open."""

import chex
import jax
import numpy as np
import pytest

from dasm_jax import dasm, distill, sampling, segment_setup
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import NonFiniteError
from dasm_jax.loops import Loop
from dasm_jax.memo import Shelf
from dasm_jax.plan import matching_flops, plan_segments
from dasm_jax.pools import Pool
from dasm_jax.segment_setup import parts_of
from dasm_jax.supply import make_supplier
from tests.small import slow_but, small_problem, small_results


def run(**changes):
    return run_dasm(small_problem(**changes))


def same(a, b):
    return all(np.array_equal(x.pixels, y.pixels) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def base():
    return small_results()


def test_segments_are_sized_matched_and_frozen():
    frozen = []
    problem = small_problem(dasm__segments=3, matcher__idc__loop__niter=6)
    results = run_dasm(problem, on_segment=lambda r: frozen.append(r.pixels.copy()))
    assert [result.plan.size for result in results] == [2, 1, 1]
    assert [result.plan.outer_iterations for result in results] == [2, 2, 2]
    for result, pixels in zip(results, frozen, strict=True):
        np.testing.assert_array_equal(result.pixels, pixels)
        assert result.pixels.min() >= 0
        assert result.pixels.max() <= 1
    synthetic = dasm.synthetic_set([result.pixels for result in results])
    assert synthetic.segments.tolist() == [1] * 4 + [2] * 2 + [3] * 2
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 0, 1, 0, 1]


def test_matching_moves_the_pixels_and_lowers_the_distance():
    seen = []
    # One network that stays as it is, all real images, no augmentation: no noise.
    problem = small_problem(
        matcher__idc__loop__niter=1,
        matcher__idc__loop__inner=40,
        dasm__segments=1,
        matcher__idc__trajectory__recipe__lr=0.0,
        matcher__idc__real_batch=40,
        matcher__idc__augment="none",
    )
    run_dasm(problem, on_outer=lambda p: seen.append(p.distances))
    assert (seen[0][-1] < 0.7 * seen[0][0]).all()


def test_the_learning_rate_follows_the_segment():
    whole = plan_segments(small_problem(dasm__segments=1))[0]
    parts = plan_segments(small_problem(dasm__segments=2))
    assert whole.learning_rate == pytest.approx(0.5 * 4 / 10)
    assert [p.learning_rate for p in parts] == pytest.approx([0.5 * 2 / 10] * 2)
    # Of a mean over all images that share the batch, each has a smaller share.
    parts = plan_segments(small_problem(dasm__context="cumulative"))
    assert [p.learning_rate for p in parts] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("context", slow_but(["active", "cumulative"], "active"))
@pytest.mark.parametrize("niter", [7, 8, 9, 10, 11])
def test_whole_iterations_add_up_to_the_budget(niter, context):
    changes = {"matcher__idc__loop__niter": niter, "dasm__context": context, "ipc": 8}
    problem = small_problem(dasm__segments=4, dasm__budget="flops", **changes)
    plans = plan_segments(problem)
    spent = sum(plan.flops for plan in plans)
    iteration = plans[-1].inner * plans[-1].flops_per_step
    budget = niter * plans[0].inner * matching_flops(problem, 8, None)
    assert abs(spent - budget) <= 0.51 * iteration


@pytest.mark.parametrize(
    "changes",
    [
        {"ipc": 10, "dasm__segments": 3},
        {"ipc": 8, "dasm__polish": 0.5},
        {"ipc": 9, "dasm__segments": 3, "dasm__taper": 0.5},
    ],
    ids=["unequal", "polished", "tapered"],
)
@pytest.mark.parametrize("niter", [9, 10, 11])
def test_so_they_do_where_steps_cost_more_and_less(niter, changes):
    changes = {"matcher__idc__loop__niter": niter, **changes}
    problem = small_problem(dasm__budget="flops", **changes)
    plans = plan_segments(problem)
    spent = sum(plan.flops for plan in plans)
    iteration = plans[-1].inner * plans[-1].flops_per_step
    budget = niter * plans[0].inner * matching_flops(problem, changes["ipc"], None)
    assert abs(spent - budget) <= 0.51 * iteration


def test_budgets():
    def outer(budget):
        problem = small_problem(
            dasm__budget=budget, matcher__idc__loop__niter=20, ipc=8
        )
        return [plan.outer_iterations for plan in plan_segments(problem)]

    assert outer("steps") == [10, 10]
    assert outer("per_segment") == [20, 20]
    problem = small_problem(dasm__budget="flops", matcher__idc__loop__niter=20, ipc=8)
    whole = matching_flops(problem, 8, None)
    spent = sum(p.outer_iterations * p.flops_per_step for p in plan_segments(problem))
    assert outer("flops")[0] > 10
    assert spent == pytest.approx(20 * whole, rel=0.05)


@pytest.mark.parametrize("context", slow_but(["cumulative", "active"], "cumulative"))
def test_a_prefix_has_the_flops_of_a_run_of_its_size(context):
    """Its first segment is such a run; about those where there are more."""
    changes = {
        "dasm__budget": "prefix",
        "dasm__context": context,
        "matcher__idc__loop__niter": 6,
        "matcher__idc__synthetic_batch": 64,
    }
    problem = small_problem(**changes, ipc=8, dasm__segments=4)
    plans = plan_segments(problem)
    spent = np.cumsum([plan.flops for plan in plans]) / plans[0].inner
    for size, flops in zip((2, 4, 6, 8), spent, strict=True):
        own = 6 * matching_flops(problem, size, None)
        assert flops == pytest.approx(own, rel=0.08)
    assert plans[:1] == plan_segments(small_problem(**changes, ipc=2, dasm__segments=1))


def test_iterations_that_taper():
    problem = small_problem(
        matcher__idc__loop__niter=21, ipc=6, dasm__segments=3, dasm__taper=0.5
    )
    # 21 steps for all of them, in parts of 4 : 2 : 1.
    assert [plan.outer_iterations for plan in plan_segments(problem)] == [12, 6, 3]


def test_no_segment_of_a_known_size_is_traced_again(monkeypatch):
    chex.clear_trace_counter()
    traces = []
    make_step = distill.make_step

    def counted(*arguments):
        step = make_step(*arguments)

        def traced(state, grads):
            traces.append(state.variables.pixels.shape[1])
            return step.move(state, grads)

        # Two sizes, one definition.
        return step._replace(move=chex.assert_max_traces(traced, n=2))

    monkeypatch.setattr(distill, "make_step", counted)
    monkeypatch.setattr(segment_setup, "PROGRAMS", Shelf())
    run(dasm__segments=3)  # 2 + 1 + 1 images per class
    assert traces == [2, 1]
    run(dasm__segments=3, seed=1)  # nor in another run
    assert traces == [2, 1]


def test_a_host_transfer_inside_the_update_is_an_error(monkeypatch):
    segment_data = dasm.segment_data
    monkeypatch.setattr(
        dasm, "segment_data", lambda *a: jax.device_get(segment_data(*a))
    )
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run()


@pytest.mark.slow
def test_scan_on_accelerators_gives_the_same_numbers(base):
    problem = small_problem()
    rolled = problem._replace(loop=Loop(rolled=True, steps_per_call=2))
    for ours, theirs in zip(run_dasm(rolled), base, strict=True):
        np.testing.assert_allclose(ours.pixels, theirs.pixels, atol=2e-5)


def test_seeds_decide(base):
    assert same(run(), base)
    assert not same(run(seed=1), base)


# --- pools ----------------------------------------------------------------------------


def test_a_new_pool_leaves_no_trace_of_the_old_one():
    problem = small_problem()
    plan = plan_segments(problem)[0]
    wide = Pool(problem.class_indices, None, [], 0.0)
    few = Pool([indices[:9] for indices in wide.members], None, [], 0.0)
    small = small_problem(matcher__idc__trajectory__data="pool")
    before, after = (
        dasm.segment_data(small, plan, pool, 0, []) for pool in (wide, few)
    )
    count = int(after.network_data.counts[0])
    trained_on = after.network_data.indices[0, :count].tolist()
    assert trained_on == sorted(np.concatenate(few.members).tolist())
    parts = parts_of(small, plan)
    params = problem.network.init(jax.random.key(0))
    pixels = np.zeros((2, 2, 8, 8, 1), np.float32)
    state = parts.start(pixels, (), params, before)
    sampler, _ = sampling.next_batch(
        jax.random.key(1), state.learner.sampler, before.network_data, 16
    )
    state = state._replace(learner=state.learner._replace(sampler=sampler))
    state = distill.change_pool(state, after, params, parts.learner)
    _, index = sampling.next_batch(
        jax.random.key(1), state.learner.sampler, after.network_data, 16
    )
    assert set(index[0].tolist()) <= set(np.concatenate(few.members).tolist())


# --- what is matched, and on which networks -------------------------------------------


def test_cumulative_context_matches_the_union():
    seen = []
    changes = {"dasm__context": "cumulative", "dasm__pool": "full"}
    cumulative = run_dasm(
        small_problem(**changes), on_outer=lambda p: seen.append(p.distances)
    )
    alone = run(dasm__pool="full")
    # Segment 1 has nothing beside it.
    np.testing.assert_array_equal(cumulative[0].pixels, alone[0].pixels)
    assert not np.allclose(cumulative[1].pixels, alone[1].pixels, atol=1e-4)


def test_memory_is_asked_for_wherever_a_segment_sees_more(monkeypatch):
    """Programs of equal segments differ in the finished images beside them."""
    seen = []

    def need(data, programs, mesh):
        seen.append(data[1].frozen.shape[1])

    monkeypatch.setattr(dasm, "estimate", need)
    changes = {"matcher__name": "dm", "dasm__pool": "full", "ipc": 3}
    run(**changes, dasm__segments=3, dasm__context="cumulative")
    assert seen == [0, 1, 2]
    seen.clear()
    run(**changes, dasm__segments=3)
    assert seen == [0]


@pytest.mark.slow
def test_cumulative_context_with_more_images_than_the_batch_holds():
    results = run(dasm__context="cumulative", matcher__idc__synthetic_batch=3)
    assert all(np.isfinite(result.pixels).all() for result in results)


def test_networks_start_from_those_trained_on_finished_segments():
    problem = small_problem(matcher__idc__trajectory__start="segments")
    plan = plan_segments(problem)[1]
    pool = Pool(problem.class_indices, None, ["first", "second"], 0.0)
    root = jax.random.key(0)
    supply = make_supplier(problem, root, None)(plan, pool)
    assert [supply.given(i) for i in range(3)] == ["first", "second", "first"]


@pytest.mark.parametrize(
    "change",
    [
        {
            "matcher__idc__trajectory__start": "segments",
            "matcher__idc__loop__niter": 12,
        },  # more than networks
        {"matcher__idc__trajectory__data": "pool"},
        pytest.param({"matcher__idc__layers": "all"}, marks=pytest.mark.slow),
        {"matcher__idc__metric": "cos", "matcher__idc__image__lr": 0.05},
        {"synthetic__factor": 2},
        *(
            pytest.param(
                {"synthetic__factor": 2, "synthetic__formation": formation},
                marks=pytest.mark.slow,
            )
            for formation in ("multi", "bound")
        ),
    ],
    ids=lambda change: "-".join(f"{k.split('__')[-1]}={v}" for k, v in change.items()),
)
def test_a_choice_runs_and_matters(change, base):
    assert not same(run(**change)[1:], base[1:])


@pytest.mark.slow
def test_starts():
    # A step size of zero leaves the start to be looked at.
    def start(init):
        return run(synthetic__init=init, matcher__idc__image__lr=0.0, dasm__segments=1)[
            0
        ].pixels

    problem = small_problem()
    real = problem.dataset.train.images / np.float32(255)
    starts = {init: start(init) for init in ("mix", "random", "kmeans", "noise")}
    for init, pixels in starts.items():
        for label, of_class in enumerate(pixels):
            members = real[problem.class_indices[label]]
            nearest = np.abs(of_class[:, None] - members[None]).max(axis=(2, 3, 4))
            found = (nearest.min(axis=1) < 1e-6).all()
            assert found == (init != "noise"), init
            distinct = len(np.unique(nearest.argmin(axis=1))) == len(of_class)
            assert distinct or init == "noise", init
    assert not np.array_equal(starts["kmeans"], starts["mix"])


def test_divergence_stops_and_keeps_the_last_good_set():
    finished = []
    problem = small_problem(matcher__idc__image__lr=1e38)
    with pytest.raises(NonFiniteError, match=r"not finite in segment \d, outer") as e:
        run_dasm(problem, on_segment=finished.append)
    assert np.isfinite(e.value.last_good.pixels).all()
    assert "config.matcher.idc.image.lr" in str(e.value)
