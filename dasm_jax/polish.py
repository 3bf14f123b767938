"""The joint polish: all segments moved together once the last is finished.

One more plan after those of the segments, which covers all of them: it starts from the
finished pixels and is matched against a pool of its own, or every real image. The
segments stay what the set is made of: sizes, numbers and pools are
theirs, pixels the polished ones, and what the polish cost is shared out by their sizes.
"""

import numpy as np

from dasm_jax.budget import SegmentPlan
from dasm_jax.progress import Seconds, SegmentResult


def every_segment(
    finished: list[np.ndarray], plan: SegmentPlan, pixels: np.ndarray
) -> list[np.ndarray]:
    """Stored pixels f32[C, n_k, H, W, ch] of all segments after that of ``plan``.

    Args:
      finished: those before it.
      plan: of a segment, or of the polish.
      pixels: f32[C, n, H, W, ch] that it made.
    """
    if not plan.covers:
        return [*finished, pixels]
    return np.split(pixels, np.cumsum(plan.covers)[:-1], axis=1)


def fold(results: list[SegmentResult]) -> list[SegmentResult]:
    """The segments as the polish left them, where the last result is a polish."""
    if not results or not results[-1].plan.covers:
        return results
    *segments, polished = results
    pixels = every_segment([], polished.plan, polished.pixels)
    folded = []
    for result, moved in zip(segments, pixels, strict=True):
        share = result.plan.size / polished.plan.size
        cost = Seconds(*(share * spent for spent in polished.seconds))
        folded.append(
            result._replace(
                plan=result.plan._replace(polish_flops=share * polished.plan.flops),
                pixels=moved,
                seconds=Seconds(*map(sum, zip(result.seconds, cost, strict=True))),
            )
        )
    return folded
