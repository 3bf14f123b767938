"""ConvNet of the dataset-distillation literature (Gidaris & Komodakis 2018)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers

from dasm_jax.nets.network import Network, from_linen


def torch_uniform(fan_in: int) -> initializers.Initializer:
    """U(−1/√fan_in, 1/√fan_in), how PyTorch starts weights and biases alike."""
    limit = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def average_pool(x: jax.Array) -> jax.Array:
    """2×2 average pooling; a last odd row or column is dropped.

    By reshape: XLA runs it, and its derivatives, several times faster than
    reduce-window.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.mean(axis=(2, 4))


def instance_norm(train: bool, name: str) -> nn.Module:
    """Every image on its own."""
    return nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def batch_norm(train: bool, name: str) -> nn.Module:
    """Statistics of the batch in training, running ones otherwise."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        name=name,
    )


NORMS = {"instance": instance_norm, "batch": batch_norm}


class ConvNet(nn.Module):
    """``depth`` × [conv 3×3 → norm → ReLU → average pool], then dense."""

    n_classes: int
    width: int = 128
    depth: int = 3
    norm: str = "instance"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → activations after every block, and f32[B, n_classes]."""
        activations = []
        for layer in range(self.depth):
            fan_in = 9 * x.shape[-1]
            # One-channel 28 px images become 32 px, so that three poolings fit.
            widen = layer == 0 and x.shape[1:] == (28, 28, 1)
            x = nn.Conv(
                self.width,
                (3, 3),
                padding=3 if widen else 1,
                kernel_init=torch_uniform(fan_in),
                bias_init=torch_uniform(fan_in),
                name=f"conv_{layer}",
            )(x)
            self.sow("intermediates", f"into_norm_{layer}", x)
            x = NORMS[self.norm](train, f"norm_{layer}")(x)
            x = average_pool(nn.relu(x))
            activations.append(x)
        x = x.reshape(x.shape[0], -1)
        fan_in = x.shape[-1]
        logits = nn.Dense(
            self.n_classes,
            kernel_init=torch_uniform(fan_in),
            bias_init=torch_uniform(fan_in),
            name="classifier",
        )(x)
        return tuple(activations), logits


def make_convnet(
    image_shape: tuple[int, int, int],
    n_classes: int,
    *,
    width: int,
    depth: int,
    norm: str = "instance",
) -> Network:
    """ConvNet-``depth`` of ``width`` channels for images of ``image_shape``.

    Raises:
      ValueError: the image is too small for ``depth`` poolings, or an unknown norm.
    """
    if norm not in NORMS:
        raise ValueError(f"unknown network.norm={norm!r}; known: {', '.join(NORMS)}")
    height, width_px, _ = image_shape
    smallest = 32 if image_shape == (28, 28, 1) else min(height, width_px)
    if smallest < 2**depth:
        raise ValueError(
            f"network.depth={depth} halves {height}x{width_px} images to nothing; "
            f"use a depth up to {smallest.bit_length() - 1}"
        )
    return from_linen(ConvNet(n_classes, width, depth, norm), image_shape)
