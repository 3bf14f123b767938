"""Which real images stand for a class: the coreset rows, one class at a time.

Every rule of ``RULES`` orders the images of a class and takes the first ``count``;
images beyond ``valid`` are padding. Two images that are equal, or equally good, are
told apart by their place, by ``draws`` where the rule only ranks; none is taken twice.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

KMEANS_ROUNDS = 30


class ClassEvidence(NamedTuple):
    """What is known of the images of one class."""

    key: Key[Array, ""]
    embeddings: Float[Array, "P D"]
    scores: Float[Array, " P"]  # larger is harder
    draws: Float[Array, " P"]  # uniform in [0, 1)
    valid: Bool[Array, " P"]


class Covered(NamedTuple):
    """Centres that do not move."""

    rows: Float[Array, "F D"]
    exists: Bool[Array, " F"]  # no padding


# (evidence, count) -> i32[count], places in the class
SelectFn = Callable[[ClassEvidence, int], Int[Array, " n"]]


def evidence_of(
    key: Key[Array, ""], embeddings: Float[np.ndarray, "n D"], places: int
) -> ClassEvidence:
    """Of a class that is not scored, padded to so many places.

    On the host: pools are of any size, and jax.numpy would compile for each of them.
    """
    count, nothing = len(embeddings), jnp.zeros(places)
    return ClassEvidence(
        key=key,
        embeddings=jnp.asarray(np.pad(embeddings, ((0, places - count), (0, 0)))),
        scores=nothing,
        draws=nothing,
        valid=jnp.asarray(np.arange(places) < count),
    )


def squared_distances(
    rows: Float[Array, "P D"], point: Float[Array, " D"]
) -> Float[Array, " P"]:
    """‖row − point‖², by differences, so that equal rows are at exactly 0."""
    return jnp.sum((rows - point[None, :]) ** 2, axis=1)


def _mean(rows: Float[Array, "P D"], weights: Array) -> Float[Array, " D"]:
    total = jnp.sum(rows * weights[:, None], axis=0)
    return total / jnp.maximum(weights.sum(), 1.0)


def herding(evidence: ClassEvidence, count: int) -> Int[Array, " n"]:
    """Greedily keep the mean of the chosen at the mean of the class (Welling 2009).

    The k-th image is argmin over those left of ‖μ − (Σ chosen + x) / k‖; smaller sets
    are part of larger ones.
    """
    rows, valid = evidence.embeddings, evidence.valid
    mean = _mean(rows, valid.astype(rows.dtype))

    def take(k, carry):
        chosen, taken, total = carry
        wanted = (k + 1) * mean - total
        distance = squared_distances(rows, wanted)
        best = jnp.argmin(jnp.where(taken, jnp.inf, distance))
        return chosen.at[k].set(best), taken.at[best].set(True), total + rows[best]

    start = (jnp.zeros(count, jnp.int32), ~valid, jnp.zeros_like(mean))
    return jax.lax.fori_loop(0, count, take, start)[0]


def k_center(evidence: ClassEvidence, count: int) -> Int[Array, " n"]:
    """Greedily take the image farthest from all chosen (Sener & Savarese 2018).

    The first is the one nearest to the mean of the class; smaller sets are part of
    larger ones.
    """
    rows, valid = evidence.embeddings, evidence.valid
    mean = _mean(rows, valid.astype(rows.dtype))
    first = jnp.argmin(jnp.where(valid, squared_distances(rows, mean), jnp.inf))

    def take(k, carry):
        chosen, taken, nearest = carry
        best = jnp.where(k, jnp.argmax(jnp.where(taken, -1.0, nearest)), first)
        nearest = jnp.minimum(nearest, squared_distances(rows, rows[best]))
        return chosen.at[k].set(best), taken.at[best].set(True), nearest

    start = (jnp.zeros(count, jnp.int32), ~valid, jnp.full(len(rows), jnp.inf))
    return jax.lax.fori_loop(0, count, take, start)[0]


def k_means(evidence: ClassEvidence, count: int) -> Int[Array, " n"]:
    """The images nearest to the ``count`` centres of k-means on embeddings."""
    return _nearest(evidence, *_centres(evidence, count))


def cover(evidence: ClassEvidence, count: int, covered: Covered) -> Int[Array, " n"]:
    """As ``k_means``, beside centres that are there already and do not move.

    What they are nearest to needs no other centre, so the new ones go to what is left.
    """
    return _nearest(evidence, *_centres(evidence, count, covered))


def clusters(evidence: ClassEvidence, count: int) -> Int[Array, " P"]:
    """Which of ``count`` clusters of k-means every image is in; one may be empty."""
    return jnp.argmin(_to_centres(*_centres(evidence, count)), axis=1)


def _nearest(
    evidence: ClassEvidence, rows: Float[Array, "P D"], centres: Float[Array, "n D"]
) -> Int[Array, " n"]:
    def take(k, carry):
        chosen, taken = carry
        distance = squared_distances(rows, centres[k])
        best = jnp.argmin(jnp.where(taken, jnp.inf, distance))
        return chosen.at[k].set(best), taken.at[best].set(True)

    count = len(centres)
    start = (jnp.zeros(count, jnp.int32), ~evidence.valid)
    return jax.lax.fori_loop(0, count, take, start)[0]


def _centres(
    evidence: ClassEvidence, count: int, covered: Covered | None = None
) -> tuple[Float[Array, "P D"], Float[Array, "n D"]]:
    """Embeddings around their mean, and the centres of k-means on them.

    Lloyd's algorithm from a k-means++ start (Arthur & Vassilvitskii 2007). A centre
    that loses all its images stays where it was.
    """
    valid = evidence.valid
    weights = valid.astype(evidence.embeddings.dtype)
    # Around the origin, where products of rows and centres round least.
    mean = _mean(evidence.embeddings, weights)[None, :]
    rows = evidence.embeddings - mean
    if covered is None:
        centres = rows[_plus_plus(evidence, count)]
    else:
        covered = covered._replace(rows=covered.rows - mean)
        gaps = _to_centres(rows, covered.rows) + jnp.sum(rows**2, axis=1)[:, None]
        gaps = jnp.where(covered.exists[None, :], jnp.maximum(gaps, 0.0), jnp.inf)
        centres = rows[_plus_plus(evidence, count, gaps.min(axis=1))]

    def improve(_, centres):
        distances = _to_centres(rows, centres)
        if covered is not None:
            fixed = _to_centres(rows, covered.rows)
            fixed = jnp.where(covered.exists[None, :], fixed, jnp.inf)
            distances = jnp.concatenate([distances, fixed], axis=1)
        nearest = jnp.argmin(distances, axis=1)
        member = jax.nn.one_hot(nearest, count, dtype=rows.dtype) * weights[:, None]
        size = member.sum(axis=0)
        sums = jnp.matmul(member.T, rows, precision="highest")
        mean = sums / jnp.maximum(size, 1.0)[:, None]
        return jnp.where(size[:, None] > 0, mean, centres)

    return rows, jax.lax.fori_loop(0, KMEANS_ROUNDS, improve, centres)


def _plus_plus(
    evidence: ClassEvidence, count: int, gaps: Float[Array, " P"] | None = None
) -> Int[Array, " n"]:
    """Places drawn with probability ∝ squared distance to those drawn before.

    ``gaps`` are such distances to centres that are there from the start.
    """
    rows, valid = evidence.embeddings, evidence.valid
    if gaps is None:
        gaps = jnp.full(len(rows), jnp.inf)
    anywhere = jnp.isinf(gaps).all()

    def take(k, carry):
        chosen, taken, nearest = carry
        # At first, and where only duplicates are left, each is as likely as the other.
        even = ((k == 0) & anywhere) | ~jnp.any((nearest > 0) & ~taken)
        spread = jnp.where(even, 1.0, nearest)
        logits = jnp.where(taken, -jnp.inf, jnp.log(spread))
        best = jax.random.categorical(jax.random.fold_in(evidence.key, k), logits)
        nearest = jnp.minimum(nearest, squared_distances(rows, rows[best]))
        return chosen.at[k].set(best), taken.at[best].set(True), nearest

    start = (jnp.zeros(count, jnp.int32), ~valid, gaps)
    return jax.lax.fori_loop(0, count, take, start)[0]


def _to_centres(
    rows: Float[Array, "P D"], centres: Float[Array, "n D"]
) -> Float[Array, "P n"]:
    """‖row − centre‖² less ‖row‖², which is the same for every centre."""
    product = jnp.matmul(rows, centres.T, precision="highest")
    return jnp.sum(centres**2, axis=1)[None, :] - 2.0 * product


def hardest(evidence: ClassEvidence, count: int) -> Int[Array, " n"]:
    """The highest scores; among equal ones the draw decides, not the place."""
    values = jnp.where(evidence.valid, -evidence.scores, jnp.inf)
    return jnp.lexsort((evidence.draws, values))[:count].astype(jnp.int32)


RULES: dict[str, SelectFn] = {
    "herding": herding,
    "k_center": k_center,
    "k_means": k_means,
    "forgetting": hardest,
    "el2n": hardest,
    "grand": hardest,
}
EMBEDDED = ("herding", "k_center", "k_means")
SCORED = ("forgetting", "el2n", "grand")
