"""ViT-Ti for small images: patches of 4 px (Dosovitskiy et al. 2021; Touvron 2021)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers

PATCH, DEPTH, HEADS = 4, 12, 3

TOKEN_INIT = initializers.truncated_normal(0.02)


class Encoder(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, tokens, D] → the same."""
        dim = x.shape[-1]
        y = nn.LayerNorm(epsilon=1e-6, name="norm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(y)
        y = nn.LayerNorm(epsilon=1e-6, name="norm_1")(x)
        y = nn.gelu(nn.Dense(4 * dim, name="dense_0")(y), approximate=False)
        return x + nn.Dense(dim, name="dense_1")(y)


class ViT(nn.Module):
    """Patches and a class token through twelve encoders of ``width`` values a token."""

    n_classes: int
    width: int = 192

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → tokens after every encoder and the class token; logits.

        Images whose sides are not multiples of a patch are padded with zeros.
        """
        size = (PATCH, PATCH)
        x = nn.Conv(self.width, size, size, padding="SAME", name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("token", TOKEN_INIT, (1, 1, self.width))
        token = jnp.broadcast_to(token, (len(x), 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        x = x + self.param("positions", TOKEN_INIT, (1, x.shape[1], self.width))
        activations = []
        for layer in range(DEPTH):
            x = Encoder(name=f"encoder_{layer}")(x)
            activations.append(x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x[:, 0])
        return (*activations, x), nn.Dense(self.n_classes, name="classifier")(x)
