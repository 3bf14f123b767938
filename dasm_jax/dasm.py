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

from dasm_jax import distill, divergence, mesh, polish
from dasm_jax.budget import SegmentPlan
from dasm_jax.device_memory import Need, estimate
from dasm_jax.errors import NonFiniteError
from dasm_jax.methods import Context
from dasm_jax.plan import plan_segments
from dasm_jax.pools import MakePool, Pool, make_pool_maker
from dasm_jax.problem import Problem
from dasm_jax.progress import Active, Progress, Seconds, SegmentResult, Snapshot
from dasm_jax.segment import SegmentData, SegmentState
from dasm_jax.segment_setup import (
    Parts,
    Programs,
    compiled_alike,
    parts_of,
    programs_of,
    segment_data,
    state_like,
    trains_on_the_pool,
)
from dasm_jax.starts import start_pixels
from dasm_jax.supply import Supplier, Supply, make_supplier
from dasm_jax.types import SyntheticSet


class Shared(NamedTuple):
    """What all segments of a run have in common."""

    problem: Problem
    root: jax.Array
    key: jax.Array  # the same where programs take it
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
        mesh.place(problem.loop.mesh, root),
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


class Matching(NamedTuple):
    """The active segment between two outer iterations; ``Active`` is a copy of it."""

    outer: int  # iterations that are done
    pool_round: int  # how often its pool was made anew
    pool: Pool
    data: SegmentData
    supply: Supply
    state: SegmentState
    pixels: np.ndarray  # as shown, not clipped yet
    seconds: Seconds

    def spent(self, **seconds: float) -> "Matching":
        """With so much more time on its account."""
        before = self.seconds._asdict()
        more = {name: before[name] + value for name, value in seconds.items()}
        return self._replace(seconds=self.seconds._replace(**more))

    def copied(self) -> Active:
        """The same on the host."""
        # On CPU np.asarray is a view of memory that the next update is given.
        leaves = [np.array(leaf) for leaf in jax.tree.leaves(self.state)]
        return Active(self.outer, self.pool_round, self.pool, leaves, self.seconds)


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
    problem, key = shared.problem, shared.key
    finished = [result.pixels for result in results]
    parts = parts_of(problem, plan)
    now = _standing(shared, plan, parts, finished, active)
    began = time.perf_counter()
    programs = programs_of(problem, plan, parts, (key, now.state, now.data))
    _tell_of_memory(shared, plan, parts, programs, now)
    now = now.spent(compiling=time.perf_counter() - began)
    for outer in range(now.outer, plan.outer_iterations):
        if _is_rescored(problem, plan, outer):
            now = _rescored(shared, plan, parts, finished, now)
        good = now.pixels
        now, distances, seconds = _outer_iteration(shared, parts, programs, now)
        learned = jax.device_get(now.state.variables.learned)
        shown = (distances, now.pixels, learned)
        if trouble := divergence.trouble(problem, plan, outer, *shown):
            so_far = polish.every_segment(finished, plan, good.clip(0.0, 1.0))
            remedy = divergence.remedy(problem, plan)
            raise NonFiniteError(trouble, synthetic_set(so_far), remedy)
        snapshot = partial(_snapshot, list(results), now, plan.halvings)
        shared.on_outer(Progress(plan, now.outer, distances, seconds, snapshot))
    seen = parts.learner.view(key, now.state.learner, now.data, now.state.step - 1)
    return SegmentResult(
        plan=plan,
        pixels=now.pixels.clip(0.0, 1.0),
        learned=jax.tree.map(float, now.state.variables.learned),
        pool=now.pool._replace(networks=[], clusters=None),  # of no use any more
        seconds=now.seconds,
        seen=jax.device_get(seen),
    )


def _standing(
    shared: Shared,
    plan: SegmentPlan,
    parts: Parts,
    finished: list[np.ndarray],
    active: Active | None,
) -> Matching:
    """Where a segment starts, or goes on from."""
    problem, root = shared.problem, shared.root
    place = partial(mesh.place, problem.loop.mesh)
    if active is None:
        pool = shared.make_pool(plan.segment, 0, finished)
        active = Active(0, 0, pool, [], Seconds(0.0, pool.seconds, 0.0, 0.0))
    outer, pool_round, pool, leaves, seconds = active
    data = segment_data(problem, plan, pool, pool_round, finished)
    supply = shared.supplier(plan, pool)
    if leaves:
        structure = jax.tree.structure(state_like(problem, plan, data))
        state = jax.tree.unflatten(structure, leaves)
    else:
        pixels = start_pixels(problem, root, plan, pool, finished)
        pool = pool._replace(starts=None)  # of no use any more
        given = place(supply.given(outer))
        state = parts.start(pixels, problem.method.learned, given, data)
    state = place(state)
    pixels = parts.shown(state)
    now = Matching(outer, pool_round, pool, data, supply, state, pixels, seconds)
    return now.spent(experts=supply.seconds)


def _tell_of_memory(
    shared: Shared,
    plan: SegmentPlan,
    parts: Parts,
    programs: Programs,
    now: Matching,
) -> None:
    """Once for all segments that compile to the same beside as many others."""
    alike = (compiled_alike(plan), parts.context)
    if alike in shared.estimated:
        return
    shared.estimated.add(alike)
    resident, around = (now.state, now.data), shared.problem.loop.mesh
    if (need := estimate(resident, programs.every, around)) is not None:
        shared.on_need(need)


def _is_rescored(problem: Problem, plan: SegmentPlan, outer: int) -> bool:
    """Whether the pool of a segment is made anew ahead of an outer iteration."""
    s = problem.settings.dasm
    if plan.covers and s.polish_target == "class":  # all of every class stays that
        return False
    due = s.rescore_every > 0 and outer > 0 and outer % s.rescore_every == 0
    return due and plan.segment > 1


def _rescored(
    shared: Shared,
    plan: SegmentPlan,
    parts: Parts,
    finished: list[np.ndarray],
    now: Matching,
) -> Matching:
    """Go on in a pool that the set with the pixels of now has not learned."""
    problem, pool_round = shared.problem, now.pool_round + 1
    so_far = polish.every_segment(finished, plan, now.pixels.clip(0.0, 1.0))
    pool = shared.make_pool(plan.segment, pool_round, so_far)
    data = segment_data(problem, plan, pool, pool_round, finished)
    supply = shared.supplier(plan, pool)
    given = supply.given(now.outer)
    anew = parts.learner if trains_on_the_pool(problem) else None
    state = distill.change_pool(now.state, data, given, anew)
    return now._replace(
        pool_round=pool_round,
        pool=pool,
        data=data,
        supply=supply,
        state=mesh.place(problem.loop.mesh, state),
    ).spent(scoring=pool.seconds)


def _outer_iteration(
    shared: Shared,
    parts: Parts,
    programs: Programs,
    now: Matching,
) -> tuple[Matching, np.ndarray, float]:
    """Where it stands after one more, with its distances f32[inner, parts] and time."""
    state, began = now.state, time.perf_counter()
    if now.outer:
        given = mesh.place(shared.problem.loop.mesh, now.supply.given(now.outer))
        state = programs.start_outer(state, given)
    pending = []
    with jax.transfer_guard("disallow"):
        for _ in range(programs.calls):
            state, distances = programs.update.run(shared.key, state, now.data)
            pending.append(distances)
    distances = np.concatenate([np.asarray(each) for each in pending])
    now = now._replace(outer=now.outer + 1, state=state, pixels=parts.shown(state))
    seconds = time.perf_counter() - began
    return now.spent(matching=seconds), distances, seconds


def _snapshot(finished: list[SegmentResult], now: Matching, halvings: int) -> Snapshot:
    return Snapshot(finished, now.copied(), halvings)


def synthetic_set(segments: list[np.ndarray]) -> SyntheticSet:
    """Stored images of segments f32[C, n_k, H, W, ch], flat, in order."""
    pixels, labels, numbers = [], [], []
    for number, of_segment in enumerate(segments, start=1):
        n_classes, count = of_segment.shape[:2]
        pixels.append(of_segment.reshape(-1, *of_segment.shape[2:]))
        labels.append(np.repeat(np.arange(n_classes, dtype=np.int32), count))
        numbers.append(np.full(n_classes * count, number, np.int32))
    return SyntheticSet(*(np.concatenate(x) for x in (pixels, labels, numbers)))
