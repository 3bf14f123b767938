"""How long each segment is matched, and how fast: counted FLOPs, loops and rates."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dasm_jax.nets import convolution

BUDGETS = ("flops", "prefix", "steps", "per_segment")
RATE_RULES = ("idc", "inputs")


class SegmentPlan(NamedTuple):
    """One segment's share of the run, or that of the polish after the last one."""

    segment: int  # counted from 1
    size: int  # stored images per class
    outer_iterations: int
    inner: int  # steps of each
    network_steps: int  # SGD steps of the networks per inner step
    learning_rate: float  # of the images
    schedule: str  # of that rate over the outer iterations
    flops_per_step: float  # matching FLOPs of one inner step over all classes
    halvings: int = 0  # of the learning rate, which is what they left
    covers: tuple[int, ...] = ()  # of a polish: sizes of the segments it moves
    # Of a segment: its share of the polish, once that is done.
    polish_flops: float = 0.0

    def slowed(self, halvings: int) -> "SegmentPlan":
        """The same plan with its learning rate halved so many times."""
        rate = math.ldexp(self.learning_rate, -halvings)
        return self._replace(learning_rate=rate, halvings=halvings)

    @property
    def flops(self) -> float:
        """Matching FLOPs of the segment."""
        own = self.outer_iterations * self.inner * self.flops_per_step
        return own + self.polish_flops

    @property
    def name(self) -> str:
        """In words."""
        return "polish" if self.covers else f"segment {self.segment}"


class PublishedLoop(NamedTuple):
    """How DC divides its work: matching steps of a network, and training between."""

    inner: int
    epochs: int


def count_flops(fn: Callable[..., Any], *shapes: Any) -> float:
    """FLOPs of one call, counted by XLA on the program before it is optimised.

    So the count is the same on every backend, whatever form its convolutions take
    there. ``fn`` must not hide work in loops.
    """
    with convolution.plain():
        analysis = jax.jit(fn).lower(*shapes).cost_analysis()
    assert analysis is not None, "XLA counts no FLOPs on this backend"
    return float(analysis["flops"])


def steps_of_segment(
    budget: str, steps: int, segments: int, whole_cost: float, segment_cost: float
) -> float:
    """Inner steps of one segment.

    Args:
      budget: ``'flops'``: an equal share of the matching FLOPs of a run with one
        segment; ``'steps'``: an equal share of its steps; ``'per_segment'``: all its
        steps.
      steps: inner steps of a run with one segment.
      segments: K.
      whole_cost: matching FLOPs of an inner step on the whole set.
      segment_cost: the same on this segment.
    """
    return {
        "flops": steps * whole_cost / (segments * segment_cost),
        "steps": steps / segments,
        "per_segment": steps,
    }[budget]


def flops_of_prefixes(first: float, whole: float, segments: int) -> list[float]:
    """Matching FLOPs of segments whose first is what a run of its size alone would be.

    The others share the rest equally. With a cost that grows with the images every
    prefix has about the FLOPs of a run of its size. Where it hardly grows the first
    gets half of all, for the others want something too.

    Args:
      first: of a run with one segment of the first one's size.
      whole: of a run with one segment of all images.
      segments: K.
    """
    if segments == 1:
        return [whole]
    first = min(first, whole / 2)
    return [first, *[(whole - first) / (segments - 1)] * (segments - 1)]


def tapered(segments: int, taper: float) -> list[float]:
    """What each segment gets over an equal share: ``taper`` times the one before it.

    The mean is 1, and so is every factor where ``taper`` is.
    """
    last = segments - 1 if taper > 1 else 0  # so that no power grows without bound
    powers = [taper ** (k - last) for k in range(segments)]
    return [segments * power / sum(powers) for power in powers]


def image_rate(rule: str, rate: float, size: int, side: int, base_size: int) -> float:
    """Learning rate of the images of a segment.

    ``'idc'``: rate · (size / 10) · (side / base_size)², as the gradient in an image is
    a share of that of the mean over ``size`` images: ipc_k, or all those of the
    segments that share the synthetic batch. ``'inputs'``: as it stands, for steps that
    are taken on the inputs of the networks.
    """
    if rule == "inputs":
        return rate
    return rate * size / 10 * (side / base_size) ** 2


def published_loop(ipc: int) -> PublishedLoop:
    """DC's steps and epochs by images per class, and a rule for those in between.

    Published are 1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15),
    50: (50, 10). Others take ipc steps, up to 50, and as many epochs as keep
    ipc · epochs at 500; below 10, where that would be most of the work for the
    smallest sets, the epochs fall in a straight line to the published single one.
    """
    epochs = {30: 20, 40: 15}.get(ipc)
    if epochs is None:
        epochs = 1 + 49 * (ipc - 1) / 9 if ipc < 10 else max(500 / ipc, 1)
    return PublishedLoop(min(ipc, 50), round(epochs))
