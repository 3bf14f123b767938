"""Distances between gradients, and matchers: a target from real data, a distance to it.

A new surrogate objective is two pure functions in a ``Matcher``; segments and pools
(``dasm.py``) wrap it unchanged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dasm_jax.types import Batch, Params

ApplyFn = Callable[[Params, Any], Any]


class Matcher(NamedTuple):
    """An objective for the synthetic images of one class.

    ``target(params, real)`` has no gradient to the pixels; ``distance(params, target,
    synthetic)`` is differentiable in ``synthetic.images`` and returns f32[].
    """

    target: Callable[[Params, Batch], Any]
    distance: Callable[[Params, Any, Batch], Array]


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


def _per_output(x: Array) -> Array:
    """[everything else, output channel]; the output channel is the last axis."""
    return x.reshape(-1, x.shape[-1])


def squared_distance(x: Array, y: Array) -> Array:
    """Σ (x − y)²."""
    return jnp.sum((x - y) ** 2)


def absolute_distance(x: Array, y: Array) -> Array:
    """Σ |x − y|."""
    return jnp.sum(jnp.abs(x - y))


def mean_absolute_distance(x: Array, y: Array) -> Array:
    """Σ over output channels of the mean of |x − y|."""
    return jnp.sum(jnp.mean(jnp.abs(_per_output(x - y)), axis=0))


def cosine_distance(x: Array, y: Array) -> Array:
    """Σ over output channels of 1 − cosine, with 1e-6 in the denominator."""
    x, y = _per_output(x), _per_output(y)
    # A bias ahead of a norm has gradient zero, where a plain norm has no derivative.
    tiny = jnp.finfo(x.dtype).tiny
    norms = jnp.sqrt(jnp.sum(x**2, axis=0) + tiny) * jnp.sqrt(
        jnp.sum(y**2, axis=0) + tiny
    )
    return jnp.sum(1.0 - jnp.sum(x * y, axis=0) / (norms + 1e-6))


METRICS = {
    "mse": squared_distance,
    "l1": absolute_distance,
    "l1_mean": mean_absolute_distance,
    "cos": cosine_distance,
}


def convolution_kernels(params: Params) -> list[Array]:
    """Leaves with four axes: the parameters that IDC matches."""
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]


def every_parameter(params: Params) -> list[Array]:
    """All leaves: kernels, biases, norms and dense layers."""
    return jax.tree.leaves(params)


LAYERS = {"conv": convolution_kernels, "all": every_parameter}


def make_parameter_gradient(
    apply_fn: ApplyFn,
) -> Callable[[Params, Array, Array, Array], Params]:
    """∇_θ of the mean cross-entropy, with a cheap derivative of its own.

    For a cotangent u on the gradient g(θ, x) = ∇_θ L(θ, x), the pull-back to (θ, x) is
    the directional derivative along u of ∇_{θ,x} L, because second derivatives commute:
    one forward-over-reverse sweep instead of reverse-over-reverse. Exact, and without
    weight gradients in the second pass when only the pixels are asked for.
    """

    def loss(params, images, labels, weights):
        return mean_cross_entropy(apply_fn, params, images, labels, weights)

    @jax.custom_vjp
    def parameter_gradient(params, images, labels, weights):
        return jax.grad(loss)(params, images, labels, weights)

    def forward(params, images, labels, weights):
        gradient = parameter_gradient(params, images, labels, weights)
        return gradient, (params, images, labels, weights)

    def backward(saved, cotangent):
        params, images, labels, weights = saved

        def first_order(params):
            return jax.grad(loss, (0, 1, 3))(params, images, labels, weights)

        # Under jit, what nobody asks for (mostly d_params) is never computed.
        _, (d_params, d_images, d_weights) = jax.jvp(
            first_order, (params,), (cotangent,)
        )
        return d_params, d_images, None, d_weights

    parameter_gradient.defvjp(forward, backward)
    return parameter_gradient


def make_gradient_matcher(
    apply_fn: ApplyFn,
    metric: Callable[[Array, Array], Array] = squared_distance,
    layers: Callable[[Params], list[Array]] = convolution_kernels,
) -> Matcher:
    """Match gradients: D(∇_θ L(θ; synthetic), ∇_θ L(θ; real)), eq. 4.

    Args:
      apply_fn: ``apply_fn(params, images) -> logits``, from any library.
      metric: distance between two gradient arrays of one parameter (``METRICS``).
      layers: which leaves of the gradient take part (``LAYERS``).

    The distance is for ``jax.grad``; forward mode (``jax.jvp``) is refused by JAX, as
    for every function with a derivative rule of its own.
    """
    gradient = make_parameter_gradient(apply_fn)

    def target(params: Params, real: Batch) -> list[Array]:
        return jax.lax.stop_gradient(layers(gradient(params, *real)))

    def distance(
        params: Params, target: list[Array], synthetic: Batch
    ) -> Float[Array, ""]:
        ours = layers(gradient(params, *synthetic))
        if not ours:
            raise ValueError(
                "no parameter takes part in matching: the network has no convolution "
                "kernel; match every parameter instead (matcher.layers='all')"
            )
        terms = [metric(x, y) for x, y in zip(ours, target)]
        return sum(terms[1:], terms[0])

    return Matcher(target, distance)


MATCHERS = {"idc": make_gradient_matcher}
