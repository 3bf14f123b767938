"""What the segment loop hands out: finished segments, and where it stands."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dasm_jax.budget import SegmentPlan
from dasm_jax.pools import Pool


class Seconds(NamedTuple):
    """Where the time of a segment went."""

    matching: float
    scoring: float
    compiling: float
    experts: float


class SegmentResult(NamedTuple):
    """A finished segment."""

    plan: SegmentPlan
    pixels: np.ndarray  # f32[C, n, H, W, ch] in [0, 1]
    learned: Any  # beside the pixels: the student's step size, or ()
    pool: Pool
    seconds: Seconds
    # On the host: what the matcher looked at, as it stands after the last inner step.
    # Parameters of a network, or a ``matching.Span`` of them.
    seen: Any


class Active(NamedTuple):
    """The segment that is being matched, between two outer iterations."""

    outer: int  # iterations that are done
    pool_round: int  # how often its pool was made anew
    pool: Pool
    state: list[np.ndarray]  # leaves of its ``SegmentState``, on the host
    seconds: Seconds


class Snapshot(NamedTuple):
    """All that a run needs to go on: the rest is derived from the settings."""

    finished: list[SegmentResult]
    active: Active | None = None  # None between two segments
    halvings: int = 0  # of the image rates from here on


class Progress(NamedTuple):
    """One outer iteration, for whoever watches."""

    plan: SegmentPlan
    outer: int  # counted from 1
    distances: np.ndarray  # f32[inner, C]
    seconds: float
    # Copies the state to the host. It is there until the next outer iteration begins:
    # an update donates it.
    snapshot: Callable[[], Snapshot]
