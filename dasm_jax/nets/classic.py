"""LeNet, MLP, AlexNet and VGG-11 as the dataset-distillation literature sizes them.

Shapes are those of Zhao et al., "Dataset Condensation with Gradient Matching", ICLR
2021. Poolings that an image is too small for are left out.
"""

from collections.abc import Callable

import jax
from flax import linen as nn

from dasm_jax.nets.layers import NORMS, conv, dense, is_mnist, max_pool


def _pooled(x: jax.Array) -> jax.Array:
    return max_pool(x) if min(x.shape[1:3]) > 1 else x


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


class MLP(nn.Module):
    """Two hidden layers of ``width``."""

    n_classes: int
    width: int = 128

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → activations of both layers; logits."""
        return perceptron(_flat(x), (self.width, self.width), self.n_classes)


def perceptron(
    x: jax.Array, sizes: tuple[int, ...], n_classes: int
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Dense layers with ReLU, and one without; called inside a module."""
    activations = []
    for layer, size in enumerate(sizes):
        x = nn.relu(dense(x.shape[-1], size, f"dense_{layer}")(x))
        activations.append(x)
    return tuple(activations), dense(x.shape[-1], n_classes, "classifier")(x)


class LeNet(nn.Module):
    """Two 5×5 convolutions, two hidden layers."""

    n_classes: int

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → activations after every layer; logits."""
        activations = []
        # 28 px images of one channel become as large as those of CIFAR, here and below.
        for layer, (features, pad) in enumerate(((6, 2 * is_mnist(x)), (16, 0))):
            name = f"conv_{layer}"
            x = conv(x.shape[-1], features, 5, padding=pad, name=name)(x)
            x = _pooled(nn.relu(x))
            activations.append(x)
        hidden, logits = perceptron(_flat(x), (120, 84), self.n_classes)
        return (*activations, *hidden), logits


class AlexNet(nn.Module):
    """Five convolutions, the first of ``width`` channels."""

    n_classes: int
    width: int = 128

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → activations after every layer; logits."""
        activations = []
        # Channels in halves of the width.
        layers = ((2, 5, 1), (3, 5, 1), (4, 3, 0), (3, 3, 0), (3, 3, 1))
        for layer, (halves, size, pool) in enumerate(layers):
            features = halves * self.width // 2
            padding = 4 if layer == 0 and is_mnist(x) else None
            name = f"conv_{layer}"
            x = conv(x.shape[-1], features, size, padding=padding, name=name)(x)
            x = _pooled(nn.relu(x)) if pool else nn.relu(x)
            activations.append(x)
        x = _flat(x)
        return tuple(activations), dense(x.shape[-1], self.n_classes, "classifier")(x)


class VGG11(nn.Module):
    """Eight 3×3 convolutions, a norm behind each; one dense layer."""

    n_classes: int
    norm: str
    width: int = 64

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → activations after every layer; logits."""
        activations = []
        pools = {0, 1, 3, 5, 7}
        for layer, times in enumerate((1, 2, 4, 4, 8, 8, 8, 8)):
            padding = 3 if layer == 0 and is_mnist(x) else None
            name = f"conv_{layer}"
            x = conv(x.shape[-1], times * self.width, 3, padding=padding, name=name)(x)
            norm: Callable = NORMS[self.norm](train, f"norm_{layer}")
            x = nn.relu(norm(x))
            x = _pooled(x) if layer in pools else x
            activations.append(x)
        x = _flat(x)
        return tuple(activations), dense(x.shape[-1], self.n_classes, "classifier")(x)
