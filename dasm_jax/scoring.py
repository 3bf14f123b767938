"""Difficulty of real images in the eyes of trained networks. Larger is harder."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from dasm_jax.matching import ApplyFn, mean_cross_entropy
from dasm_jax.memo import remembered
from dasm_jax.training import normalize, to_unit
from dasm_jax.types import Normalization, Params

Logits = Float[Array, "N K"]
Labels = Int[Array, " N"]


class Difficulty(NamedTuple):
    """Of every real image, in the order of the dataset."""

    scores: np.ndarray  # f32[N], larger is harder
    learned: np.ndarray  # bool[N], the mean of the networks predicts the label
    confidence: np.ndarray  # f32[N], mean probability of the label


def cross_entropy(logits: Logits, labels: Labels) -> Float[Array, " N"]:
    """CE(softmax(logits), label)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def el2n(logits: Logits, labels: Labels) -> Float[Array, " N"]:
    """‖softmax(logits) − onehot(label)‖₂ (Paul et al. 2021)."""
    wanted = jax.nn.one_hot(labels, logits.shape[1])
    return jnp.sqrt(jnp.sum((jax.nn.softmax(logits) - wanted) ** 2, axis=1))


def margin(logits: Logits, labels: Labels) -> Float[Array, " N"]:
    """Largest probability of a wrong class minus that of the label, in [−1, 1]."""
    probability = jax.nn.softmax(logits)
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    wrong = jnp.max(jnp.where(own, 0.0, probability), axis=1)
    return wrong - jnp.sum(jnp.where(own, probability, 0.0), axis=1)


def misclassified(logits: Logits, labels: Labels) -> Float[Array, " N"]:
    """1 where the prediction is wrong; the mean over networks is a rate."""
    return (jnp.argmax(logits, axis=1) != labels).astype(jnp.float32)


def forgetting_events(correct: Bool[Array, "T N"]) -> Float[Array, " N"]:
    """How often a correct prediction became wrong again (Toneva et al. 2019).

    An image that was never predicted correctly counts T, harder than any other.
    """
    forgotten = jnp.sum(correct[:-1] & ~correct[1:], axis=0)
    never = ~correct.any(axis=0)
    return jnp.where(never, correct.shape[0], forgotten).astype(jnp.float32)


@remembered
def make_gradient_norm(
    apply_fn: ApplyFn, statistics: Normalization, chunk: int = 100
) -> Callable[[Params, Array, Labels], Float[Array, " N"]]:
    """GraNd: norm of the loss gradient of every image (Paul et al. 2021).

    Args:
      apply_fn: ``apply_fn(params, images) -> logits``.
      statistics: mean and standard deviation that images are normalised with.
      chunk: images whose gradients are held at once.
    """

    def norm_of_one(params, image, label):
        def loss(params):
            images = normalize(to_unit(image[None]), statistics)
            return mean_cross_entropy(
                apply_fn, params, images, label[None], jnp.ones(1)
            )

        return optax.tree_utils.tree_norm(jax.grad(loss)(params))

    norms = jax.jit(jax.vmap(norm_of_one, in_axes=(None, 0, 0)))

    def gradient_norm(params, images, labels):
        parts = [
            norms(params, images[i : i + chunk], labels[i : i + chunk])
            for i in range(0, len(labels), chunk)
        ]
        return jnp.concatenate(parts)

    return gradient_norm


# Scores of one trained network's logits; 'grad_norm' and 'forgetting' need more.
LOGIT_SCORES = {
    "ce": cross_entropy,
    "el2n": el2n,
    "margin": margin,
    "misclassified": misclassified,
}
SCORES = (*LOGIT_SCORES, "grad_norm", "forgetting")
FORGETTING_SNAPSHOTS = 8


def snapshots_for(score: str) -> int:
    """How many moments of a network's training a score looks at."""
    return FORGETTING_SNAPSHOTS if score == "forgetting" else 1


def make_scorer(
    score: str,
    predict: Callable[[Params, Array], Logits],
    gradient_norm: Callable[[Params, Array, Labels], Float[Array, " N"]],
) -> Callable[[list[list[Params]], Array, Labels], Difficulty]:
    """Difficulty as the mean over networks, of one of ``SCORES``.

    Returns:
      ``score(trajectories, images, labels)`` where a trajectory is the snapshots of one
      network, the finished one last, and images are un-augmented, [N, H, W, C].
    """

    def of_network(trajectory, images, labels):
        logits = predict(trajectory[-1], images)
        if score == "grad_norm":
            return logits, gradient_norm(trajectory[-1], images, labels)
        if score == "forgetting":
            earlier = [predict(params, images) for params in trajectory[:-1]]
            correct = [jnp.argmax(x, axis=1) == labels for x in [*earlier, logits]]
            return logits, forgetting_events(jnp.stack(correct))
        return logits, LOGIT_SCORES[score](logits, labels)

    def scorer(
        trajectories: list[list[Params]], images: Array, labels: Labels
    ) -> Difficulty:
        labels = jnp.asarray(labels)
        each = [of_network(t, images, labels) for t in trajectories]
        probability = sum(jax.nn.softmax(logits) for logits, _ in each) / len(each)
        own = jnp.take_along_axis(probability, labels[:, None], axis=1)[:, 0]
        return Difficulty(
            scores=np.asarray(sum(scores for _, scores in each) / len(each)),
            learned=np.asarray(jnp.argmax(probability, axis=1) == labels),
            confidence=np.asarray(own),
        )

    return scorer
