"""The segments ahead of a run: sizes, iterations, rates, counted FLOPs."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dasm_jax import budget, schedule
from dasm_jax.budget import SegmentPlan
from dasm_jax.loops import Loop
from dasm_jax.methods import Context
from dasm_jax.problem import Problem
from dasm_jax.schema import BatchMethodSettings, Settings
from dasm_jax.segment import Variables, image_count
from dasm_jax.settings import changed

_counted: dict[tuple, float] = {}


class Costs(NamedTuple):
    """Matching FLOPs of one inner step."""

    whole: float  # on the set as one segment; 0 where no budget is counted in them
    of_segment: tuple[float, ...]  # on each, with the finished ones where it sees them
    polish: float  # on all segments together; 0 where there is no polish


def costs_of(problem: Problem) -> Costs:
    """Count what the steps of a run cost; its length plays no part."""
    s = problem.settings
    sizes = schedule.segment_sizes(s.ipc, s.dasm.segments)
    counted = s.dasm.budget in ("flops", "prefix")
    return Costs(
        matching_flops(problem, s.ipc, None) if counted else 0.0,
        tuple(
            matching_flops(problem, size, context_of(problem, k))
            for k, size in enumerate(sizes, start=1)
        ),
        matching_flops(problem, s.ipc, sizes) if is_polished(s) else 0.0,
    )


def is_polished(settings: Settings) -> bool:
    """Whether the segments are moved together in the end.

    A single one has none to join, and expert trajectories belong to a segment.
    """
    together = isinstance(settings.matcher.active, BatchMethodSettings)
    return settings.dasm.polish > 0 and settings.dasm.segments > 1 and together


def plan_segments(problem: Problem, costs: Costs | None = None) -> list[SegmentPlan]:
    """Sizes, iterations and image learning rates of all segments.

    Where a share of the matching FLOPs is for a polish, that is the last plan, counted
    on; the segments get the rest.

    Args:
      problem: the fixed pieces.
      costs: of the problem, where they are counted already.
    """
    s, m = problem.settings, problem.settings.matcher.active
    sizes = schedule.segment_sizes(s.ipc, s.dasm.segments)
    costs = costs or costs_of(problem)
    polish = s.dasm.polish if is_polished(s) else 0.0
    side = max(problem.dataset.image_shape[:2])
    plans, run_flops, owed = [], 0.0, 0.0
    for k, (size, cost, flops) in enumerate(
        zip(sizes, costs.of_segment, _flops_of(problem, costs)), start=1
    ):
        inner = inner_steps(problem, size)
        run_flops += flops
        # Outer iterations are whole: what one segment gets too little, the next one
        # gets too much.
        owed += (1 - polish) * flops
        outer_iterations = max(1, round(owed / (inner * cost)))
        owed -= outer_iterations * inner * cost
        context = context_of(problem, k)
        # Beside finished segments the mean loss is over all their images.
        together = sum(context or (size,))
        plans.append(
            SegmentPlan(
                segment=k,
                size=size,
                outer_iterations=outer_iterations,
                inner=inner,
                network_steps=network_steps(problem, size, context),
                learning_rate=budget.image_rate(
                    m.image.rule, m.image.lr, together, side, m.image.base_size
                ),
                schedule=m.image.schedule,
                flops_per_step=cost,
            )
        )
    if not polish:
        return plans
    cost, inner = costs.polish, inner_steps(problem, s.ipc)
    rate = budget.image_rate(m.image.rule, m.image.lr, s.ipc, side, m.image.base_size)
    of_matcher = s.dasm.polish_schedule == "matcher"
    last = SegmentPlan(
        segment=len(sizes) + 1,
        size=s.ipc,
        outer_iterations=max(1, round((owed + polish * run_flops) / (cost * inner))),
        inner=inner,
        network_steps=network_steps(problem, s.ipc, sizes),
        learning_rate=s.dasm.polish_rate * rate,
        schedule=m.image.schedule if of_matcher else s.dasm.polish_schedule,
        flops_per_step=cost,
        covers=sizes,
    )
    return [*plans, last]


def _flops_of(problem: Problem, costs: Costs) -> list[float]:
    """Matching FLOPs of every segment, before a polish takes its share."""
    s, m = problem.settings, problem.settings.matcher.active
    sizes = schedule.segment_sizes(s.ipc, s.dasm.segments)
    steps = m.loop.niter * inner_steps(problem, s.ipc)
    if s.dasm.budget == "prefix":
        first = m.loop.niter * inner_steps(problem, sizes[0]) * costs.of_segment[0]
        return budget.flops_of_prefixes(first, steps * costs.whole, len(sizes))
    return [
        cost
        * factor
        * budget.steps_of_segment(s.dasm.budget, steps, len(sizes), costs.whole, cost)
        for cost, factor in zip(
            costs.of_segment, budget.tapered(len(sizes), s.dasm.taper)
        )
    ]


def total_flops(plans: list[SegmentPlan]) -> float:
    """Matching FLOPs of a run."""
    return sum(plan.flops for plan in plans)


def fitting_niter(problem: Problem, flops: float) -> tuple[int, float]:
    """The ``loop.niter`` with which a run comes nearest to ``flops``.

    Returns:
      it, at least 1, and the matching FLOPs of the run: segments have whole outer
      iterations, so they differ a little.
    """
    costs, s = costs_of(problem), problem.settings
    field = f"matcher.{s.matcher.name}.loop.niter"

    def total(niter: int) -> float:
        longer = problem._replace(settings=changed(s, {field: niter}))
        return total_flops(plan_segments(longer, costs))

    above = 1
    while total(above) < flops:
        above *= 2
    below = max(above // 2, 1)
    while above - below > 1:  # it never falls as the run gets longer
        middle = (above + below) // 2
        above, below = (above, middle) if total(middle) < flops else (middle, below)
    best = min((below, above), key=lambda niter: abs(total(niter) - flops))
    return best, total(best)


def context_of(problem: Problem, segment: int) -> Context:
    """Sizes of the segments that share the synthetic batch of this one, else None.

    After the last one comes the polish, where all of them do, whatever the settings
    say. The first segment is alone.
    """
    s = problem.settings
    sizes = schedule.segment_sizes(s.ipc, s.dasm.segments)
    if segment > len(sizes):
        return sizes
    together = s.dasm.context == "cumulative" and segment > 1
    return sizes[:segment] if together else None


def inner_steps(problem: Problem, size: int) -> int:
    """Inner steps of an outer iteration on ``size`` stored images per class."""
    return (
        problem.settings.matcher.active.loop.inner or budget.published_loop(size).inner
    )


def network_steps(problem: Problem, size: int, context: Context) -> int:
    """SGD steps of the networks in one inner step.

    Args:
      problem: the fixed pieces.
      size: stored images per class of the segment.
      context: sizes of the segments there are, where they share the synthetic batch.
    """
    m = problem.settings.matcher.active
    if not isinstance(m, BatchMethodSettings) or m.trajectory.data == "none":
        return 0
    batch = m.trajectory.recipe.batch
    if m.trajectory.data != "synthetic":
        return -(-m.trajectory.n_data // batch)
    images = image_count(problem.parameterization, size, context)
    epochs = m.trajectory.epochs or budget.published_loop(size).epochs
    return epochs * -(-images * problem.dataset.n_classes // batch)


def matching_flops(problem: Problem, size: int, context: Context) -> float:
    """Matching FLOPs of an inner step on ``size`` stored images per class.

    Counting takes seconds, so what has been counted in this process is remembered.
    """
    s, dataset = problem.settings, problem.dataset
    of_matcher = tuple(
        (field.name, getattr(s.matcher.active, field.name))
        for field in dataclasses.fields(s.matcher.active)
        if field.name not in ("image", "loop")  # rates and lengths cost nothing
    )
    of_run = (s.network, s.synthetic, s.data.zca, s.matcher.name, of_matcher)
    of_run = (*of_run, s.dasm.polish_nested)
    depends = (*of_run, dataset.image_shape, dataset.n_classes, size, context)
    if depends not in _counted:
        _counted[depends] = _count_matching(problem, size, context)
    return _counted[depends]


def _count_matching(problem: Problem, size: int, context: Context) -> float:
    shape, n_classes = problem.dataset.image_shape, problem.dataset.n_classes
    written_out = Loop(rolled=False, steps_per_call=1)
    objective = problem.method.objective(context, written_out)
    # Where classes are matched one by one, one is enough to count.
    counted = 1 if objective.separable else n_classes

    def like(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    key = jax.eval_shape(lambda: jax.random.key(0))
    flops = budget.count_flops(
        partial(objective.whole, written_out),
        key,
        Variables(
            like(jnp.float32, counted, size, *shape),
            jax.eval_shape(lambda: problem.method.learned),
        ),
        problem.method.view(jax.eval_shape(problem.network.init, key)),
        like(jnp.uint8, counted, problem.method.real_batch, *shape),
        like(jnp.float32, counted, sum(context or (size,)) - size, *shape),
    )
    return flops * n_classes / counted
