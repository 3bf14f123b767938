"""Images recovered from a network's batch norms, and its soft labels (SRe2L).

Yin et al., "Squeeze, Recover and Relabel", NeurIPS 2023: what DASM is compared with,
not part of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from dasm_jax import augment, training
from dasm_jax.keys import Use, key_for
from dasm_jax.loops import Loop
from dasm_jax.nets import Network
from dasm_jax.training import SoftLabels
from dasm_jax.types import Normalization, Params

BYTES_PER_PROBABILITY = 2  # float16
FIRST_NORM = 10.0  # how much more the first batch norm counts, as published


def _distance(x: Float[Array, " C"], y: Float[Array, " C"]) -> Float[Array, ""]:
    """‖x − y‖₂ with a derivative where they are equal."""
    return jnp.sqrt(jnp.sum((x - y) ** 2) + jnp.finfo(x.dtype).tiny)


def recovery_loss(
    network: Network,
    params: Params,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    bn_weight: float,
) -> Float[Array, ""]:
    """Mean cross-entropy + ``bn_weight`` · Σ over batch norms of ‖Δμ‖₂ + ‖Δσ²‖₂.

    Δ is between the batch and the running statistics of the network; the first batch
    norm counts ``FIRST_NORM`` times.
    """
    logits, moments = network.moments(params, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    apart = [
        _distance(m.mean, m.running_mean) + _distance(m.var, m.running_var)
        for m in moments
    ]
    return losses.mean() + bn_weight * sum(apart[1:], FIRST_NORM * apart[0])


def make_recoverer(
    network: Network,
    statistics: Normalization,
    *,
    steps: int,
    learning_rate: float,
    bn_weight: float,
    strategy: tuple[str, ...],
    loop: Loop,
) -> Callable[..., Float[Array, "M H W C"]]:
    """Compile the recovery of a set of images, all in one batch.

    Args:
      network: with batch norm.
      statistics: normalisation ahead of it.
      steps: of Adam (β 0.5 and 0.9), cosine decay.
      learning_rate: on the network's inputs, where unit noise is as bright as an image.
      bn_weight: see ``recovery_loss``.
      strategy: augmentation of every image at every step.
      loop: how steps are compiled.

    Returns:
      ``recover(key, params, labels, shape) -> pixels`` in [0, 1], one per label.
    """
    optimizer = optax.adam(
        optax.cosine_decay_schedule(learning_rate, steps), b1=0.5, b2=0.9
    )

    def visible(inputs):
        """The nearest inputs of images in [0, 1]."""
        images = jnp.clip(training.denormalize(inputs, statistics), 0.0, 1.0)
        return training.normalize(images, statistics)

    def step(key, params, labels, state):
        images, opt_state, count = state

        def loss(images):
            step_key = key_for(key, Use.NETWORK_AUGMENT, count)
            images = augment.augment_each(step_key, images, strategy)
            return recovery_loss(network, params, images, labels, bn_weight)

        value, grads = jax.value_and_grad(loss)(images)
        updates, opt_state = optimizer.update(grads, opt_state, images)
        images = visible(optax.apply_updates(images, updates))
        return (images, opt_state, count + 1), value

    @jax.jit
    def advance(key, params, labels, state):
        return loop.repeat(
            lambda state: step(key, params, labels, state), state, loop.steps_per_call
        )[0]

    def recover(
        key: Key[Array, ""],
        params: Params,
        labels: Int[Array, " M"] | np.ndarray,
        shape: tuple[int, int, int],
    ) -> Float[Array, "M H W C"]:
        labels = jnp.asarray(labels)
        start = key_for(key, Use.IMAGE_INIT)
        images = jax.random.normal(start, (len(labels), *shape))
        state = (images, optimizer.init(images), jnp.zeros((), jnp.int32))
        for _ in range(-(-steps // loop.steps_per_call)):
            state = advance(key, params, labels, state)
        return jnp.clip(training.denormalize(state[0], statistics), 0.0, 1.0)

    return recover


def make_teacher_labels(
    network: Network, params: Params, temperature: float
) -> SoftLabels:
    """Soft labels softmax(logits / temperature) of a trained network."""

    def label(images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        return jax.nn.softmax(network.apply(params, images) / temperature)

    return SoftLabels(label, temperature)


def label_bytes(views: int, n_classes: int) -> int:
    """Bytes of a soft label, in half precision, for every augmented view."""
    return views * n_classes * BYTES_PER_PROBABILITY
