"""Convolutions take another form on CPU, not other values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dasm_jax.nets import convolution
from dasm_jax.nets.architecture import Architecture, make_network

NHWC = ("NHWC", "HWIO", "NHWC")


def direct(inputs, kernel, padding=1):
    with convolution.plain():
        return convolve(inputs, kernel, padding)


def convolve(inputs, kernel, padding=1, strides=(1, 1)):
    around = ((padding, padding),) * 2
    return convolution.convolve(inputs, kernel, strides, around, dimension_numbers=NHWC)


def some(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def operations(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text()


def is_close(ours, theirs, tolerance):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * np.abs(y).max())


@pytest.mark.parametrize("side", [(8, 8), (7, 7), (16, 5), (2, 2), (1, 1)])
def test_winograd_is_a_convolution_that_keeps_the_sides(side):
    inputs, kernel = some(0, 3, *side, 5), some(1, 3, 3, 5, 6)
    is_close(convolution.winograd(inputs, kernel), direct(inputs, kernel), 2e-5)


def test_winograd_has_the_derivatives_of_a_convolution():
    inputs, kernel, weight = (
        some(0, 2, 6, 6, 3),
        some(1, 3, 3, 3, 4),
        some(2, 2, 6, 6, 4),
    )

    def first(convolve):
        def loss(inputs, kernel):
            return (jnp.tanh(convolve(inputs, kernel)) * weight).sum()

        return jax.grad(loss, (0, 1))

    def second(convolve):
        tangents = some(3, *inputs.shape), some(4, *kernel.shape)
        return jax.jvp(first(convolve), (inputs, kernel), tangents)[1]

    ours = first(convolution.winograd)(inputs, kernel)
    is_close(ours, first(direct)(inputs, kernel), 5e-5)
    is_close(second(convolution.winograd), second(direct), 5e-5)


def test_wide_convolutions_are_products_of_matrices_on_cpu():
    wide = some(0, 2, 8, 8, 64), some(1, 3, 3, 64, 64)
    assert "convolution" not in operations(convolve, *wide)
    assert "convolution" in operations(direct, *wide)
    is_close(convolve(*wide), direct(*wide), 2e-5)


@pytest.mark.parametrize(
    ("inputs", "kernel", "options"),
    [
        ((2, 8, 8, 32), (3, 3, 32, 64), {}),
        ((2, 8, 8, 64), (5, 5, 64, 64), {"padding": 2}),
        ((2, 8, 8, 64), (3, 3, 64, 64), {"strides": (2, 2)}),
        ((2, 8, 8, 64), (3, 3, 64, 64), {"padding": 0}),
    ],
    ids=["narrow", "5x5", "strided", "valid"],
)
def test_other_convolutions_stay_what_they_are(inputs, kernel, options):
    text = operations(
        lambda x, w: convolve(x, w, **options), some(0, *inputs), some(1, *kernel)
    )
    assert "convolution" in text


@pytest.mark.parametrize("padding", [2, 3])
def test_padding_beyond_the_kernel_is_done_ahead(padding):
    inputs, kernel = some(0, 2, 28, 28, 1), some(1, 3, 3, 1, 4)
    text = operations(lambda x, w: convolve(x, w, padding), inputs, kernel)
    assert "pad" in text
    assert "convolution" in text
    theirs = lax.conv_general_dilated(
        inputs, kernel, (1, 1), ((padding, padding),) * 2, dimension_numbers=NHWC
    )
    is_close(convolve(inputs, kernel, padding), theirs, 1e-6)


def test_networks_of_one_batch_may_be_mapped_over():
    inputs, kernels = some(0, 2, 8, 8, 64), some(1, 3, 3, 3, 64, 64)
    ours = jax.vmap(convolve, in_axes=(None, 0))(inputs, kernels)
    is_close(ours, jax.vmap(direct, in_axes=(None, 0))(inputs, kernels), 2e-5)


@pytest.mark.slow
def test_a_network_of_the_published_width_gives_the_same_logits():
    network = make_network(
        Architecture("convnet", 128, 3, "instance", "relu", "average"), (32, 32, 3), 10
    )
    params, images = network.init(jax.random.key(0)), some(1, 2, 32, 32, 3)
    ours = network.apply(params, images)
    with convolution.plain():
        theirs = network.apply(params, images)
    assert not np.array_equal(ours, theirs)
    is_close(ours, theirs, 1e-4)
