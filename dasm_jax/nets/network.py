"""What the rest of the program sees of a network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dasm_jax.types import Params


class Network(NamedTuple):
    """Two pure functions: ``init(key) -> params``, ``apply(params, images) -> logits``.

    Images are f32[B, H, W, C], normalised; logits f32[B, n_classes].
    """

    init: Callable[[Any], Params]
    apply: Callable[[Params, Any], Any]


def from_linen(module: nn.Module, image_shape: tuple[int, int, int]) -> Network:
    """Wrap a stateless Flax Linen module."""

    def init(key: Any) -> Params:
        return module.init(key, jnp.zeros((1, *image_shape)))["params"]

    def apply(params: Params, images: Any) -> Any:
        return module.apply({"params": params}, images)

    return Network(jax.jit(init), apply)
