"""Feature matching: mean embeddings (DM), and all layers with discrimination (CAFE)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dasm_jax.matching.gradient import squared_distance
from dasm_jax.matching.matcher import Matcher, weighted_mean
from dasm_jax.types import Batch, Params

# ``layers(params, images)``: activations f32[B, …] after every block, the last of them
# the embedding that the classifier sees.
LayersFn = Callable[[Params, Any], tuple[Any, ...]]


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def make_embedding_matcher(layers_fn: LayersFn) -> Matcher:
    """Match mean embeddings of one class: ‖mean ψ(real) − mean ψ(synthetic)‖².

    Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, eq. 5;
    ψ is a freshly drawn network without its classifier.
    """

    def summary(params: Params, batch: Batch) -> Float[Array, " D"]:
        last = layers_fn(params, batch.images)[-1]
        return weighted_mean(_flat(last), batch.weights)

    def target(params: Params, real: Batch) -> Float[Array, " D"]:
        return jax.lax.stop_gradient(summary(params, real))

    return Matcher(target, summary, compare=squared_distance)


def make_alignment_matcher(layers_fn: LayersFn, discrimination: float) -> Matcher:
    """Align the mean features of every layer, and tell real images apart by them.

    Wang et al., "CAFE: Learning to Condense Dataset by Aligning Features", CVPR 2022:
    Σ over classes and layers of the squared difference of mean features, plus
    ``discrimination`` times the sum over real images of the cross-entropy of embeddings
    whose logits are their inner products with the mean synthetic embedding of every
    class. Sees all classes:
    batches have a leading axis of classes, and labels count from 0.
    """

    def features(params: Params, batch: Batch) -> list[Float[Array, "C B D"]]:
        n_classes, size = batch.labels.shape
        images = batch.images.reshape(n_classes * size, *batch.images.shape[2:])
        return [x.reshape(n_classes, size, -1) for x in layers_fn(params, images)]

    def target(params: Params, real: Batch) -> tuple[list[Array], Array, Array]:
        every = features(params, real)
        means = [jax.vmap(weighted_mean)(x, real.weights) for x in every]
        return jax.lax.stop_gradient((means, every[-1], real.labels))

    def summary(params: Params, synthetic: Batch) -> list[Float[Array, "C _"]]:
        return [
            jax.vmap(weighted_mean)(x, synthetic.weights)
            for x in features(params, synthetic)
        ]

    def compare(
        means: list[Float[Array, "C _"]], target: tuple[list[Array], Array, Array]
    ) -> Float[Array, ""]:
        wanted, real, labels = target
        aligned = sum(squared_distance(x, y) for x, y in zip(means, wanted))
        logits = jnp.einsum("cbd,kd->cbk", real, means[-1])
        told_apart = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return aligned + discrimination * told_apart.sum()

    return Matcher(target, summary, compare)
