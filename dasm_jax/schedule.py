"""From scores to pools: which part of the real data a segment is matched against.

Pure NumPy on small arrays, once per segment. Quantiles are ranks of difficulty inside a
class, 0 easiest, 1 hardest.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dasm_jax.errors import SameForAll

# Parts of a class by difficulty, in whatever is reported of it.
DECILES = 10


class Window(NamedTuple):
    """Quantiles of difficulty, 0 ≤ low < high ≤ 1."""

    low: float
    high: float


def class_deciles(scores: np.ndarray, class_indices: list[np.ndarray]) -> np.ndarray:
    """Decile of every image inside its class, 0 easiest; ties by place in the dataset.

    Args:
      scores: f[N], larger is harder.
      class_indices: i64[n_c] per class, into the N images.

    Returns:
      i64[N] of 0 … 9. A class of n < 10 images is in n of them.
    """
    deciles = np.zeros(len(scores), np.int64)
    for indices in class_indices:
        order = indices[np.argsort(scores[indices], kind="stable")]
        deciles[order] = DECILES * np.arange(len(order)) // max(len(order), 1)
    return deciles


def decile_means(values: np.ndarray, deciles: np.ndarray) -> np.ndarray:
    """Mean of values [N] in each decile, f64[10]; NaN in a decile that has none."""
    there = np.bincount(deciles, minlength=DECILES)
    total = np.bincount(deciles, values.astype(np.float64), minlength=DECILES)
    return np.where(there > 0, total / np.maximum(there, 1), np.nan)


class ClassDifficulty(NamedTuple):
    """What trained networks say of the n real images of one class."""

    scores: np.ndarray  # f32[n], larger is harder
    learned: np.ndarray  # bool[n], predicted correctly by the mean network
    confidence: np.ndarray  # f32[n], mean probability of the true class


class PoolContext(NamedTuple):
    """Beside the difficulty, what a pool rule may look at."""

    window: Window
    segment: int  # k, counted from 1
    segments: int  # K
    start: float  # rho
    gamma: float
    easiest_share: float
    draws: np.ndarray  # f[n], uniform in [0, 1)
    ties: np.ndarray  # f[n], the same in every segment: who is first of equal scores


def segment_sizes(ipc: int, segments: int) -> tuple[int, ...]:
    """ipc_1 + … + ipc_K = ipc, equal parts, the remainder to the first ones."""
    size, rest = divmod(ipc, segments)
    return tuple(size + (k < rest) for k in range(segments))


def linear_low(segment: int, segments: int, rho: float) -> float:
    """low_k = rho · (k − 1)/(K − 1)."""
    return rho * (segment - 1) / max(segments - 1, 1)


def cosine_low(segment: int, segments: int, rho: float) -> float:
    """low_k rises from 0 to rho along half a cosine."""
    progress = (segment - 1) / max(segments - 1, 1)
    return rho * (1 - math.cos(math.pi * progress)) / 2


def covered_low(difficulty: ClassDifficulty, threshold: float, high: float) -> float:
    """Share of the class already predicted correctly with p above ``threshold``.

    Stays a tenth of the class below ``high``, so that a window is left.
    """
    covered = difficulty.learned & (difficulty.confidence > threshold)
    return float(min(covered.mean(), max(high - 0.1, 0.0)))


def reached_high(difficulty: ClassDifficulty, guess: float, high: float) -> float:
    """Share of the class, at most ``high``, that is in reach of the networks.

    In reach is what they give at least the probability of a guess. What they give less
    they would learn against what they know: wrong labels, and what is too hard for the
    set so far. A tenth of the class is left, or ``high`` if that is less.
    """
    reached = float((difficulty.confidence >= guess).mean())
    return min(high, max(reached, 0.1))


def within_reach(confidence: np.ndarray, guess: float, minimum: int) -> np.ndarray:
    """Images of a class that networks of the real data give at least a guess.

    Args:
      confidence: f[n], mean probability of the true class.
      guess: the probability of one, 1 over the number of classes.
      minimum: at least so many are returned, and a tenth of the class, if there are.

    Returns:
      sorted positions i64[P] inside the class.
    """
    count = max(int((confidence >= guess).sum()), minimum, len(confidence) // 10)
    return np.sort(np.argsort(-confidence, kind="stable")[:count])


RISES = {"linear": linear_low, "cosine": cosine_low}
SCHEDULES = (*RISES, "coverage")
CEILINGS = ("fixed", "chance", "learnable")


def _quantiles(difficulty: ClassDifficulty, context: PoolContext) -> np.ndarray:
    """Ranks in (0, 1); equal scores, as counts give many, are ranked by chance."""
    count = len(difficulty.scores)
    ranks = np.empty(count)
    ranks[np.lexsort((context.ties, difficulty.scores))] = np.arange(count)
    return (ranks + 0.5) / count


def _outside(quantiles: np.ndarray, window: Window) -> np.ndarray:
    """How far from the window, 0 inside."""
    return np.maximum.reduce(
        [window.low - quantiles, quantiles - window.high, np.zeros_like(quantiles)]
    )


# A rule ranks the images of a class, lowest priority value first, and says how many of
# them it wants. The ranking also says who fills up a pool that is too small.
Ranking = tuple[np.ndarray, int]
PoolRule = Callable[[ClassDifficulty, PoolContext], Ranking]


def _within(quantiles: np.ndarray, window: Window) -> Ranking:
    outside = _outside(quantiles, window)
    return outside, int((outside == 0).sum())


def window_rule(difficulty: ClassDifficulty, context: PoolContext) -> Ranking:
    """The rank window [low_k, high]."""
    return _within(_quantiles(difficulty, context), context.window)


def reverse_rule(difficulty: ClassDifficulty, context: PoolContext) -> Ranking:
    """The same window counted from the hardest down: hard to easy."""
    return _within(1 - _quantiles(difficulty, context), context.window)


def random_rule(difficulty: ClassDifficulty, context: PoolContext) -> Ranking:
    """As many as the window holds, whatever their difficulty."""
    return context.draws, window_rule(difficulty, context)[1]


def weighted_rule(difficulty: ClassDifficulty, context: PoolContext) -> Ranking:
    """As many as the window holds, drawn with weights score^γ (Gumbel top-k)."""
    scores = difficulty.scores - min(float(difficulty.scores.min()), 0.0)
    gumbel = -np.log(-np.log(np.clip(context.draws, 1e-12, 1 - 1e-12)))
    preference = context.gamma * np.log(scores + 1e-12) + gumbel
    return -preference, window_rule(difficulty, context)[1]


def disjoint_rule(difficulty: ClassDifficulty, context: PoolContext) -> Ranking:
    """The k-th of K equal parts of the difficulty range.

    No image is in two where all segments go by the same scores (``scored_by='real'``);
    those of the set so far move images from part to part.
    """
    quantiles = _quantiles(difficulty, context)
    inside = np.floor(quantiles * context.segments) == context.segment - 1
    centre = (context.segment - 0.5) / context.segments
    return np.where(inside, 0.0, np.abs(quantiles - centre)), int(inside.sum())


def static_filter_rule(difficulty: ClassDifficulty, context: PoolContext) -> Ranking:
    """Everything but the easiest share rho, the same for every segment."""
    return _within(_quantiles(difficulty, context), Window(context.start, 1.0))


def static_window_rule(difficulty: ClassDifficulty, context: PoolContext) -> Ranking:
    """The rank window [rho, high], the same for every segment."""
    window = Window(context.start, context.window.high)
    return _within(_quantiles(difficulty, context), window)


def not_yet_learned_easiest_rule(
    difficulty: ClassDifficulty, context: PoolContext
) -> Ranking:
    """The easiest of the images that the networks get wrong (CCFS)."""
    quantiles = _quantiles(difficulty, context)
    priority = np.where(difficulty.learned, 2 - quantiles, quantiles)
    wrong = int((~difficulty.learned).sum())
    return priority, math.ceil(context.easiest_share * wrong)


def full_rule(difficulty: ClassDifficulty, context: PoolContext) -> Ranking:
    """Every image of the class."""
    return np.zeros(len(difficulty.scores)), len(difficulty.scores)


POOLS: dict[str, PoolRule] = {
    "window": window_rule,
    "not_yet_learned_easiest": not_yet_learned_easiest_rule,
    "weighted": weighted_rule,
    "disjoint": disjoint_rule,
    "static_filter": static_filter_rule,
    "static_window": static_window_rule,
    "random": random_rule,
    "reverse": reverse_rule,
    "full": full_rule,
}
# These are of networks trained on all real images.
STATIC = ("static_filter", "static_window")
# What no segment changes; and the same of parts that networks of real images tell.
FIXED = ("full", *STATIC)
FIXED_BY_REAL = ("disjoint", "real")
# These hold their shape from the first segment on, where such networks give scores
# before there is a synthetic set.
FROM_THE_FIRST = (*STATIC, "disjoint")
# The point of these is that nothing else is mixed in.
WITHOUT_RANDOM_SHARE = (*STATIC, "disjoint", "full")


def class_pool(
    rule: PoolRule,
    difficulty: ClassDifficulty,
    context: PoolContext,
    *,
    extra: np.ndarray,
    random_share: float,
    minimum: int,
) -> np.ndarray:
    """Choose the pool of one class.

    Args:
      rule: one of ``POOLS``.
      difficulty: of the n images of the class.
      context: window, place in the sequence, and uniform draws for the rule.
      extra: uniform draws f[n] that pick the random share.
      random_share: eps, the share of the class that joins whatever its difficulty.
      minimum: the pool never has fewer images than this (or than the class).

    Returns:
      sorted positions i64[P] inside the class.

    Raises:
      UserError: the pool is empty.
    """
    count = len(difficulty.scores)
    priority, size = rule(difficulty, context)
    size = min(max(size, minimum), count)
    chosen = np.argsort(priority, kind="stable")[:size]
    joined = np.argsort(extra, kind="stable")[: round(random_share * count)]
    pool = np.union1d(chosen, joined)
    if not len(pool):
        raise SameForAll(
            f"empty pool in segment {context.segment}: the window "
            f"[{context.window.low:.2f}, {context.window.high:.2f}] holds none of "
            f"{count} images; widen dasm.rho/dasm.high or raise dasm.random_share"
        )
    return pool
