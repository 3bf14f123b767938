"""How far a difference between two methods can be trusted, over a few seeds."""

from typing import NamedTuple

import jax
import numpy as np
from scipy.special import stdtrit

from dasm_jax.keys import Use, key_for

DRAWS = 10_000
LEVEL = 0.95
TINY = 1e-6  # what rounding may do; no test split shows less than one image


class Difference(NamedTuple):
    """Of one method to another; accuracies in [0, 1]."""

    mean: float
    low: float | None  # ends of the 95 % interval; None where there is a single seed
    high: float | None
    seeds: int

    @property
    def seen(self) -> bool:
        """Whether there is an interval, and it leaves out zero."""
        if self.low is None or self.high is None:
            return False
        return self.low > TINY or self.high < -TINY


def paired_difference(differences: np.ndarray) -> Difference:
    """Mean of paired differences, with a 95 % interval from two seeds on.

    With a few seeds the bootstrap's interval is too narrow, hardly more than their
    range, so each end is the outer one of it and Student's.

    Args:
      differences: f[S, N], method minus baseline, of seed s and evaluation network n,
        which start from the same weights for both.
    """
    mean, seeds = float(differences.mean()), len(differences)
    if seeds < 2:  # nothing is known of the others
        return Difference(mean, None, None, seeds)
    both = paired_bootstrap(differences), students_interval(differences.mean(axis=1))
    lows, highs = zip(*both, strict=True)
    return Difference(mean, min(lows), max(highs), seeds)


def paired_bootstrap(
    differences: np.ndarray, *, draws: int = DRAWS
) -> tuple[float, float]:
    """Ends of a 95 % interval of the mean that respects seeds.

    A hierarchical bootstrap: seeds are drawn with replacement, and networks with
    replacement inside every seed drawn; the interval is between the 2.5th and the
    97.5th percentile of the means. Networks of a seed share its synthetic set, so they
    count as one observation that is known to some precision, never as many. The draws
    are fixed: equal differences give equal intervals.

    Args:
      differences: f[S, N], of seed s and network n.
      draws: means behind the interval.
    """
    seeds, networks = differences.shape
    key = key_for(jax.random.key(0), Use.BOOTSTRAP)
    drawn = jax.random.randint(jax.random.fold_in(key, 0), (draws, seeds), 0, seeds)
    within = jax.random.randint(
        jax.random.fold_in(key, 1), (draws, seeds, networks), 0, networks
    )
    means = differences[np.asarray(drawn)[..., None], np.asarray(within)].mean((1, 2))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def students_interval(values: np.ndarray) -> tuple[float, float]:
    """Ends of Student's 95 % interval of the mean of values f[S], S ≥ 2."""
    mean, error = float(values.mean()), values.std(ddof=1) / len(values) ** 0.5
    margin = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * error)
    return mean - margin, mean + margin
