"""ResNets for small and large images, with strides or with average pooling (ResNetAP).

He et al. 2016. ResNetAP never strides: where a block halves the image it pools, which
keeps the gradients of pixels smooth (Kim et al., IDC, ICML 2022).
"""

from functools import partial
from typing import Any

import jax
from flax import linen as nn
from flax.linen import initializers

from dasm_jax.nets.layers import NORMS, average_pool, dense, global_average

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2)}

# Normal with variance 2 / (kernel area · output channels), as both publications start.
KERNEL_INIT = initializers.variance_scaling(2.0, "fan_out", "normal")


def stem_kind(side: int) -> str:
    """Which stem: small images keep their size in it, larger ones shrink."""
    return "small" if side <= 64 else "mid" if side <= 128 else "large"


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    features: int
    halve: bool
    pooled: bool  # ResNetAP
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f32[B, H, W, C] → f32[B, h, w, features], halved or not."""
        stride = 2 if self.halve and not self.pooled else 1
        pool = average_pool if self.halve and self.pooled else lambda x: x
        conv = partial(nn.Conv, use_bias=False, kernel_init=KERNEL_INIT)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return NORMS[self.norm](train, name)(x)

        y = conv(self.features, (3, 3), stride, padding=1, name="conv_0")(x)
        y = pool(nn.relu(norm("norm_0", y)))
        y = norm("norm_1", conv(self.features, (3, 3), padding=1, name="conv_1")(y))
        if self.halve or x.shape[-1] != self.features:
            x = pool(conv(self.features, (1, 1), stride, name="conv_shortcut")(x))
            x = norm("norm_shortcut", x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem, four stages of ``Block``, mean over the image, dense."""

    n_classes: int
    depth: int
    norm: str
    pooled: bool
    width: int = 64

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """f32[B, H, W, C] → activations after stem, stages and mean; logits."""
        kind = stem_kind(min(x.shape[1:3]))
        size = 7 if kind == "large" else 3
        x = nn.Conv(
            self.width,
            (size, size),
            2 if kind == "large" and not self.pooled else 1,
            padding=size // 2,
            use_bias=False,
            kernel_init=KERNEL_INIT,
            name="conv",
        )(x)
        x = nn.relu(NORMS[self.norm](train, "norm")(x))
        if kind != "small":
            if self.pooled:
                x = average_pool(x, 4 if kind == "large" else 2)
            else:
                border: Any = [(1, 1), (1, 1)]  # Flax's hint knows names alone
                x = nn.max_pool(x, (3, 3), (2, 2), border)
        activations = [x]
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            for block in range(blocks):
                halve = stage > 0 and block == 0
                x = Block(
                    self.width * 2**stage,
                    halve,
                    self.pooled,
                    self.norm,
                    name=f"stage_{stage}_block_{block}",
                )(x, train)
            activations.append(x)
        x = global_average(x)
        logits = dense(x.shape[-1], self.n_classes, "classifier")(x)
        return (*activations, x), logits
