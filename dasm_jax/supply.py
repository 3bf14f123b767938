"""What the networks of a segment start from: fresh weights, or expert trajectories."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dasm_jax import __version__, experts, sampling
from dasm_jax.budget import SegmentPlan
from dasm_jax.experts import ExpertPlan
from dasm_jax.keys import Use, key_for
from dasm_jax.pools import Pool
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.schema import BatchMethodSettings, TrajectoryMatchingSettings

EXPERTS_AT_ONCE = 10


class Supply(NamedTuple):
    """``given(outer)`` is what the learner gets at the start of an outer iteration."""

    given: Callable[[int], Any]
    seconds: float  # spent on experts


def make_supply(
    problem: Problem,
    root: jax.Array,
    plan: SegmentPlan,
    pool: Pool,
    folder: Path | None,
) -> Supply:
    """Networks of one segment; for trajectory matching its experts are trained here.

    Args:
      problem: the fixed pieces.
      root: key of the synthesis.
      plan: of the segment.
      pool: whose networks, or on which experts are trained.
      folder: where experts are kept; ``None``: nowhere.

    Raises:
      UserError: stored experts belong to something else, or are damaged.
    """
    m = problem.settings.matcher.active
    if isinstance(m, TrajectoryMatchingSettings):
        return _expert_supply(problem, m, root, plan, pool, folder)
    assert isinstance(m, BatchMethodSettings)

    def given(outer: int) -> Any:
        if m.trajectory.start == "segments" and pool.networks:
            return pool.networks[outer % len(pool.networks)]
        if m.trajectory.data == "none" and m.trajectory.start == "random":
            return None  # drawn inside the step
        key = key_for(root, Use.NETWORK_INIT, plan.segment, outer)
        return problem.network.init(key)

    return Supply(given, 0.0)


def _expert_supply(
    problem: Problem,
    m: TrajectoryMatchingSettings,
    root: jax.Array,
    plan: SegmentPlan,
    pool: Pool,
    folder: Path | None,
) -> Supply:
    began = time.perf_counter()
    members = np.sort(np.concatenate(pool.members))
    count = len(problem.dataset.train.labels)
    if len(members) == count and m.folder:
        folder = Path(m.folder).expanduser().absolute()
    elif folder is not None:
        folder = folder / f"segment_{plan.segment:02d}"
    at_once = 1 if jax.default_backend() == "cpu" else EXPERTS_AT_ONCE
    buffer = experts.expert_trajectories(
        problem.network,
        ExpertPlan(m.experts, m.epochs, m.at_once or at_once, recipe_from(m.recipe)),
        problem.statistics,
        root=root,
        segment=plan.segment,
        data=problem.real,
        table=sampling.make_table([members], count),
        folder=folder,
        identity=expert_identity(problem, m, members),
    )
    first, last = experts.epoch_window(
        plan.segment, problem.settings.dasm.segments, m.max_start
    )

    def given(outer: int) -> Any:
        return experts.draw_spans(
            key_for(root, Use.EXPERT_SPAN, plan.segment, outer),
            buffer,
            count=plan.inner,
            first=first,
            last=last,
            length=m.expert_epochs,
        )

    return Supply(given, time.perf_counter() - began)


def expert_identity(
    problem: Problem, m: TrajectoryMatchingSettings, members: np.ndarray
) -> dict[str, Any]:
    """Everything that stored experts depend on, as plain JSON."""
    s = problem.settings
    members = members.astype("<i8")
    return {
        "dataset": problem.dataset.name,
        "data_hash": problem.dataset.content_hash,
        "network": asdict(s.network),
        "normalization": [list(problem.statistics.mean), list(problem.statistics.std)],
        "zca": s.data.zca,
        "recipe": asdict(m.recipe),
        "epochs": m.epochs,
        "seed": s.seed,
        "pool": hashlib.sha256(members.tobytes()).hexdigest(),
        "version": __version__,
    }
