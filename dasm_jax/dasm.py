"""DASM: segments made one after another, each matched to what is not learned yet.

Section 2 of the method: score the real data with networks trained on the finished
segments, choose a pool per class, start the segment from it, match, freeze.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import distill, initial, sampling, schedule, training
from dasm_jax.budget import SegmentPlan, count_flops, outer_iterations
from dasm_jax.distill import SegmentState
from dasm_jax.errors import NonFiniteError
from dasm_jax.image_optimizer import ImageOptimizer, make_image_optimizer
from dasm_jax.keys import Use, key_for
from dasm_jax.pools import MakePool, Pool, make_pool_maker
from dasm_jax.problem import Problem
from dasm_jax.types import Params, SyntheticSet


class Progress(NamedTuple):
    """One outer iteration, for whoever watches."""

    plan: SegmentPlan
    outer: int  # counted from 1
    distances: np.ndarray  # f32[inner, C]
    seconds: float


class SegmentResult(NamedTuple):
    """A finished segment."""

    plan: SegmentPlan
    pixels: np.ndarray  # f32[C, n, H, W, ch] in [0, 1]
    pool: Pool
    seconds_matching: float
    seconds_scoring: float
    seconds_compiling: float


def plan_segments(problem: Problem) -> list[SegmentPlan]:
    """Sizes, iterations and image learning rates of all segments."""
    s = problem.settings
    sizes = schedule.segment_sizes(s.ipc, s.dasm.segments)
    whole = matching_flops(problem, s.ipc, None)
    side = max(problem.dataset.image_shape[:2])
    plans = []
    for k, size in enumerate(sizes, start=1):
        cost = matching_flops(problem, size, _context(problem))
        plans.append(
            SegmentPlan(
                segment=k,
                size=size,
                outer_iterations=outer_iterations(
                    s.dasm.budget, s.loop.niter, len(sizes), whole, cost
                ),
                learning_rate=s.image.lr * size / 10 * (side / s.image.base_size) ** 2,
                flops_per_step=cost,
            )
        )
    return plans


def matching_flops(
    problem: Problem, size: int, context: tuple[int, ...] | None
) -> float:
    """Matching FLOPs of an inner step on ``size`` stored images per class."""
    shape = problem.dataset.image_shape
    key = jax.eval_shape(lambda: jax.random.key(0))
    flops = count_flops(
        jax.value_and_grad(_class_distance(problem, context)),
        jax.ShapeDtypeStruct((size, *shape), jnp.float32),
        jax.ShapeDtypeStruct((sum(context or ()), *shape), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.eval_shape(problem.network.init, key),
        jax.ShapeDtypeStruct((problem.match_options.real_batch, *shape), jnp.uint8),
        jax.ShapeDtypeStruct((), jnp.int32),
        key,
    )
    return flops * problem.dataset.n_classes


def _context(problem: Problem) -> tuple[int, ...] | None:
    """Sizes of all segments where they share the synthetic batch, else None."""
    s = problem.settings
    if s.dasm.context == "active":
        return None
    return schedule.segment_sizes(s.ipc, s.dasm.segments)


def _class_distance(problem: Problem, context: tuple[int, ...] | None) -> Callable:
    return distill.make_class_distance(
        problem.matcher,
        problem.parameterization,
        problem.statistics,
        problem.match_options,
        context,
    )


def _start_pixels(
    problem: Problem, root: jax.Array, plan: SegmentPlan, pool: Pool
) -> jax.Array:
    init = initial.INITS[problem.settings.synthetic.init]
    pixels = [
        init(
            key_for(root, Use.IMAGE_INIT, plan.segment, label),
            problem.dataset.train.images[members],
            plan.size,
            problem.settings.synthetic.factor,
        )
        for label, members in enumerate(pool.members)
    ]
    return jnp.clip(jnp.stack(pixels), 0.0, 1.0)


def _segment_data(
    problem: Problem,
    plan: SegmentPlan,
    pool: Pool,
    pool_round: int,
    finished: list[np.ndarray],
) -> distill.SegmentData:
    """Device arrays of one segment, in shapes that are the same in every segment."""
    s = problem.settings
    labels = problem.dataset.train.labels
    widest = max(len(indices) for indices in problem.class_indices)
    network_data = [np.arange(len(labels))]
    if s.trajectory.data == "pool":
        network_data = [np.sort(np.concatenate(pool.members))]
    shape = problem.dataset.image_shape
    room = s.ipc if s.dasm.context == "cumulative" else 0
    frozen = np.zeros((problem.dataset.n_classes, room, *shape), np.float32)
    count = 0
    if room:
        for pixels in finished:
            frozen[:, count : count + pixels.shape[1]] = pixels
            count += pixels.shape[1]
    return jax.device_put(
        distill.SegmentData(
            real=problem.real,
            pool=sampling.make_table(pool.members, widest),
            network_data=sampling.make_table(network_data, len(labels)),
            frozen=frozen,
            frozen_count=np.int32(count),
            segment=np.int32(plan.segment),
            pool_round=np.int32(pool_round),
        )
    )


class Programs(NamedTuple):
    """Compiled once for all segments of one size: other shapes are refused."""

    update: Callable[..., tuple[SegmentState, jax.Array]]
    start_outer: Callable[..., SegmentState]


def _compile(
    problem: Problem,
    optimizer: ImageOptimizer,
    root: jax.Array,
    state: SegmentState,
    data: distill.SegmentData,
) -> Programs:
    step = distill.make_segment_step(
        _class_distance(problem, _context(problem)),
        optimizer,
        training.make_train_step(
            problem.network.apply, problem.network_recipe, problem.statistics
        ),
        problem.match_options,
        problem.loop,
    )
    start_outer = partial(
        distill.start_outer, optimizer=optimizer, recipe=problem.network_recipe
    )
    update = distill.make_update(step, problem.loop)
    return Programs(
        update.lower(root, state, data).compile(),
        jax.jit(start_outer).lower(state, state.network.params).compile(),
    )


def run_dasm(
    problem: Problem,
    plans: list[SegmentPlan] | None = None,
    *,
    on_outer: Callable[[Progress], None] = lambda progress: None,
    on_segment: Callable[[SegmentResult], None] = lambda result: None,
) -> list[SegmentResult]:
    """Make all segments, easy to hard. With one segment this is IDC.

    Args:
      problem: dataset and settings.
      plans: what ``plan_segments`` says, where the caller has asked already.
      on_outer: called after every outer iteration.
      on_segment: called when a segment is frozen.

    Raises:
      NonFiniteError: a distance or pixel is not finite; carries the last good set.
    """
    root = jax.random.key(problem.settings.seed)
    make_pool = make_pool_maker(problem, root)
    programs: dict[int, Programs] = {}
    results: list[SegmentResult] = []
    for plan in plans or plan_segments(problem):
        finished = [result.pixels for result in results]
        result = match_segment(
            problem, root, plan, programs, make_pool, finished, on_outer
        )
        results.append(result)
        on_segment(result)
    return results


def match_segment(
    problem: Problem,
    root: jax.Array,
    plan: SegmentPlan,
    programs: dict[int, Programs],
    make_pool: MakePool,
    finished: list[np.ndarray],
    on_outer: Callable[[Progress], None],
) -> SegmentResult:
    """Choose the pool of one segment, start from it, match, clamp.

    ``programs`` holds those of every segment size seen so far, and gets this one's.

    Raises:
      NonFiniteError: see ``run_dasm``.
    """
    s = problem.settings
    optimizer = make_image_optimizer(
        plan.learning_rate, s.image.momentum, problem.dataset.n_classes
    )
    pool = make_pool(plan.segment, 0, finished)
    data = _segment_data(problem, plan, pool, 0, finished)
    pixels = _start_pixels(problem, root, plan, pool)
    state = distill.start_segment(
        pixels,
        optimizer,
        _start_network(problem, root, plan, pool, 0),
        problem.network_recipe,
        data,
    )
    began = time.perf_counter()
    if plan.size not in programs:
        programs[plan.size] = _compile(problem, optimizer, root, state, data)
    update, start_outer = programs[plan.size]
    seconds_compiling = time.perf_counter() - began
    seconds_scoring, seconds_matching = pool.seconds, 0.0
    good = np.asarray(pixels)
    for outer in range(plan.outer_iterations):
        every = s.dasm.rescore_every
        if every and plan.segment > 1 and outer and outer % every == 0:
            pool = make_pool(plan.segment, outer // every, [*finished, good])
            seconds_scoring += pool.seconds
            data = _segment_data(problem, plan, pool, outer // every, finished)
            state = distill.change_pool(
                state, data, networks_too=s.trajectory.data == "pool"
            )
        began = time.perf_counter()
        if outer:
            network = _start_network(problem, root, plan, pool, outer)
            state = start_outer(state, network)
        pending = []
        with jax.transfer_guard("disallow"):
            for _ in range(s.loop.inner // problem.loop.steps_per_call):
                state, distances = update(root, state, data)
                pending.append(distances)
        distances = np.concatenate([np.asarray(d) for d in pending])
        now = np.asarray(
            jnp.clip(optimizer.interrupted(state.pixels, state.image_opt), 0.0, 1.0)
        )
        trouble = _trouble(problem, plan, outer, distances, now)
        if trouble:
            raise NonFiniteError(trouble, synthetic_set([*finished, good]))
        good = now
        seconds = time.perf_counter() - began
        seconds_matching += seconds
        on_outer(Progress(plan, outer + 1, distances, seconds))
    return SegmentResult(
        plan, good, pool, seconds_matching, seconds_scoring, seconds_compiling
    )


def _start_network(
    problem: Problem, root: jax.Array, plan: SegmentPlan, pool: Pool, outer: int
) -> Params:
    if problem.settings.trajectory.start == "segments" and pool.networks:
        return pool.networks[outer % len(pool.networks)]
    key = key_for(root, Use.NETWORK_INIT, plan.segment, outer)
    return problem.network.init(key)


def _trouble(
    problem: Problem,
    plan: SegmentPlan,
    outer: int,
    distances: np.ndarray,
    pixels: np.ndarray,
) -> str | None:
    """Say where a number stopped being finite."""
    steps, labels = np.nonzero(~np.isfinite(distances))
    where = f"segment {plan.segment}, outer iteration {outer + 1}"
    if len(steps):
        name = problem.dataset.class_names[labels[0]]
        what = "the matching distance"
        where += f", inner step {steps[0] + 1}, class {labels[0]} ({name})"
    elif not np.isfinite(pixels).all():
        label = np.nonzero(~np.isfinite(pixels))[0][0]
        what = "a pixel"
        where += f", class {label} ({problem.dataset.class_names[label]})"
    else:
        return None
    return (
        f"{what} is not finite in {where}; lower config.image.lr (the segment's "
        f"rate is {plan.learning_rate:g}); the last good set is kept"
    )


def synthetic_set(segments: list[np.ndarray]) -> SyntheticSet:
    """Stored images of segments f32[C, n_k, H, W, ch], flat, in order."""
    pixels, labels, numbers = [], [], []
    for number, of_segment in enumerate(segments, start=1):
        n_classes, count = of_segment.shape[:2]
        pixels.append(of_segment.reshape(-1, *of_segment.shape[2:]))
        labels.append(np.repeat(np.arange(n_classes, dtype=np.int32), count))
        numbers.append(np.full(n_classes * count, number, np.int32))
    return SyntheticSet(*(np.concatenate(x) for x in (pixels, labels, numbers)))
