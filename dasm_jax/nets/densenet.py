"""DenseNet-BC for CIFAR, growth 12, four dense stages of 6, 12, 24 and 16 layers.

Huang et al. 2017, in the size that the dataset-distillation literature evaluates on.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dasm_jax.nets.layers import NORMS, average_pool, conv, dense, global_average

STAGES = (6, 12, 24, 16)


class DenseNet(nn.Module):
    """Every layer sees the outputs of all layers of its stage."""

    n_classes: int
    norm: str
    growth: int = 12

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → activations after every stage and the mean; logits."""

        def normed(x: jax.Array, name: str) -> jax.Array:
            return nn.relu(NORMS[self.norm](train, f"norm_{name}")(x))

        def convolved(x: jax.Array, features: int, size: int, name: str) -> jax.Array:
            inputs = x.shape[-1]
            return conv(inputs, features, size, bias=False, name=f"conv_{name}")(x)

        x = convolved(x, 2 * self.growth, 3, "stem")
        activations = []
        for stage, layers in enumerate(STAGES):
            for layer in range(layers):
                name = f"{stage}_{layer}"
                y = convolved(normed(x, f"{name}a"), 4 * self.growth, 1, f"{name}a")
                y = convolved(normed(y, f"{name}b"), self.growth, 3, f"{name}b")
                x = jnp.concatenate([y, x], axis=-1)
            if stage < len(STAGES) - 1:
                x = convolved(normed(x, f"{stage}"), x.shape[-1] // 2, 1, f"{stage}")
                # Images of 14 px or less are used up before the last stage.
                x = average_pool(x) if min(x.shape[1:3]) > 1 else x
            activations.append(x)
        x = global_average(normed(x, "last"))
        logits = dense(x.shape[-1], self.n_classes, "classifier")(x)
        return (*activations, x), logits
