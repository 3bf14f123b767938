"""Numbers that are not finite any more: where, and what to do about it."""

from typing import Any

import jax
import numpy as np

from dasm_jax.budget import SegmentPlan
from dasm_jax.problem import Problem
from dasm_jax.schema import TrajectoryMatchingSettings


def trouble(
    problem: Problem,
    plan: SegmentPlan,
    outer: int,
    distances: np.ndarray,
    pixels: np.ndarray,
    learned: Any,
) -> str | None:
    """Say where a number stopped being finite; None where all are.

    Args:
      problem: the fixed pieces.
      plan: of the segment.
      outer: its outer iteration, from 0.
      distances: f32[inner, C] of that iteration.
      pixels: f32[C, n, H, W, ch] after it.
      learned: the step size of trajectory matching after it; of others ``()``.
    """
    steps, labels = np.nonzero(~np.isfinite(distances))
    where = f"{plan.name}, outer iteration {outer + 1}"
    if len(steps):
        what = "the matching distance"
        where += f", inner step {steps[0] + 1}"
        if distances.shape[1] > 1:
            where += f", class {labels[0]} ({problem.dataset.class_names[labels[0]]})"
    elif not np.isfinite(pixels).all():
        label = np.nonzero(~np.isfinite(pixels))[0][0]
        what = "a pixel"
        where += f", class {label} ({problem.dataset.class_names[label]})"
    elif not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learned)):
        what = "the learned step size"
    else:
        return None
    return f"{what} is not finite in {where}"


def remedy(problem: Problem, plan: SegmentPlan) -> str:
    """Say which settings to change."""
    matcher = problem.settings.matcher
    fields = f"config.matcher.{matcher.name}.image.lr"
    if isinstance(matcher.active, TrajectoryMatchingSettings):
        fields += f", config.matcher.{matcher.name}.step_size or step_size_lr"
    if not plan.halvings:
        fields += ", or set config.on_nonfinite='rollback'"
    return f"lower {fields} (the image rate there is {plan.learning_rate:g})"
