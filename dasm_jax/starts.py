"""Where the images of a segment start: in its pool, each segment in another part."""

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import initial
from dasm_jax.budget import SegmentPlan
from dasm_jax.keys import Use, key_for
from dasm_jax.pools import Pool
from dasm_jax.problem import Problem


def start_pixels(
    problem: Problem,
    root: jax.Array,
    plan: SegmentPlan,
    pool: Pool,
    finished: list[np.ndarray],
) -> jax.Array:
    """Pixels f32[C, n, H, W, ch] in [0, 1] that a segment, or the polish, starts with.

    Args:
      problem: the fixed pieces.
      root: key of the synthesis.
      plan: of the segment.
      pool: whose images it starts from.
      finished: pixels of the segments before it, which a polish goes on with.
    """
    if plan.covers:
        return jnp.asarray(np.concatenate(finished, axis=1))
    init = initial.INITS[problem.settings.synthetic.init]
    pixels = []
    for label, members in enumerate(pool.members):
        own = (
            _own_share(problem, root, plan, label, members)
            if pool.starts is None
            else pool.starts[label]
        )
        key = key_for(root, Use.IMAGE_INIT, plan.segment, label)
        images = problem.dataset.train.images[own]
        pixels.append(init(key, images, plan.size, problem.settings.factor))
    return jnp.clip(jnp.stack(pixels), 0.0, 1.0)


def _own_share(
    problem: Problem,
    root: jax.Array,
    plan: SegmentPlan,
    label: int,
    members: np.ndarray,
) -> np.ndarray:
    """Images of a class's pool that no other segment starts from, where they suffice.

    Each segment has a random K-th of the class to itself: pools overlap, and segments
    that start from the same images would hold them twice.
    """
    s, indices = problem.settings, problem.class_indices[label]
    order = jax.random.permutation(key_for(root, Use.IMAGE_SHARE, label), len(indices))
    turn = np.asarray(order)[np.searchsorted(indices, members)] % s.dasm.segments
    own = members[turn == plan.segment - 1]
    return own if len(own) >= plan.size * s.factor**2 else members
