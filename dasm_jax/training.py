"""One trainer for every network in the program.

The same step trains the network between matching steps, the networks that score
difficulty, and the networks that evaluate a set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, UInt8

from dasm_jax import augment, sampling, whitening
from dasm_jax import mesh as meshes
from dasm_jax.keys import Use, key_for
from dasm_jax.mesh import Mesh
from dasm_jax.nets import Network
from dasm_jax.sampling import IndexTable, SamplerState
from dasm_jax.types import ArrayDataset, Normalization, Params

ApplyFn = Callable[[Params, Any], Any]


class SoftLabels(NamedTuple):
    """A teacher's labels, in place of those in the data."""

    # Normalised, augmented, mixed images -> probabilities f32[B, K]
    of: Callable[[Any], Any]
    temperature: float  # that the student's logits are divided by, too


class Recipe(NamedTuple):
    """How a network is trained; hashable, fixed at compile time."""

    batch: int
    learning_rate: float
    momentum: float
    weight_decay: float
    augment: tuple[str, ...]
    cutmix: float  # probability per batch
    decay_steps: int = 0  # learning rate ×0.2 at 2/3 and 5/6 of these; 0: constant


class TrainState(NamedTuple):
    """A network in training and its place in the data."""

    params: Params
    opt_state: optax.OptState
    sampler: SamplerState
    step: Array  # i32[]


class Rows(NamedTuple):
    """Images of a batch, augmented and mixed."""

    images: Any  # f32[B, H, W, ch]
    labels: Any  # i32[B]
    partners: Any  # i32[B], labels of what was pasted in


@dataclass(frozen=True)
class TrainStep:
    """One SGD step: ``step(key, state, data, table) -> (state, loss)``, pure.

    And its pieces, for whoever computes gradients on several devices.
    """

    # (key, state, data, table) -> (sampler, rows, their share f32[] of the images)
    draw: Callable[..., tuple[SamplerState, Rows, Array]]
    # (rows, params, share) -> (loss, running statistics or (), gradients)
    gradient: Callable[[Rows, Params, Array], tuple[Array, Any, Params]]
    # (state, sampler, running statistics, gradients) -> state
    move: Callable[..., TrainState]

    def __call__(
        self, key: Array, state: TrainState, *source: Any
    ) -> tuple[TrainState, Array]:
        """The whole step."""
        sampler, rows, share = self.draw(key, state, *source)
        loss, seen, grads = self.gradient(rows, state.params, share)
        return self.move(state, sampler, seen, grads), loss


def to_unit(
    images: UInt8[Array, "B H W C"] | Float[Array, "B H W C"],
) -> Float[Array, "B H W C"]:
    """Bytes to f32 in [0, 1]; floating-point images pass unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return images


def normalize(
    images: Float[Array, "B H W C"], statistics: Normalization
) -> Float[Array, "B H W C"]:
    """(x − mean) / std per channel, then whitened where the statistics say so."""
    mean = jnp.array(statistics.mean, images.dtype)[None, None, None, :]
    std = jnp.array(statistics.std, images.dtype)[None, None, None, :]
    images = (images - mean) / std
    if statistics.whitening is None:
        return images
    return whitening.whiten(images, statistics.whitening)


def denormalize(
    inputs: Float[Array, "B H W C"], statistics: Normalization
) -> Float[Array, "B H W C"]:
    """The images that ``normalize`` makes into ``inputs``."""
    if statistics.whitening is not None:
        inputs = whitening.unwhiten(inputs, statistics.whitening)
    mean = jnp.array(statistics.mean, inputs.dtype)[None, None, None, :]
    std = jnp.array(statistics.std, inputs.dtype)[None, None, None, :]
    return inputs * std + mean


def input_metric(
    grads: Float[Array, "*batch H W C"], statistics: Normalization
) -> Float[Array, "*batch H W C"]:
    """Turn gradients in pixels so that a step on pixels is one on network inputs.

    With inputs z = T(x), a linear T up to its offset, the step Δz = −lr ∂D/∂z is
    Δx = −lr T⁻¹T⁻ᵀ ∂D/∂x: for z = (x − mean)/std a factor std², for whitened images
    their covariance on top.
    """
    std = jnp.array(statistics.std, grads.dtype)
    std = std.reshape((1,) * (grads.ndim - 1) + (-1,))
    if statistics.whitening is None:
        return grads * std**2
    inverse = jnp.asarray(statistics.whitening.inverse, grads.dtype)
    flat = (grads * std).reshape(-1, inverse.shape[0])
    product = partial(jnp.matmul, precision="highest")
    return product(product(flat, inverse), inverse).reshape(grads.shape) * std


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """SGD with momentum and L2 weight decay ahead of it, as PyTorch's."""
    learning_rate = recipe.learning_rate
    if recipe.decay_steps:
        rates = [recipe.learning_rate * factor for factor in (1.0, 0.2, 0.04)]
        learning_rate = optax.join_schedules(
            [optax.constant_schedule(rate) for rate in rates],
            [2 * recipe.decay_steps // 3, 5 * recipe.decay_steps // 6],
        )
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(learning_rate, momentum=recipe.momentum),
    )


def start_training(
    params: Params, recipe: Recipe, sampler: SamplerState, step: Array | int = 0
) -> TrainState:
    """A fresh optimiser around ``params``, at a given place in the data."""
    opt_state = make_optimizer(recipe).init(params)
    return TrainState(params, opt_state, sampler, jnp.asarray(step, jnp.int32))


def make_train_step(
    network: Network,
    recipe: Recipe,
    statistics: Normalization,
    *,
    soft_labels: SoftLabels | None = None,
    mesh: Mesh | None = None,
) -> TrainStep:
    """One SGD step: batch → normalise → augment each → CutMix → gradient.

    Args:
      network: what is trained.
      recipe: how.
      statistics: normalisation ahead of the network.
      soft_labels: in place of the labels in the data; the loss is −Σ p log q, where q
        is the softmax of logits / temperature.
      mesh: every device takes a share of the batch, where it divides by them; the
        batch is drawn, augmented and mixed on each of them alike.

    Returns:
      the step. ``data`` holds u8 or f32 images, ``table`` (one group) says which of
      them are in use.
    """
    optimizer = make_optimizer(recipe)

    def draw(
        key: Key[Array, ""], state: TrainState, data: ArrayDataset, table: IndexTable
    ) -> tuple[SamplerState, Rows, Float[Array, ""]]:
        order_key = key_for(key, Use.NETWORK_ORDER)
        sampler, index = sampling.next_batch(
            order_key, state.sampler, table, recipe.batch
        )
        labels = data.labels[index[0]]
        images = normalize(to_unit(data.images[index[0]]), statistics)
        each_key, mix_key = jax.random.split(
            key_for(key, Use.NETWORK_AUGMENT, state.step)
        )
        images = augment.augment_each(each_key, images, recipe.augment)
        mixed = augment.cutmix(mix_key, images, recipe.cutmix)
        rows = Rows(mixed.images, labels, labels[mixed.partners])
        return sampler, meshes.split_batch(mesh, rows), mixed.share

    def loss_fn(params: Params, rows: Rows, share: Array) -> tuple[Array, Any]:
        logits, seen = network.train(params, rows.images)
        if soft_labels is not None:
            soft = soft_labels.of(rows.images)
            logits = logits / soft_labels.temperature
            return optax.softmax_cross_entropy(logits, soft).mean(), seen
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        own = cross_entropy(logits, rows.labels).mean()
        partner = cross_entropy(logits, rows.partners).mean()
        return share * own + (1.0 - share) * partner, seen

    def gradient(
        rows: Rows, params: Params, share: Array
    ) -> tuple[Float[Array, ""], Any, Params]:
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, seen), grads = differentiate(params, rows, share)
        return loss, seen, grads

    def move(
        state: TrainState, sampler: SamplerState, seen: Any, grads: Params
    ) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        # Running statistics are not trained: what the pass saw takes their place.
        params = network.with_statistics(
            optax.apply_updates(state.params, updates), seen
        )
        return TrainState(params, opt_state, sampler, state.step + 1)

    return TrainStep(draw, gradient, move)
