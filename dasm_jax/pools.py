"""The pool of a segment: score the real images, then choose what to match against."""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dasm_jax import schedule
from dasm_jax.clusters import by_clusters, make_clusterer
from dasm_jax.covering import by_covering, make_coverer
from dasm_jax.judges import make_judges
from dasm_jax.keys import Use, key_for
from dasm_jax.problem import Problem
from dasm_jax.schedule import ClassDifficulty, PoolContext, Window
from dasm_jax.schema import DasmSettings
from dasm_jax.scoring import Difficulty
from dasm_jax.types import Params


class Pool(NamedTuple):
    """What a segment is matched against, and why."""

    members: list[np.ndarray]  # i64[P_c] per class, into the train split
    difficulty: Difficulty | None  # None where nothing was scored
    networks: list[Params]  # on the finished segments; none where none are matched on
    seconds: float  # training the networks and scoring
    clusters: list[np.ndarray] | None = None  # i32[P_c] of members, where drawn by them
    starts: list[np.ndarray] | None = None  # i64[n·f²] of members, where not drawn


def digest(members: np.ndarray) -> str:
    """SHA-256 of a set of images, by their numbers i64[n] in the train split."""
    return hashlib.sha256(np.sort(members).astype("<i8").tobytes()).hexdigest()


MakePool = Callable[[int, int, list[np.ndarray]], Pool]


def make_pool_maker(
    problem: Problem,
    root: jax.Array,
    *,
    on_network: Callable[[], None] = lambda: None,
    earlier: Sequence[Pool] = (),
) -> MakePool:
    """Compile what scoring needs, once for all segments.

    Args:
      problem: the fixed pieces.
      root: key of the synthesis.
      on_network: called after every network that was trained.
      earlier: pools of the segments that are finished, for a run that goes on.

    Returns:
      ``make_pool(segment, pool_round, finished) -> Pool`` where ``finished`` are the
      stored pixels f32[C, n_k, H, W, ch] of the segments so far. It raises a
      ``UserError`` when the networks diverge.
    """
    s = problem.settings.dasm
    of_real = None
    if _judged_by(problem) == "real":  # then that is what earlier pools hold
        found = (pool.difficulty for pool in earlier if pool.difficulty is not None)
        of_real = next(found, None)
    judges = make_judges(problem, root, on_network=on_network, of_real=of_real)
    cluster = make_clusterer(problem, root) if by_clusters(problem.settings) else None
    cover = make_coverer(problem, root) if by_covering(problem.settings) else None
    matched_on = problem.settings.matcher.active.needs_segment_networks

    def make_pool(segment: int, pool_round: int, finished: list[np.ndarray]) -> Pool:
        began = time.perf_counter()
        scored_by = _scored_by(problem, segment)
        # The first segment starts from images that are drawn, a polish from its own.
        starting = pool_round == 0 and 1 < segment <= s.segments
        looked_at = scored_by == "segments" or matched_on
        networks = []
        if finished and (looked_at or (cover is not None and starting)):
            networks = judges.of_set(segment, pool_round, finished)
        difficulty = learnable = None
        if scored_by == "segments":
            difficulty = judges.verdict(networks, segment)
        elif scored_by == "real":
            difficulty = judges.verdict_of_real(segment)
        if s.ceiling == "learnable" and _has_pool(problem, segment):
            learnable = judges.verdict_of_real(segment)
        members = _choose(problem, root, segment, pool_round, difficulty, learnable)
        first = networks[0][-1] if networks else None
        # How images start plays no part in what they are matched against.
        seen_by = first if looked_at else None
        clusters = cluster and cluster(segment, pool_round, members, seen_by)
        starts = None
        if cover is not None and starting:
            starts = cover(segment, members, finished, first)
        return Pool(
            members=members,
            difficulty=difficulty,
            networks=[each[-1] for each in networks] if matched_on else [],
            seconds=time.perf_counter() - began,
            clusters=clusters,
            starts=starts,
        )

    return make_pool


def _judged_by(problem: Problem) -> str | None:
    """Which networks judge the real images, if any have to."""
    s = problem.settings.dasm
    sized = s.schedule == "coverage" or s.ceiling == "chance"  # by what networks say
    if s.pool == "full" or (s.pool == "random" and not sized):
        return None
    return "real" if s.pool in schedule.STATIC else s.scored_by


def _has_pool(problem: Problem, segment: int) -> bool:
    """Whether a segment, or the polish, has a pool that may be less than all images."""
    s = problem.settings.dasm
    if s.pool == "full":
        return False
    if segment > s.segments:
        return s.polish_target == s.target == "pool"
    # Nothing is learned before the first segment is finished.
    from_the_first = s.pool in schedule.FROM_THE_FIRST and _judged_by(problem) == "real"
    return segment > 1 or from_the_first


def _scored_by(problem: Problem, segment: int) -> str | None:
    """Which networks judge them before this segment."""
    return _judged_by(problem) if _has_pool(problem, segment) else None


def _choose(
    problem: Problem,
    root: jax.Array,
    segment: int,
    pool_round: int,
    difficulty: Difficulty | None,
    learnable: Difficulty | None,
) -> list[np.ndarray]:
    s = problem.settings
    if not _has_pool(problem, segment):
        return problem.class_indices
    key = key_for(root, Use.POOL, segment, pool_round)
    polish = segment > s.dasm.segments
    count = len(problem.dataset.train.labels)
    draws = np.asarray(jax.random.uniform(key, (2, count)))
    # The same in every segment, or parts of a class would not be parts.
    ties = np.asarray(jax.random.uniform(key_for(root, Use.POOL_TIES), (count,)))
    # In a polish all segments are at the place of the last one.
    place = min(segment, s.dasm.segments)
    size = schedule.segment_sizes(s.ipc, s.dasm.segments)[place - 1]
    if polish:
        size = s.ipc
    share = s.dasm.random_share
    if s.dasm.pool in schedule.WITHOUT_RANDOM_SHARE:
        share = 0.0
    minimum = max(problem.method.real_batch, 5 * size * s.factor**2)
    members = []
    for indices in problem.class_indices:
        if learnable is not None:
            guess = 1 / problem.dataset.n_classes
            confidence = learnable.confidence[indices]
            indices = indices[schedule.within_reach(confidence, guess, minimum)]
        of_class = _difficulty_of(difficulty, indices)
        window, start = _window(problem, place, of_class), s.dasm.rho
        if s.dasm.pool == "static_window":  # whose low end does not rise
            start = _under(window.high, start, s.dasm)
        context = PoolContext(
            window=window,
            segment=place,
            segments=s.dasm.segments,
            start=start,
            gamma=s.dasm.gamma,
            easiest_share=s.dasm.easiest_share,
            draws=draws[0, indices],
            ties=ties[indices],
        )
        chosen = schedule.class_pool(
            schedule.POOLS[s.dasm.pool],
            of_class,
            context,
            extra=draws[1, indices],
            random_share=share,
            minimum=minimum,
        )
        members.append(indices[chosen])
    return members


def _window(problem: Problem, segment: int, difficulty: ClassDifficulty) -> Window:
    s, high = problem.settings.dasm, problem.settings.dasm.high
    if s.ceiling == "chance":
        guess = 1 / problem.dataset.n_classes
        high = schedule.reached_high(difficulty, guess, high)
    if s.schedule == "coverage":
        return Window(schedule.covered_low(difficulty, s.coverage, high), high)
    low = schedule.RISES[s.schedule](segment, s.segments, s.rho)
    return Window(_under(high, low, s), high)


def _under(high: float, low: float, settings: DasmSettings) -> float:
    """``low``, or what leaves a tenth of the class below a ceiling that comes down."""
    return min(low, max(high - 0.1, 0.0)) if high < settings.high else low


def _difficulty_of(
    difficulty: Difficulty | None, indices: np.ndarray
) -> ClassDifficulty:
    if difficulty is None:  # a random pool looks at numbers only
        nothing = np.zeros(len(indices), np.float32)
        return ClassDifficulty(nothing, nothing > 0, nothing)
    return ClassDifficulty(*(field[indices] for field in difficulty))


def matched_members(problem: Problem, members: list[np.ndarray]) -> list[np.ndarray]:
    """What a segment whose pool has these members is matched against, per class."""
    whole = problem.settings.dasm.target == "class"
    return problem.class_indices if whole else members


def decile_shares(problem: Problem, pool: Pool) -> np.ndarray | None:
    """Share of each difficulty decile, inside the classes, that the pool holds.

    Returns:
      f64[10], easiest first, or None where nothing was scored.
    """
    if pool.difficulty is None:
        return None
    deciles = schedule.class_deciles(pool.difficulty.scores, problem.class_indices)
    return np.nan_to_num(share_held(deciles, pool.members))


def share_held(deciles: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """Share of each decile that a pool holds, f64[10]; NaN where a decile is empty.

    Args:
      deciles: i64[N] of the real images.
      members: i64[P_c] of the pool, per class.
    """
    held = np.zeros(len(deciles))
    held[np.concatenate(members)] = 1
    return schedule.decile_means(held, deciles)
