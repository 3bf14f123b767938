"""ConvNet of the dataset-distillation literature (Gidaris & Komodakis 2018)."""

import jax
from flax import linen as nn

from dasm_jax.nets.layers import ACTIVATIONS, NORMS, POOLINGS, conv, dense, is_mnist


class ConvNet(nn.Module):
    """``depth`` × [conv 3×3 → norm → activation → pooling], then dense."""

    n_classes: int
    width: int
    depth: int
    norm: str
    activation: str
    pooling: str

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → activations after every block, and f32[B, n_classes]."""
        activations = []
        for layer in range(self.depth):
            # One-channel 28 px images become 32 px, so that three poolings fit.
            widen = layer == 0 and is_mnist(x)
            x = conv(
                x.shape[-1],
                self.width,
                3,
                padding=3 if widen else 1,
                name=f"conv_{layer}",
            )(x)
            x = NORMS[self.norm](train, f"norm_{layer}")(x)
            x = POOLINGS[self.pooling](ACTIVATIONS[self.activation](x))
            activations.append(x)
        x = x.reshape(x.shape[0], -1)
        return tuple(activations), dense(x.shape[-1], self.n_classes, "classifier")(x)
