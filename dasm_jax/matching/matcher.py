"""What a matcher is: a target from real data, and a distance to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dasm_jax.types import Params

ApplyFn = Callable[[Params, Any], Any]


class Matcher(NamedTuple):
    """A surrogate objective for synthetic images: three pure functions.

    ``target(view, real)`` has no gradient to the pixels; ``summary(view, synthetic)``
    is differentiable in ``synthetic``; ``compare(summary, target)`` is f32[]. What they
    take depends on how much an objective has to see at once (``objectives.py``):

    - one class: ``view`` are parameters, ``real`` and ``synthetic`` a ``Batch``;
    - all classes: the same, with a leading axis of classes on every field;
    - a lesson: ``view`` is a stretch of an expert's trajectory, ``real`` is not looked
      at, ``synthetic`` is a ``trajectory.Lesson``.

    For a class or all classes the summary of a batch is a weighted mean over its
    images: that of several batches together is the mean of theirs, and need not be
    computed again. A lesson's is not.
    """

    target: Callable[[Any, Any], Any]
    summary: Callable[[Any, Any], Any]
    compare: Callable[[Any, Any], Array]

    def distance(self, view: Any, target: Any, synthetic: Any) -> Array:
        """f32[], differentiable in ``synthetic``."""
        return self.compare(self.summary(view, synthetic), target)


def mean_cross_entropy(
    apply_fn: ApplyFn,
    params: Params,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    weights: Float[Array, " B"],
) -> Float[Array, ""]:
    """Weighted mean of the cross-entropy over a batch."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        apply_fn(params, images), labels
    )
    return jnp.sum(losses * weights) / jnp.sum(weights)


def weighted_mean(
    values: Float[Array, "B D"], weights: Float[Array, " B"]
) -> Float[Array, " D"]:
    """Mean over a batch whose images may stand for several each."""
    return weights @ values / jnp.sum(weights)
