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
    low: float | None  # ends of the interval; None where there is a single seed
    high: float | None
    seeds: int
    margin: float = 0.0  # half of the width of Student's interval of the seeds' means

    @property
    def seen(self) -> bool:
        """Whether there is an interval, and it and Student's both leave out zero."""
        if self.low is None or self.high is None or abs(self.mean) <= self.margin:
            return False
        return self.low > TINY or self.high < -TINY


def paired_bootstrap(differences: np.ndarray, *, draws: int = DRAWS) -> Difference:
    """Mean of paired differences with a 95 % interval that respects seeds.

    A hierarchical bootstrap: seeds are drawn with replacement, and networks with
    replacement inside every seed drawn; the interval is between the 2.5th and the
    97.5th percentile of the means. Networks of a seed share its synthetic set, so they
    count as one observation that is known to some precision, never as many. The draws
    are fixed: equal differences give equal intervals.

    With a few seeds it is too narrow, hardly more than their range; so a difference
    counts as seen only where Student's interval of the seeds' means agrees.

    Args:
      differences: f[S, N], method minus baseline, of seed s and evaluation network n,
        which start from the same weights for both.
      draws: means behind the interval.

    Returns:
      with an interval from two seeds on: of one alone nothing is known of the others.
    """
    seeds, networks = differences.shape
    mean = float(differences.mean())
    if seeds < 2:
        return Difference(mean, None, None, seeds)
    key = key_for(jax.random.key(0), Use.BOOTSTRAP)
    drawn = jax.random.randint(jax.random.fold_in(key, 0), (draws, seeds), 0, seeds)
    within = jax.random.randint(
        jax.random.fold_in(key, 1), (draws, seeds, networks), 0, networks
    )
    means = differences[np.asarray(drawn)[..., None], np.asarray(within)].mean((1, 2))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    error = differences.mean(axis=1).std(ddof=1) / seeds**0.5
    margin = float(stdtrit(seeds - 1, (1 + LEVEL) / 2) * error)
    return Difference(mean, low, high, seeds, margin)
