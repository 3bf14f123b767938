"""What the networks of a segment start from: fresh weights, or expert trajectories."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dasm_jax import __version__, experts, sampling
from dasm_jax import mesh as meshes
from dasm_jax.budget import SegmentPlan
from dasm_jax.experts import ExpertPlan
from dasm_jax.keys import Use, key_for
from dasm_jax.pools import Pool, digest
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.schema import BatchMethodSettings, TrajectoryMatchingSettings

EXPERTS_AT_ONCE = 10


class Supply(NamedTuple):
    """``given(outer)`` is what the learner gets at the start of an outer iteration."""

    given: Callable[[int], Any]
    seconds: float  # spent on experts


# (plan, pool) -> what the networks of a segment start from
Supplier = Callable[[SegmentPlan, Pool], Supply]


def make_supplier(
    problem: Problem,
    root: jax.Array,
    folder: Path | None,
    on_expert: Callable[[int, int], None] = lambda segment, done: None,
) -> Supplier:
    """Supply of every segment; for trajectory matching its experts are trained here.

    Args:
      problem: the fixed pieces.
      root: key of the synthesis.
      folder: where experts are kept; ``None``: nowhere.
      on_expert: called with segment and number of experts that are ready.

    Returns:
      ``supply(plan, pool)``. It raises a ``UserError`` where stored experts belong to
      something else or are damaged, and where one diverges.
    """
    m = problem.settings.matcher.active
    if isinstance(m, TrajectoryMatchingSettings):
        return _make_expert_supplier(problem, m, root, folder, on_expert)
    assert isinstance(m, BatchMethodSettings)
    return lambda plan, pool: _network_supply(problem, m, root, plan, pool)


def _network_supply(
    problem: Problem,
    m: BatchMethodSettings,
    root: jax.Array,
    plan: SegmentPlan,
    pool: Pool,
) -> Supply:
    def given(outer: int) -> Any:
        if m.trajectory.start == "segments" and pool.networks:
            return pool.networks[outer % len(pool.networks)]
        if m.trajectory.data == "none" and m.trajectory.start == "random":
            return None  # drawn inside the step
        key = key_for(root, Use.NETWORK_INIT, plan.segment, outer)
        return problem.network.init(key)

    return Supply(given, 0.0)


def _make_expert_supplier(
    problem: Problem,
    m: TrajectoryMatchingSettings,
    root: jax.Array,
    folder: Path | None,
    on_expert: Callable[[int, int], None],
) -> Supplier:
    on_cpu, mesh = jax.default_backend() == "cpu", problem.loop.mesh
    devices = meshes.count(mesh)  # each of which gets as many
    at_once = devices if on_cpu else -(-EXPERTS_AT_ONCE // devices) * devices
    expert_plan = ExpertPlan(
        m.experts, m.epochs, m.at_once or at_once, recipe_from(m.recipe)
    )
    train = experts.make_expert_trainer(
        problem.network,
        expert_plan,
        problem.statistics,
        experts.STEP_BY_STEP._replace(mesh=mesh),
    )
    count = len(problem.dataset.train.labels)

    def folder_for(plan: SegmentPlan, members: np.ndarray) -> Path | None:
        if len(members) == count and m.folder:
            return Path(m.folder).expanduser().absolute()
        return folder / f"segment_{plan.segment:02d}" if folder is not None else None

    def supply(plan: SegmentPlan, pool: Pool) -> Supply:
        began = time.perf_counter()
        members = np.sort(np.concatenate(pool.members))
        buffer = experts.expert_trajectories(
            train,
            problem.network,
            expert_plan,
            root=root,
            segment=plan.segment,
            data=problem.real,
            table=sampling.make_table([members], count),
            folder=folder_for(plan, members),
            identity=expert_identity(problem, m, members),
            on_chunk=partial(on_expert, plan.segment),
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

    return supply


def expert_identity(
    problem: Problem, m: TrajectoryMatchingSettings, members: np.ndarray
) -> dict[str, Any]:
    """Everything that stored experts depend on, as plain JSON."""
    s = problem.settings
    return {
        "dataset": problem.dataset.name,
        "data_hash": problem.dataset.content_hash,
        "network": asdict(s.network),
        "normalization": [list(problem.statistics.mean), list(problem.statistics.std)],
        "zca": s.data.zca,
        "recipe": asdict(m.recipe),
        "epochs": m.epochs,
        "seed": s.seed,
        "pool": digest(members),
        "version": __version__,
    }
