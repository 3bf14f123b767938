"""What a run measures of itself: difficulty, gradients, diversity.

The ruler is the same for every run: networks trained on all real images rank their
difficulty, so that pools, first segments and matchers can be compared. A run's own
scores stay in its records of segments. Nothing here touches the synthesis: the keys
are those of ``evaluate.seed``, and everything is read from finished segments.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dasm_jax import coreset, scoring, trainers, training
from dasm_jax.evaluate import Accuracy, full_set
from dasm_jax.keys import Use, key_for
from dasm_jax.matching import Span, mean_cross_entropy
from dasm_jax.pools import share_held
from dasm_jax.problem import Problem, decode_segments, decoded_count
from dasm_jax.progress import SegmentResult
from dasm_jax.recipes import recipe_from
from dasm_jax.schedule import DECILES, class_deciles, decile_means
from dasm_jax.types import Array, ArrayDataset, Params

# --- numbers from arrays --------------------------------------------------------------


def decile_shares_of_sum(values: np.ndarray, deciles: np.ndarray) -> np.ndarray:
    """Share of the sum of values f[N] >= 0 that each decile carries, f64[10].

    Every decile counts as if it had equally many images, so that a sample that is a
    little uneven does not tilt it. NaN in a decile without images; NaN everywhere
    where a value is not finite or all are zero.
    """
    means = decile_means(values, deciles)
    total = np.nansum(means)
    if not np.isfinite(values).all() or total <= 0:
        return np.full(DECILES, np.nan)
    return means / total


def shares_by_real_deciles(
    scores: np.ndarray,
    labels: np.ndarray,
    difficulty: np.ndarray,
    class_indices: Sequence[np.ndarray],
) -> np.ndarray:
    """Share of images as difficult as each decile of the real ones, f64[10].

    Args:
      scores, labels: f[n], i[n] of the images.
      difficulty: f[N] of the real images, on the same scale.
      class_indices: i64[n_c] per class, into the N real images.

    Returns:
      shares that add up to 1. An image has the place of the real one of its class that
      is next harder, the last where there is none; among equals a part of each of their
      places. NaN where a score is not finite.
    """
    if not np.isfinite(scores).all():
        return np.full(DECILES, np.nan)
    counts = np.zeros(DECILES)
    for label, indices in enumerate(class_indices):
        ranked, own = np.sort(difficulty[indices]), scores[labels == label]
        deciles = DECILES * np.arange(len(ranked)) // max(len(ranked), 1)
        easier = np.searchsorted(ranked, own, side="left")
        not_harder = np.searchsorted(ranked, own, side="right")
        for first, end in zip(easier, not_harder):
            places = deciles[first : max(end, first + 1)]
            where = places if len(places) else [DECILES - 1]
            np.add.at(counts, where, 1 / len(where))
    return counts / max(len(scores), 1)


def mean_pairwise_distance(rows: np.ndarray, labels: np.ndarray) -> float:
    """Mean Euclidean distance of two rows [N, D] of one class, averaged over classes.

    Classes with a single row do not count; NaN where no class has two.
    """
    means = []
    for label in np.unique(labels):
        own = rows[labels == label].astype(np.float64)
        if len(own) < 2:
            continue
        own -= own.mean(axis=0)  # distances stay, rounding shrinks
        squares = (own**2).sum(axis=1)
        gram = squares[:, None] + squares[None, :] - 2 * own @ own.T
        pairs = np.triu_indices(len(own), 1)
        means.append(np.sqrt(np.maximum(gram[pairs], 0.0)).mean())
    return float(np.mean(means)) if means else float("nan")


def sample_deciles(
    deciles: np.ndarray, labels: np.ndarray, draws: np.ndarray, count: int
) -> list[np.ndarray]:
    """Choose images, as many of every decile, and of every class inside a decile.

    Args:
      deciles: i64[N].
      labels: i[N].
      draws: f[N], uniform: who is chosen, and which classes where not all have a turn.
      count: images in all; every decile that has images gets at least one.

    Returns:
      sorted positions of each decile's sample.
    """
    chosen = []
    for decile in range(DECILES):
        members = np.flatnonzero(deciles == decile)
        turn = np.zeros(len(members))
        for label in np.unique(labels[members]):
            own = labels[members] == label
            turn[own] = np.argsort(np.argsort(draws[members[own]]))
        wanted = count * (decile + 1) // DECILES - count * decile // DECILES
        order = np.lexsort((draws[members], turn))[: max(wanted, 1)]
        chosen.append(np.sort(members[order]))
    return chosen


def to_json(value: Any) -> Any:
    """A number or array as JSON has it: six digits, null where it is not finite."""
    value = np.asarray(value, np.float64)
    if value.ndim:
        return [to_json(item) for item in value]
    return float(f"{value:.6g}") if np.isfinite(value) else None


# --- the ruler ------------------------------------------------------------------------


class Reference(NamedTuple):
    """How difficult the real images are for networks that have seen all of them."""

    networks: list[Params]
    difficulty: np.ndarray  # f32[N] of the train split: mean cross-entropy
    deciles: np.ndarray  # i64[N], inside the classes
    test_deciles: np.ndarray  # i64[N_test], inside the classes


def make_reference(problem: Problem) -> Reference | None:
    """Train ``measure.networks`` networks on all real images; None if they diverge."""
    s, root = problem.settings, _root(problem)
    train = trainers.make_trainer(
        problem.network,
        recipe_from(s.evaluate.recipe, s.measure.steps),
        problem.statistics,
        problem.loop,
    )
    keys = [key_for(root, Use.MEASURE, 0, n) for n in range(s.measure.networks)]
    each = trainers.train_each(train, problem.loop.mesh, keys, *full_set(problem))
    networks = [trajectory[-1] for trajectory in each]
    score = _scorer(problem)
    judges = [[params] for params in networks]
    test = problem.dataset.test
    difficulty = score(judges, *problem.real).scores
    on_device = jax.device_put(ArrayDataset(test.images, test.labels.astype(np.int32)))
    test_difficulty = score(judges, *on_device).scores
    if not (np.isfinite(difficulty).all() and np.isfinite(test_difficulty).all()):
        return None
    of_class = [
        np.flatnonzero(test.labels == c) for c in range(problem.dataset.n_classes)
    ]
    return Reference(
        networks,
        difficulty,
        class_deciles(difficulty, problem.class_indices),
        class_deciles(test_difficulty, of_class),
    )


def reference_like(problem: Problem) -> Reference:
    """Structure, shapes and dtypes of a ``Reference``."""
    params = jax.eval_shape(problem.network.init, jax.random.key(0))
    train, test = len(problem.dataset.train.labels), len(problem.dataset.test.labels)
    return Reference(
        [params] * problem.settings.measure.networks,
        np.empty(train, np.float32),
        np.empty(train, np.int64),
        np.empty(test, np.int64),
    )


def accuracy_by_decile(reference: Reference, accuracy: Accuracy) -> list[float | None]:
    """Test accuracy in each difficulty decile of the test split, easiest first."""
    assert accuracy.correct is not None
    return to_json(decile_means(accuracy.correct, reference.test_deciles))


# --- of every segment -----------------------------------------------------------------


def reference_for(problem: Problem, say: Callable[[str], None]) -> Reference | None:
    """The ruler where one is asked for; ``say`` is told why there is none after all."""
    if not problem.settings.measure.networks:
        return None
    reference = make_reference(problem)
    if reference is None:
        say(
            "nothing is measured: networks trained on all real images diverged; lower "
            "config.evaluate.recipe.lr"
        )
    return reference


def measure_segments(
    problem: Problem, reference: Reference, results: list[SegmentResult]
) -> Iterator[dict[str, Any]]:
    """One record per finished segment, ready for JSON.

    Gradients are those of the cross-entropy in all parameters, of two networks: one
    just drawn, and the one that the matcher looked at last in the segment, which for
    IDC has then been trained on real images for an outer iteration, as far as any that
    it is matched on. (DM matches on random ones only, MTT at moments of its experts.)
    The real images are spread evenly over deciles and classes, whatever the pool; what
    a decile carries in the pool is proportional to its ``pool_share_by_decile`` too.
    Decile means of gradients mix the classes.
    """
    gradients = _make_gradient_measure(problem, reference)
    images = _make_image_measure(problem, reference)
    for result in results:
        segment = result.plan.segment
        seen = result.seen
        networks = {
            "random": problem.network.init(
                key_for(_root(problem), Use.MEASURE, 1, segment)
            ),
            "trained": seen.start if isinstance(seen, Span) else seen,
        }
        each = {name: gradients(params) for name, params in networks.items()}
        members = np.concatenate(result.pool.members)
        yield {
            "segment": segment,
            "pool_difficulty_mean": to_json(reference.difficulty[members].mean()),
            "real_difficulty_mean": to_json(reference.difficulty.mean()),
            "pool_share_by_decile": to_json(
                share_held(reference.deciles, result.pool.members)
            ),
            "gradient_norm_share_by_decile": {
                name: to_json(shares) for name, (shares, _) in each.items()
            },
            "mean_gradient_norm_by_decile": {
                name: to_json(norms) for name, (_, norms) in each.items()
            },
            **{name: to_json(value) for name, value in images(result).items()},
        }


def _make_gradient_measure(
    problem: Problem, reference: Reference
) -> Callable[[Params], tuple[np.ndarray, np.ndarray]]:
    """``measure(params)``: share of Σ ‖gradient of an image‖, and ‖mean gradient‖."""
    labels = problem.dataset.train.labels
    key = key_for(_root(problem), Use.MEASURE, 2)
    draws = np.asarray(jax.random.uniform(key, (len(labels),)))
    sample = sample_deciles(
        reference.deciles, labels, draws, problem.settings.measure.images
    )
    chosen = np.concatenate(sample)
    images, of_images = problem.real.images[chosen], problem.real.labels[chosen]
    gradient_norm = _gradient_norm(problem)

    @jax.jit
    def norm_of_mean(params: Params, data: ArrayDataset, weights: Array) -> Array:
        unit = training.to_unit(data.images)
        inputs = training.normalize(unit, problem.statistics)
        loss = lambda p: mean_cross_entropy(  # noqa: E731
            problem.network.apply, p, inputs, data.labels, weights
        )
        return optax.tree_utils.tree_norm(jax.grad(loss)(params))

    def measure(params: Params) -> tuple[np.ndarray, np.ndarray]:
        norms = np.asarray(gradient_norm(params, images, of_images))
        of_means = np.full(DECILES, np.nan)
        widest = max(len(members) for members in sample)
        for decile, members in enumerate(sample):
            if not len(members):
                continue
            padded = np.resize(members, widest)  # one shape for all deciles
            data = ArrayDataset(*(field[padded] for field in problem.real))
            weights = (np.arange(widest) < len(members)).astype(np.float32)
            of_means[decile] = norm_of_mean(params, data, weights)
        return decile_shares_of_sum(norms, reference.deciles[chosen]), of_means

    return measure


def _make_image_measure(
    problem: Problem, reference: Reference
) -> Callable[[SegmentResult], dict[str, Any]]:
    """``measure(result)`` for one segment after another: it remembers the union."""
    embed = coreset.make_embedder(problem)
    score = _scorer(problem)
    judges = [[params] for params in reference.networks]
    judge = reference.networks[0]
    real = problem.dataset.train
    smallest = min(len(indices) for indices in problem.class_indices)
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def measure(result: SegmentResult) -> dict[str, Any]:
        total = decoded_count(problem, (result.plan.size,))
        data, _ = decode_segments(problem, [result.pixels], total)
        difficulty = score(judges, *data).scores
        rows.append(np.asarray(embed(judge, data.images)))
        labels.append(np.asarray(data.labels))
        count = min(total // problem.dataset.n_classes, smallest)
        counts = [count] * problem.dataset.n_classes
        random = np.concatenate(coreset.random_indices(problem, _root(problem), counts))
        of_random = np.asarray(embed(judge, problem.real.images[random]))
        return {
            "set_difficulty_mean": difficulty.mean(),
            "set_share_by_decile": shares_by_real_deciles(
                difficulty,
                np.asarray(data.labels),
                reference.difficulty,
                problem.class_indices,
            ),
            "diversity": mean_pairwise_distance(rows[-1], labels[-1]),
            "diversity_of_union": mean_pairwise_distance(
                np.concatenate(rows), np.concatenate(labels)
            ),
            "diversity_of_random": mean_pairwise_distance(
                of_random, real.labels[random]
            ),
        }

    return measure


def _root(problem: Problem) -> jax.Array:
    """Runs that differ in what they synthesise are measured by the same ruler."""
    return jax.random.key(problem.settings.evaluate.seed)


def _scorer(problem: Problem) -> Callable[..., scoring.Difficulty]:
    predict = trainers.make_predictor(
        problem.network.apply, problem.statistics, problem.loop.mesh
    )
    return scoring.make_scorer("ce", predict, _gradient_norm(problem))


def _gradient_norm(problem: Problem) -> Callable[..., Array]:
    return scoring.make_gradient_norm(problem.network.apply, problem.statistics)
