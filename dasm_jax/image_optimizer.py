"""IDC's image optimiser for all classes at once.

The public loop takes one SGD step with momentum m on the *whole* pixel tensor after
every class, so momentum keeps moving the C − 1 other classes. Seen from one class, C
such steps are a single one with momentum mᶜ and learning rate lr·(1 − mᶜ)/(1 − m), as
far as the points at which gradients are taken go. Only when the loop is interrupted
(to clamp, or to stop) does it matter that class c still has c moves of drift ahead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Pixels = Float[Array, "C n H W ch"]


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
    precondition: Callable[[Pixels], Pixels] = lambda grads: grads,
) -> ImageOptimizer:
    """SGD with momentum that equals the public one-class-after-another loop.

    Args:
      learning_rate: of the public loop, per class step.
      momentum: of the public loop, in [0, 1).
      turns: classes that take turns; 1 for plain SGD, one step for all at once (DC, DM,
        CAFE, MTT).
      precondition: applied to every gradient (``training.input_metric``).

    Returns:
      ``init(pixels)``, ``update(grads, state, pixels)`` and, for the moments between
      two passes, ``interrupted(pixels, state)``: the pixels as the public loop holds
      them right after its last class, and ``clamp(pixels, state)``: what remains after
      it clips *those* to [0, 1] and goes on.
    """
    over_a_pass = momentum**turns
    optimizer = optax.sgd(
        learning_rate * (1 - over_a_pass) / (1 - momentum), momentum=over_a_pass
    )
    # After the last class, class c has made turns − c of its moves.
    ahead = jnp.array(
        [
            learning_rate * (momentum ** (turns - c) - over_a_pass) / (1 - momentum)
            for c in range(turns)
        ],
        jnp.float32,
    )[:, None, None, None, None]

    def drift(state):
        return ahead * optax.tree_utils.tree_get(state, "trace")

    def update(grads: Pixels, state: Any, pixels: Pixels) -> tuple[Any, Any]:
        updates, state = optimizer.update(precondition(grads), state, pixels)
        return optax.apply_updates(pixels, updates), state

    def interrupted(pixels: Pixels, state: Any) -> Pixels:
        return pixels + drift(state)

    def clamp(pixels: Pixels, state: Any) -> Pixels:
        owed = drift(state)
        return jnp.clip(pixels + owed, 0.0, 1.0) - owed

    return ImageOptimizer(optimizer.init, update, interrupted, clamp)
