"""What the rest of the program sees of a network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from dasm_jax.types import Params

STATISTICS = "batch_stats"


class Moments(NamedTuple):
    """Of what enters a batch norm: of the batch at hand, and as learned."""

    mean: Float[Array, " C"]
    var: Float[Array, " C"]
    running_mean: Float[Array, " C"]
    running_var: Float[Array, " C"]


class Network(NamedTuple):
    """Pure functions of parameters and normalised images f32[B, H, W, C].

    Running statistics of a batch norm, where there are any, are part of ``params``.
    """

    # key -> params
    init: Callable[[Any], Params]
    # (params, images) -> logits f32[B, n_classes]; running statistics
    apply: Callable[[Params, Any], Any]
    # (params, images) -> activations f32[B, …] after every block; the last one,
    # flattened, is the embedding ahead of the classifier
    layers: Callable[[Params, Any], tuple[Any, ...]]
    # (params, images) -> (logits, new running statistics or ()), by those of the batch
    train: Callable[[Params, Any], tuple[Any, Any]]
    # (params, statistics) -> params that hold them
    with_statistics: Callable[[Params, Any], Params]
    # (params, images) -> (logits as of apply, Moments of every batch norm)
    moments: Callable[[Params, Any], tuple[Any, tuple[Moments, ...]]]


def from_linen(module: nn.Module, image_shape: tuple[int, int, int]) -> Network:
    """Wrap a Flax Linen module whose call gives ``(activations, logits)``.

    The call takes ``train``, whether batch norms use, and learn, the statistics of the
    batch. A module without running statistics has its bare parameters as ``params``.
    """
    blank = jnp.zeros((1, *image_shape))
    key_like = jax.eval_shape(lambda: jax.random.key(0))
    variables_like = jax.eval_shape(lambda key: module.init(key, blank), key_like)
    stateful = STATISTICS in variables_like

    def variables(params: Params) -> dict[str, Any]:
        return params if stateful else {"params": params}

    def init(key: Any) -> Params:
        made = module.init(key, blank)
        if stateful:
            return {"params": made["params"], STATISTICS: made[STATISTICS]}
        return made["params"]

    def apply(params: Params, images: Any) -> Any:
        return module.apply(variables(params), images)[1]  # type: ignore[index]

    def layers(params: Params, images: Any) -> tuple[Any, ...]:
        return module.apply(variables(params), images)[0]  # type: ignore[index]

    def train(params: Params, images: Any) -> tuple[Any, Any]:
        if not stateful:
            return apply(params, images), ()
        (_, logits), changed = module.apply(
            params, images, train=True, mutable=[STATISTICS]
        )
        return logits, changed[STATISTICS]

    def with_statistics(params: Params, statistics: Any) -> Params:
        return {**params, STATISTICS: statistics} if stateful else params

    def moments(params: Params, images: Any) -> tuple[Any, tuple[Moments, ...]]:
        if not stateful:
            return apply(params, images), ()
        output, sown = module.apply(params, images, mutable=["intermediates"])
        # Keyed by the path of each norm, whichever way they are nested in blocks.
        entering: dict[Any, Any] = flatten_dict(sown["intermediates"])
        learned: dict[Any, Any] = flatten_dict(params[STATISTICS])
        found = []
        for *path, name in learned:
            if name == "mean":
                x = entering[(*path, "entering")][0]
                axes = tuple(range(x.ndim - 1))
                mean, var = (learned[(*path, name)] for name in ("mean", "var"))
                found.append(Moments(x.mean(axes), x.var(axes), mean, var))
        return output[1], tuple(found)

    return Network(jax.jit(init), apply, layers, train, with_statistics, moments)
