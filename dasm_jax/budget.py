"""How long each segment is matched, in counted FLOPs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class SegmentPlan(NamedTuple):
    """One segment's share of the run."""

    segment: int  # counted from 1
    size: int  # stored images per class
    outer_iterations: int
    learning_rate: float
    flops_per_step: float  # matching FLOPs of one inner step over all classes


def count_flops(fn: Callable[..., Any], *shapes: Any) -> float:
    """FLOPs of one call, counted by XLA on the program before it is optimised.

    So the count is the same on every backend. ``fn`` must not hide work in loops.
    """
    analysis = jax.jit(fn).lower(*shapes).cost_analysis()
    assert analysis is not None, "XLA counts no FLOPs on this backend"
    return float(analysis["flops"])


def outer_iterations(
    budget: str, niter: int, segments: int, whole_cost: float, segment_cost: float
) -> int:
    """Outer iterations of one segment, at least one.

    Args:
      budget: ``'flops'``: an equal share of the matching FLOPs of one IDC run;
        ``'steps'``: an equal share of its steps; ``'per_segment'``: all its steps.
      niter: outer iterations of one IDC run.
      segments: K.
      whole_cost: matching FLOPs of an inner step on the whole set, as IDC runs it.
      segment_cost: the same on this segment.
    """
    share = {
        "flops": niter * whole_cost / (segments * segment_cost),
        "steps": niter / segments,
        "per_segment": niter,
    }[budget]
    return max(1, round(share))
