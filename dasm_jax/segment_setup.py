"""What a segment needs before its first step: arrays, parts, compiled programs."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dasm_jax import distill, mesh, sampling, training
from dasm_jax.budget import SegmentPlan
from dasm_jax.image_optimizer import make_decay, make_image_optimizer
from dasm_jax.learners import Learner
from dasm_jax.memo import Shelf
from dasm_jax.methods import Context
from dasm_jax.plan import context_of
from dasm_jax.pools import Pool, matched_members
from dasm_jax.problem import Problem
from dasm_jax.schema import BatchMethodSettings
from dasm_jax.segment import SegmentData, SegmentState, Variables
from dasm_jax.supply import given_like
from dasm_jax.types import Array


def segment_data(
    problem: Problem,
    plan: SegmentPlan,
    pool: Pool,
    pool_round: int,
    finished: list[np.ndarray],
) -> SegmentData:
    """Device arrays of one segment; what it does not see has no place in them.

    Args:
      problem: the fixed pieces.
      plan: of the segment.
      pool: that it is matched against.
      pool_round: how often that was made anew.
      finished: pixels f32[C, n_k, H, W, ch] of the segments before it.
    """
    labels = problem.dataset.train.labels
    widest = max(len(indices) for indices in problem.class_indices)
    network_data = [np.arange(len(labels))]
    if trains_on_the_pool(problem):
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


def trains_on_the_pool(problem: Problem) -> bool:
    """Whether networks that are matched on are trained on the pool alone."""
    m = problem.settings.matcher.active
    return isinstance(m, BatchMethodSettings) and m.trajectory.data == "pool"


class Parts(NamedTuple):
    """What a segment is moved by, pure."""

    context: Context
    learner: Learner
    optimizers: distill.Optimizers

    def start(self, pixels: Any, learned: Any, given: Any, data: Any) -> SegmentState:
        """State ahead of the first step."""
        return distill.start_segment(
            Variables(pixels, learned), given, data, self.learner, self.optimizers
        )

    def shown(self, state: SegmentState) -> np.ndarray:
        """Pixels as they are between two outer iterations, not clipped yet."""
        pixels = state.variables.pixels
        return np.asarray(self.optimizers.image.interrupted(pixels, state.image_opt))


def parts_of(problem: Problem, plan: SegmentPlan) -> Parts:
    """The learner and the optimisers of a segment."""
    m, context = problem.settings.matcher.active, context_of(problem, plan.segment)
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
    return Parts(
        context=context,
        learner=problem.method.learner(plan.size, plan.inner, context),
        optimizers=distill.Optimizers(image, problem.method.learned_optimizer),
    )


def step_of(problem: Problem, parts: Parts) -> distill.StepFunctions:
    """The pieces of an inner step."""
    return distill.make_step(
        problem.method.objective(parts.context, problem.loop),
        parts.learner,
        parts.optimizers,
        problem.method.real_batch,
    )


def state_like(problem: Problem, plan: SegmentPlan, data: SegmentData) -> SegmentState:
    """Structure, shapes and dtypes of the state of a segment, with its data."""
    shape = (problem.dataset.n_classes, plan.size, *problem.dataset.image_shape)
    pixels = jax.ShapeDtypeStruct(shape, np.float32)
    start, given = parts_of(problem, plan).start, given_like(problem, plan)
    return jax.eval_shape(start, pixels, problem.method.learned, given, data)


class Programs(NamedTuple):
    """Compiled once for all segments of the same shapes, planned alike."""

    update: distill.Update
    calls: int  # of the update in an outer iteration
    start_outer: Callable[..., SegmentState]  # (state, given) -> state
    every: tuple[jax.stages.Compiled, ...]  # that they are made of


# The runs of a table, or of one set after another, find those of each other.
PROGRAMS: Shelf[Programs] = Shelf()


def programs_of(
    problem: Problem,
    plan: SegmentPlan,
    parts: Parts,
    example: tuple[Array, SegmentState, SegmentData],
) -> Programs:
    """The programs of a segment, found or compiled.

    Args:
      problem: the fixed pieces.
      plan: of the segment.
      parts: of the segment.
      example: key, state and data, for their shapes.
    """
    _, state, data = example
    loop, given = problem.loop.calling(plan.inner), given_like(problem, plan)

    def compiled() -> Programs:
        step = step_of(problem, parts)
        update = distill.compile_update(step, plan.network_steps, loop, example)
        begin = partial(
            distill.start_outer, learner=parts.learner, optimizers=parts.optimizers
        )
        start_outer = mesh.jit(loop.mesh, begin).lower(state, given).compile()
        every = (*update.programs.values(), start_outer)
        calls = plan.inner // loop.steps_per_call
        return Programs(update, calls, start_outer, every)

    matcher, objective = problem.settings.matcher.active, problem.method.objective
    fixed = (objective, matcher, problem.loop, parts.context, compiled_alike(plan))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (state, data, given))
    depends = (*fixed, *jax.tree.leaves(shapes), jax.tree.structure(shapes))
    return PROGRAMS.find(depends, compiled)


def compiled_alike(plan: SegmentPlan) -> SegmentPlan:
    """A plan without what its programs do not depend on."""
    alike = plan._replace(segment=0, halvings=0, flops_per_step=0.0)
    if plan.schedule == "constant":
        return alike._replace(outer_iterations=0)
    return alike
