"""IDC's image optimiser for all classes at once.

The public loop takes one SGD step with momentum m on the *whole* pixel tensor after
every class, so momentum keeps moving the C − 1 other classes. Seen from one class, C
such steps are a single one with momentum mᶜ and learning rate lr·(1 − mᶜ)/(1 − m), as
far as the points at which gradients are taken go. Only when the loop is interrupted
(to clamp, or to stop) does it matter that class c still has c moves of drift ahead.

A rate may fall from outer iteration to outer iteration. Inside one it stays as it is,
so that all moves of a pass are of one rate; of the last pass of an iteration, class c
makes its c moves of drift at the rate of the next.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Pixels = Float[Array, "C n H W ch"]


def cosine(progress: Array) -> Array:
    """From 1 to 0 along half a cosine, as progress f32[] goes from 0 to 1."""
    return (1 + jnp.cos(math.pi * progress)) / 2


# Factor of the rate by the share of outer iterations that are done; None: always 1.
SCHEDULES: dict[str, Callable[[Array], Array] | None] = {
    "constant": None,
    "cosine": cosine,
}


class ImageOptimizer(NamedTuple):
    """Pure functions on pixels of all classes, f32[C, n, H, W, ch]."""

    init: Callable[[Pixels], Any]
    update: Callable[[Pixels, Any, Pixels], tuple[Any, Any]]
    interrupted: Callable[[Pixels, Any], Pixels]
    clamp: Callable[[Pixels, Any], Pixels]


def make_image_optimizer(
    learning_rate: float,
    momentum: float,
    turns: int,
    *,
    decay: Callable[[Array], Array] | None = None,
    precondition: Callable[[Pixels], Pixels] = lambda grads: grads,
) -> ImageOptimizer:
    """SGD with momentum that equals the public one-class-after-another loop.

    Args:
      learning_rate: of the public loop, per class step.
      momentum: of the public loop, in [0, 1).
      turns: classes that take turns; 1 for plain SGD, one step for all at once (DC, DM,
        CAFE, MTT).
      decay: factor f32[] of the rate by the number of passes i32[] that are done; may
        change where ``clamp`` is called, and only there (``make_decay``). ``None``: 1.
      precondition: applied to every gradient (``training.input_metric``).

    Returns:
      ``init(pixels)``, ``update(grads, state, pixels)`` and, for the moments between
      two passes, ``interrupted(pixels, state)``: the pixels as the public loop holds
      them right after its last class, and ``clamp(pixels, state)``: what remains after
      it clips *those* to [0, 1] and goes on.
    """
    over_a_pass = momentum**turns
    rate_of_a_pass = learning_rate * (1 - over_a_pass) / (1 - momentum)
    optimizer = optax.sgd(
        rate_of_a_pass
        if decay is None
        else lambda done: rate_of_a_pass * decay(jnp.asarray(done)),
        momentum=over_a_pass,
    )
    # After the last class, class c has made turns − c of its moves.
    ahead = jnp.array(
        [
            learning_rate * (momentum ** (turns - c) - over_a_pass) / (1 - momentum)
            for c in range(turns)
        ],
        jnp.float32,
    )[:, None, None, None, None]

    def drift(state, at):
        """Of all classes, at the rate of the pass before (−1) or of the next (0)."""
        moves = ahead * optax.tree_utils.tree_get(state, "trace")
        if decay is None:
            return moves
        return decay(optax.tree_utils.tree_get(state, "count") + at) * moves

    def update(grads: Pixels, state: Any, pixels: Pixels) -> tuple[Any, Any]:
        updates, state = optimizer.update(precondition(grads), state, pixels)
        return optax.apply_updates(pixels, updates), state

    def interrupted(pixels: Pixels, state: Any) -> Pixels:
        return pixels + drift(state, -1)

    def clamp(pixels: Pixels, state: Any) -> Pixels:
        owed = drift(state, -1)
        clipped = jnp.clip(pixels + owed, 0.0, 1.0)
        return clipped - (owed if decay is None else drift(state, 0))

    return ImageOptimizer(optimizer.init, update, interrupted, clamp)


def make_decay(
    schedule: str, outer_iterations: int, inner: int
) -> Callable[[Array], Array] | None:
    """``decay`` of a segment of so many outer iterations of so many passes.

    The first outer iteration has the full rate; a cosine would be 0 right after the
    last.
    """
    factor = SCHEDULES[schedule]
    if factor is None:
        return None
    return lambda done: factor((done // inner).astype(jnp.float32) / outer_iterations)
