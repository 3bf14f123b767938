"""Pieces that networks of the dataset-distillation literature share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers

from dasm_jax.nets.convolution import convolve

GROUPS = 4  # of a group norm


def torch_uniform(fan_in: int) -> initializers.Initializer:
    """U(−1/√fan_in, 1/√fan_in), how PyTorch starts weights and biases alike."""
    limit = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def conv(
    inputs: int,
    features: int,
    size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = True,
    name: str | None = None,
) -> nn.Conv:
    """Convolution that starts as PyTorch's and, unless padded, keeps the sides."""
    init = torch_uniform(size**2 * inputs)
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2 if padding is None else padding,
        use_bias=bias,
        kernel_init=init,
        bias_init=init,
        conv_general_dilated=convolve,
        name=name,
    )


def dense(inputs: int, features: int, name: str | None = None) -> nn.Dense:
    """Dense layer that starts as PyTorch's."""
    init = torch_uniform(inputs)
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)


class BatchNorm(nn.BatchNorm):
    """Batch norm that shows what enters it (``Network.moments``)."""

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """See ``nn.BatchNorm``."""
        self.sow("intermediates", "entering", x)
        return super().__call__(x, *args, **kwargs)


def batch_norm(train: bool, name: str | None) -> nn.Module:
    """Statistics of the batch in training, running ones otherwise."""
    return BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        name=name,
    )


class SinglePixelError(ValueError):
    """A map of one pixel, of which instance norm would leave nothing."""


class InstanceNorm(nn.InstanceNorm):
    """Instance norm that refuses maps of one pixel, where it gives zeros."""

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """See ``nn.InstanceNorm``."""
        if x.shape[1:-1] == (1, 1):
            raise SinglePixelError("instance norm of a map of one pixel")
        return super().__call__(x, *args, **kwargs)


def instance_norm(train: bool, name: str | None) -> nn.Module:
    """Every channel of every image on its own."""
    return InstanceNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def group_norm(train: bool, name: str | None) -> nn.Module:
    """``GROUPS`` groups of channels of every image."""
    return nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, name=name)


def layer_norm(train: bool, name: str | None) -> nn.Module:
    """Every image as a whole, with a scale and a bias for every value."""
    return nn.LayerNorm(
        epsilon=1e-5,
        reduction_axes=(1, 2, 3),
        feature_axes=(1, 2, 3),
        use_fast_variance=False,
        name=name,
    )


def no_norm(train: bool, name: str | None) -> Callable[[Any], Any]:
    """Values as they are."""
    return lambda x: x


NORMS: dict[str, Callable[[bool, str | None], Callable[[Any], Any]]] = {
    "instance": instance_norm,
    "batch": batch_norm,
    "group": group_norm,
    "layer": layer_norm,
    "none": no_norm,
}


def average_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Means of size×size blocks; what does not fill a block is dropped.

    By reshape: every derivative is as plain. Windows are as fast on a CPU
    (docs/performance.md).
    """
    return _blocks(x, size).mean(axis=(2, 4))


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Maxima of size×size blocks; what does not fill a block is dropped."""
    return _blocks(x, size).max(axis=(2, 4))


def _blocks(x: jax.Array, size: int) -> jax.Array:
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size]
    return x.reshape(batch, rows, size, columns, size, channels)


POOLINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "average": average_pool,
    "max": max_pool,
    "none": lambda x: x,
}


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), with derivative 0 at 0, as ``nn.relu``.

    Chosen, not compared: XLA's CPU kernels would read the zeros of a maximum from
    memory. Values that are not numbers pass.
    """
    return jnp.where(x < 0, jnp.zeros((), x.dtype), x)


@relu.defjvp
def _relu_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return relu(x), jnp.where(x > 0, tangent, jnp.zeros((), tangent.dtype))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "leaky": nn.leaky_relu,
    "sigmoid": nn.sigmoid,
}


def is_mnist(x: jax.Array) -> bool:
    """Whether images f32[B, H, W, C] are those that a first layer pads to 32 px."""
    return x.shape[1:] == (28, 28, 1)


def global_average(x: jax.Array) -> jax.Array:
    """f32[B, H, W, C] → f32[B, C]."""
    return x.mean(axis=(1, 2))
