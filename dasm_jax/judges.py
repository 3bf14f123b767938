"""Networks that judge the real images: trained on the set so far, or on real ones."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dasm_jax import sampling, schedule, scoring, trainers
from dasm_jax.errors import SameForAll
from dasm_jax.keys import Use, key_for
from dasm_jax.problem import Problem, decode_segments, decoded_count
from dasm_jax.recipes import recipe_from
from dasm_jax.scoring import Difficulty
from dasm_jax.types import Params

Trajectories = list[list[Params]]  # snapshots of every network, the finished one last


class Judges(NamedTuple):
    """Each raises a ``UserError`` where networks diverge."""

    # (segment, pool_round, finished) -> networks trained on the finished segments
    of_set: Callable[[int, int, list[np.ndarray]], Trajectories]
    # (networks, segment) -> what they say of the real images
    verdict: Callable[[Trajectories, int], Difficulty]
    # (segment) -> what networks trained on the real images say, the same for all
    verdict_of_real: Callable[[int], Difficulty]


def make_judges(
    problem: Problem,
    root: jax.Array,
    *,
    on_network: Callable[[], None] = lambda: None,
    of_real: Difficulty | None = None,
) -> Judges:
    """Compile what judging needs, once for all segments.

    Args:
      problem: the fixed pieces.
      root: key of the synthesis.
      on_network: called after every network that was trained.
      of_real: what networks of the real images say, where that is known already.
    """
    s = problem.settings
    train = trainers.make_trainer(
        problem.network,
        recipe_from(s.evaluate.recipe, s.dasm.score_steps),
        problem.statistics,
        problem.loop,
    )
    score = scoring.make_scorer(
        s.dasm.score,
        trainers.make_predictor(
            problem.network.apply, problem.statistics, problem.loop.mesh
        ),
        scoring.make_gradient_norm(problem.network.apply, problem.statistics),
    )
    total = decoded_count(problem, schedule.segment_sizes(s.ipc, s.dasm.segments))
    known = [of_real] if of_real is not None else []

    def trained(data, table, segment, pool_round):
        keys = [
            key_for(root, Use.SCORE_NETWORK, segment, pool_round, network)
            for network in range(s.dasm.networks)
        ]
        moments = scoring.snapshots_for(s.dasm.score)
        mesh = problem.loop.mesh
        each = trainers.train_each(train, mesh, keys, data, table, moments, on_network)
        # Where they judge nothing, starts and gradients would tell too late or never.
        if not trainers.all_finite(each):
            raise _diverged(problem, segment)
        return each

    def of_set(segment: int, pool_round: int, finished: list[np.ndarray]):
        data, table = decode_segments(problem, finished, total)
        return trained(data, table, segment, pool_round)

    def verdict(networks: Trajectories, segment: int) -> Difficulty:
        difficulty = score(networks, *problem.real)
        # Some scores are finite whatever the networks say, or finite networks say what
        # is not.
        found = (difficulty.scores, difficulty.confidence)
        if not all(np.isfinite(values).all() for values in found):
            raise _diverged(problem, segment)
        return difficulty

    def verdict_of_real(segment: int) -> Difficulty:
        if not known:
            count = len(problem.dataset.train.labels)
            table = sampling.prefix_table(count, count)
            known.append(verdict(trained(problem.real, table, 0, 0), segment))
        return known[0]

    return Judges(of_set, verdict, verdict_of_real)


def _diverged(problem: Problem, segment: int) -> SameForAll:
    rate = problem.settings.evaluate.recipe.lr
    return SameForAll(
        f"the networks trained for segment {segment} diverged; lower "
        f"config.evaluate.recipe.lr={rate:g}; finished segments are kept"
    )
