"""Gradient matching (DC, DSA, IDC): distances between gradients of real and synthetic.

Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021; eq. 4 of DASM.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dasm_jax.matching.matcher import ApplyFn, Matcher, mean_cross_entropy
from dasm_jax.types import Batch, Params


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


def kernels(params: Params) -> list[Array]:
    """Leaves with two axes or more: what DC matches, convolutions and dense layers."""
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]


def every_parameter(params: Params) -> list[Array]:
    """All leaves: kernels, biases, norms and dense layers."""
    return jax.tree.leaves(params)


LAYERS = {"conv": convolution_kernels, "kernels": kernels, "all": every_parameter}


def make_parameter_gradient(
    apply_fn: ApplyFn, *, rematerialize: bool = False
) -> Callable[[Params, Array, Array, Array], Params]:
    """∇_θ of the mean cross-entropy, with a cheap derivative of its own.

    For a cotangent u on the gradient g(θ, x) = ∇_θ L(θ, x), the pull-back to (θ, x) is
    the directional derivative along u of ∇_{θ,x} L, because second derivatives commute:
    one forward-over-reverse sweep instead of reverse-over-reverse. Exact, and without
    weight gradients in the second pass when only the pixels are asked for.

    Args:
      apply_fn: ``apply_fn(params, images) -> logits``.
      rematerialize: run the second sweep from its inputs alone, so that no activations
        are kept in between; else XLA shares what the two sweeps have in common.
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
        if rematerialize:
            # Tied to the cotangent, the sweep cannot be merged with the first one, nor
            # be scheduled before it is needed.
            saved, cotangent = jax.lax.optimization_barrier((saved, cotangent))
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

    def summary(params: Params, synthetic: Batch) -> list[Array]:
        ours = layers(gradient(params, *synthetic))
        if not ours:
            raise ValueError(
                "no parameter takes part in matching: the network has no convolution "
                "kernel; match every parameter instead (LAYERS['all'])"
            )
        return ours

    def compare(ours: list[Array], target: list[Array]) -> Float[Array, ""]:
        terms = [metric(x, y) for x, y in zip(ours, target)]
        return sum(terms[1:], terms[0])

    return Matcher(target, summary, compare)
