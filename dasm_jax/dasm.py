"""DASM: segments made one after another, each matched to what is not learned yet.

Score the real data with networks trained on the finished segments, choose a pool per
class, start the segment from it, match, freeze.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dasm_jax import distill, divergence, mesh, polish, sampling, training
from dasm_jax.budget import SegmentPlan
from dasm_jax.device_memory import Need, estimate
from dasm_jax.errors import NonFiniteError
from dasm_jax.image_optimizer import make_decay, make_image_optimizer
from dasm_jax.memo import Shelf
from dasm_jax.methods import Context
from dasm_jax.plan import context_of, plan_segments
from dasm_jax.pools import MakePool, Pool, make_pool_maker, matched_members
from dasm_jax.problem import Problem
from dasm_jax.progress import Active, Progress, Seconds, SegmentResult, Snapshot
from dasm_jax.schema import BatchMethodSettings
from dasm_jax.segment import SegmentData, SegmentState, Variables
from dasm_jax.starts import start_pixels
from dasm_jax.supply import Supplier, given_like, make_supplier
from dasm_jax.types import SyntheticSet


def segment_data(
    problem: Problem,
    plan: SegmentPlan,
    pool: Pool,
    pool_round: int,
    finished: list[np.ndarray],
) -> SegmentData:
    """Device arrays of one segment; what it does not see has no place in them."""
    labels = problem.dataset.train.labels
    widest = max(len(indices) for indices in problem.class_indices)
    network_data = [np.arange(len(labels))]
    if _network_data(problem) == "pool":
        network_data = [np.sort(np.concatenate(pool.members))]
    matched = matched_members(problem, pool.members)
    table, clusters = sampling.make_table(matched, widest), None
    if pool.clusters is not None:
        table, clusters = sampling.make_clusters(
            matched, pool.clusters, problem.method.real_batch, widest
        )
    shape = problem.dataset.image_shape
    frozen = np.zeros((problem.dataset.n_classes, 0, *shape), np.float32)
    if context_of(problem, plan.segment) is not None and not plan.covers:
        frozen = np.concatenate(finished, axis=1)
    return mesh.place(
        problem.loop.mesh,
        SegmentData(
            real=problem.real,
            pool=table,
            network_data=sampling.make_table(network_data, len(labels)),
            frozen=frozen,
            segment=np.int32(plan.segment),
            pool_round=np.int32(pool_round),
            clusters=clusters,
        ),
    )


class Programs(NamedTuple):
    """Compiled once for all segments of the same shapes, planned alike."""

    update: distill.Update
    start_outer: jax.stages.Compiled  # (state, given) -> state


# The runs of a table, or of one set after another, find those of each other.
PROGRAMS: Shelf[Programs] = Shelf()


class Shared(NamedTuple):
    """What all segments of a run have in common."""

    problem: Problem
    root: jax.Array
    make_pool: MakePool
    supplier: Supplier
    on_outer: Callable[[Progress], None]
    on_need: Callable[[Need], None]
    # What plans whose memory was asked for compile to, and beside which segments
    estimated: set[tuple[SegmentPlan, Context]]


def run_dasm(
    problem: Problem,
    plans: list[SegmentPlan] | None = None,
    *,
    resume: Snapshot | None = None,
    experts_folder: Path | None = None,
    on_network: Callable[[], None] = lambda: None,
    on_expert: Callable[[int, int], None] = lambda segment, done: None,
    on_outer: Callable[[Progress], None] = lambda progress: None,
    on_need: Callable[[Need], None] = lambda need: None,
    on_segment: Callable[[SegmentResult], None] = lambda result: None,
) -> list[SegmentResult]:
    """Make all segments, easy to hard, and polish them where that is asked for.

    With one segment this is the plain matcher.

    Args:
      problem: dataset and settings.
      plans: what ``plan_segments`` says, where the caller has asked already.
      resume: where a run of the same problem stood; what comes after is, bit for bit on
        one machine, what that run would have made.
      experts_folder: where expert trajectories are kept; ``None``: in memory only.
      on_network: called after every network that was trained to score.
      on_expert: called with segment and number of experts that are ready.
      on_outer: called after every outer iteration.
      on_need: called with an estimate of memory ahead of a segment of a new shape.
      on_segment: called when a segment is frozen, and with the polish.

    Raises:
      NonFiniteError: a distance or pixel is not finite; carries the last good set.
    """
    root = jax.random.key(problem.settings.seed)
    results, active, halvings = resume or Snapshot([])
    results = list(results)
    pools = [each.pool for each in (*results, active) if each is not None]
    shared = Shared(
        problem,
        root,
        make_pool_maker(problem, root, on_network=on_network, earlier=pools),
        make_supplier(problem, root, experts_folder, on_expert),
        on_outer,
        on_need,
        estimated=set(),
    )
    for plan in (plans or plan_segments(problem))[len(results) :]:
        result = match_segment(shared, plan.slowed(halvings), results, active)
        active = None
        results.append(result)
        on_segment(result)
    return polish.fold(results)


def match_segment(
    shared: Shared,
    plan: SegmentPlan,
    results: list[SegmentResult],
    active: Active | None = None,
) -> SegmentResult:
    """Start one segment from its pool, match, clamp.

    Args:
      shared: by all segments.
      plan: of this segment.
      results: the segments before it.
      active: where it stood, if it was begun before.

    Raises:
      NonFiniteError: see ``run_dasm``.
    """
    problem, root, make_pool, supplier, on_outer, on_need, estimated = shared
    s = problem.settings
    place = partial(mesh.place, problem.loop.mesh)
    key = place(root)
    finished = [result.pixels for result in results]
    if active is None:
        pool = make_pool(plan.segment, 0, finished)
        active = Active(0, 0, pool, [], Seconds(0.0, pool.seconds, 0.0, 0.0))
    first, pool_round, pool, leaves, seconds = active
    optimizers = make_optimizers(problem, plan)
    context = context_of(problem, plan.segment)
    learner = problem.method.learner(plan.size, plan.inner, context)
    data = segment_data(problem, plan, pool, pool_round, finished)
    supply = supplier(plan, pool)
    given = place(supply.given(first))
    if leaves:
        structure = jax.tree.structure(state_like(problem, plan, data))
        state = place(jax.tree.unflatten(structure, leaves))
    else:
        pixels = start_pixels(problem, root, plan, pool, finished)
        pool = pool._replace(starts=None)  # of no use any more
        variables = Variables(pixels, problem.method.learned)
        start = partial(distill.start_segment, learner=learner, optimizers=optimizers)
        state = place(start(variables, given, data))
    loop = problem.loop.calling(plan.inner)
    began = time.perf_counter()
    alike = _compiled_alike(plan)

    def compiled() -> Programs:
        step = distill.make_step(
            problem.method.objective(context, problem.loop),
            learner,
            optimizers,
            problem.method.real_batch,
        )
        begin = partial(distill.start_outer, learner=learner, optimizers=optimizers)
        return Programs(
            distill.compile_update(step, plan.network_steps, loop, (key, state, data)),
            mesh.jit(loop.mesh, begin).lower(state, given).compile(),
        )

    fixed = (problem.method.objective, s.matcher.active, problem.loop, context, alike)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (state, data, given))
    depends = (*fixed, *jax.tree.leaves(shapes), jax.tree.structure(shapes))
    update, start_outer = PROGRAMS.find(depends, compiled)
    if (alike, context) not in estimated:
        estimated.add((alike, context))
        programs = [*update.programs.values(), start_outer]
        if (need := estimate((state, data), programs, loop.mesh)) is not None:
            on_need(need)
    seconds = seconds._replace(
        compiling=seconds.compiling + time.perf_counter() - began,
        experts=seconds.experts + supply.seconds,
    )
    now = _as_shown(optimizers, state)
    for outer in range(first, plan.outer_iterations):
        every = 0 if _fixed(problem, plan) else s.dasm.rescore_every
        if every and plan.segment > 1 and outer and outer % every == 0:
            pool_round = outer // every
            so_far = polish.every_segment(finished, plan, now.clip(0.0, 1.0))
            pool = make_pool(plan.segment, pool_round, so_far)
            seconds = seconds._replace(scoring=seconds.scoring + pool.seconds)
            data = segment_data(problem, plan, pool, pool_round, finished)
            supply = supplier(plan, pool)
            anew = learner if _network_data(problem) == "pool" else None
            given = supply.given(outer)
            state = place(distill.change_pool(state, data, given, anew))
        began = time.perf_counter()
        if outer:
            state = start_outer(state, place(supply.given(outer)))
        pending = []
        with jax.transfer_guard("disallow"):
            for _ in range(plan.inner // loop.steps_per_call):
                state, distances = update.run(key, state, data)
                pending.append(distances)
        distances = np.concatenate([np.asarray(d) for d in pending])
        good, now = now.clip(0.0, 1.0), _as_shown(optimizers, state)
        learned = jax.device_get(state.variables.learned)
        trouble = divergence.trouble(problem, plan, outer, distances, now, learned)
        if trouble:
            last_good = synthetic_set(polish.every_segment(finished, plan, good))
            raise NonFiniteError(trouble, last_good, divergence.remedy(problem, plan))
        spent = time.perf_counter() - began
        seconds = seconds._replace(matching=seconds.matching + spent)
        stands = (outer + 1, pool_round, pool, state, seconds)
        snapshot = partial(_snapshot, list(results), stands, plan.halvings)
        on_outer(Progress(plan, outer + 1, distances, spent, snapshot))
    learned = jax.tree.map(float, state.variables.learned)
    seen = learner.view(key, state.learner, data, state.step - 1)
    pixels = now.clip(0.0, 1.0)
    pool = pool._replace(networks=[], clusters=None)  # of no use any more
    return SegmentResult(plan, pixels, learned, pool, seconds, jax.device_get(seen))


def _fixed(problem: Problem, plan: SegmentPlan) -> bool:
    """Whether it is a polish whose pool is all of every class."""
    return bool(plan.covers) and problem.settings.dasm.polish_target == "class"


def _compiled_alike(plan: SegmentPlan) -> SegmentPlan:
    """A plan without what its programs do not depend on."""
    alike = plan._replace(segment=0, halvings=0, flops_per_step=0.0)
    if plan.schedule == "constant":
        return alike._replace(outer_iterations=0)
    return alike


def _as_shown(optimizers: distill.Optimizers, state: SegmentState) -> np.ndarray:
    """The pixels as they are between two outer iterations, not clipped yet."""
    pixels = optimizers.image.interrupted(state.variables.pixels, state.image_opt)
    return np.asarray(pixels)


def _snapshot(finished: list[SegmentResult], stands: tuple, halvings: int) -> Snapshot:
    outer, pool_round, pool, state, seconds = stands
    # On CPU np.asarray is a view of memory that the next update is given.
    leaves = [np.array(leaf) for leaf in jax.tree.leaves(state)]
    active = Active(outer, pool_round, pool, leaves, seconds)
    return Snapshot(finished, active, halvings)


def state_like(problem: Problem, plan: SegmentPlan, data: SegmentData) -> SegmentState:
    """Structure, shapes and dtypes of the state of a segment, with its data."""
    shape = (problem.dataset.n_classes, plan.size, *problem.dataset.image_shape)
    pixels = jax.ShapeDtypeStruct(shape, np.float32)
    context = context_of(problem, plan.segment)
    start = partial(
        distill.start_segment,
        data=data,
        learner=problem.method.learner(plan.size, plan.inner, context),
        optimizers=make_optimizers(problem, plan),
    )
    variables = Variables(pixels, problem.method.learned)
    return jax.eval_shape(start, variables, given_like(problem, plan))


def make_optimizers(problem: Problem, plan: SegmentPlan) -> distill.Optimizers:
    """Optimisers of the pixels, and of what is learned beside them."""
    m = problem.settings.matcher.active
    precondition = lambda grads: grads  # noqa: E731
    if m.image.rule == "inputs":
        precondition = partial(training.input_metric, statistics=problem.statistics)
    image = make_image_optimizer(
        plan.learning_rate,
        m.image.momentum,
        problem.dataset.n_classes if m.image.class_turns else 1,
        decay=make_decay(plan.schedule, plan.outer_iterations, plan.inner),
        precondition=precondition,
    )
    return distill.Optimizers(image, problem.method.learned_optimizer)


def _network_data(problem: Problem) -> str:
    m = problem.settings.matcher.active
    return m.trajectory.data if isinstance(m, BatchMethodSettings) else "none"


def synthetic_set(segments: list[np.ndarray]) -> SyntheticSet:
    """Stored images of segments f32[C, n_k, H, W, ch], flat, in order."""
    pixels, labels, numbers = [], [], []
    for number, of_segment in enumerate(segments, start=1):
        n_classes, count = of_segment.shape[:2]
        pixels.append(of_segment.reshape(-1, *of_segment.shape[2:]))
        labels.append(np.repeat(np.arange(n_classes, dtype=np.int32), count))
        numbers.append(np.full(n_classes * count, number, np.int32))
    return SyntheticSet(*(np.concatenate(x) for x in (pixels, labels, numbers)))
