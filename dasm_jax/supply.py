"""What the networks of a segment start from: fresh weights, or expert trajectories."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from dasm_jax import __version__, experts, sampling
from dasm_jax import mesh as meshes
from dasm_jax.budget import SegmentPlan
from dasm_jax.experts import ExpertPlan
from dasm_jax.keys import Use, key_for
from dasm_jax.matching import Span
from dasm_jax.pools import Pool, digest, matched_members
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.schema import (
    BatchMethodSettings,
    RecipeSettings,
    TrajectoryMatchingSettings,
)
from dasm_jax.source import RESULTS
from dasm_jax.types import Params

EXPERTS_AT_ONCE = 10
BANK = "bank"  # the folder of its networks


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
    """Supply of every segment; experts and networks of a bank are trained here.

    Args:
      problem: the fixed pieces.
      root: key of the synthesis.
      folder: where experts are kept; ``None``: nowhere.
      on_expert: called with segment (0: the bank) and number of experts that are ready.

    Returns:
      ``supply(plan, pool)``. It raises a ``UserError`` where stored experts belong to
      something else, and where one diverges; damaged ones are trained again.
    """
    m = problem.settings.matcher.active
    if isinstance(m, TrajectoryMatchingSettings):
        return _make_expert_supplier(problem, m, root, folder, on_expert)
    assert isinstance(m, BatchMethodSettings)
    if m.trajectory.bank:
        return _make_bank_supplier(problem, m, root, folder, on_expert)
    return lambda plan, pool: _network_supply(problem, m, root, plan, pool)


def given_like(problem: Problem, plan: SegmentPlan) -> Any:
    """Structure, shapes and dtypes of what is given; nothing is trained for it."""
    m = problem.settings.matcher.active
    params = jax.eval_shape(problem.network.init, jax.random.key(0))
    if isinstance(m, TrajectoryMatchingSettings):
        spans = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((plan.inner, *leaf.shape), leaf.dtype),
            params,
        )
        return Span(spans, spans)
    assert isinstance(m, BatchMethodSettings)
    return None if _is_drawn_inside(m) else params


def _is_drawn_inside(m: BatchMethodSettings) -> bool:
    """Whether networks are drawn inside the step, and nothing is given to it."""
    t = m.trajectory
    return not t.bank and t.data == "none" and t.start == "random"


def expert_folders(folder: Path) -> list[Path]:
    """The folders of experts that a supplier has made in its own."""
    return [*folder.glob("segment_[0-9]*"), folder / BANK]


def _make_bank_supplier(
    problem: Problem,
    m: BatchMethodSettings,
    root: jax.Array,
    folder: Path | None,
    on_expert: Callable[[int, int], None],
) -> Supplier:
    """Networks that have seen the real images for a while, each perturbed (Acc-DD).

    They are trained once, ahead of the first segment, and kept as experts are.
    """
    t = m.trajectory
    trajectory = f"config.matcher.{problem.settings.matcher.name}.trajectory"
    rate = f"{trajectory}.recipe.lr"
    members = np.arange(len(problem.dataset.train.labels))
    moved = jax.jit(partial(perturb, size=t.perturb))

    @cache
    def bank() -> Any:
        """Parameters [bank, …], on the host."""
        recipe, at_once = recipe_from(t.recipe), _at_once(problem)
        size = f"{trajectory}.bank or {trajectory}.bank_epochs"
        plan = ExpertPlan(t.bank, t.bank_epochs, at_once, recipe, rate, size)
        trained = _make_trained(problem, t.recipe, plan, root, on_expert)
        buffer = trained(0, members, folder and folder / BANK)
        return jax.tree.map(lambda leaf: leaf[:, -1].copy(), buffer)

    def supply(plan: SegmentPlan, pool: Pool) -> Supply:
        began = time.perf_counter()
        networks = bank()

        def given(outer: int) -> Any:
            key = key_for(root, Use.BANK, plan.segment, outer)
            pick, direction = jax.random.split(key)
            number = int(jax.random.randint(pick, (), 0, t.bank))
            params = jax.tree.map(lambda leaf: leaf[number], networks)
            return moved(direction, params) if t.perturb else params

        return Supply(given, time.perf_counter() - began)

    return supply


def perturb(key: Key[Array, ""], params: Params, size: float) -> Params:
    """Move every filter in a random direction, by ``size`` times its own norm.

    A filter is all that leads to one output channel, the last axis; biases and norm
    parameters stay. Acc-DD's parameter perturbation (Zhang et al., "Accelerating
    Dataset Distillation via Model Augmentation", CVPR 2023).
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def norms(leaf):
        return jnp.sqrt(jnp.sum(leaf**2, axis=range(leaf.ndim - 1), keepdims=True))

    moved = []
    for number, leaf in enumerate(leaves):
        if leaf.ndim > 1:
            way = jax.random.normal(keys[number], leaf.shape)
            leaf = leaf + size * norms(leaf) * way / norms(way)
        moved.append(leaf)
    return structure.unflatten(moved)


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
        if _is_drawn_inside(m):
            return None
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
    at_once = m.at_once or _at_once(problem)
    expert_plan = ExpertPlan(m.experts, m.epochs, at_once, recipe_from(m.recipe))
    trained = _make_trained(problem, m.recipe, expert_plan, root, on_expert)
    count = len(problem.dataset.train.labels)

    def folder_for(plan: SegmentPlan, members: np.ndarray) -> Path | None:
        if len(members) == count and m.folder:
            return Path(m.folder).expanduser().absolute()
        return folder / f"segment_{plan.segment:02d}" if folder is not None else None

    def supply(plan: SegmentPlan, pool: Pool) -> Supply:
        began = time.perf_counter()
        members = np.sort(np.concatenate(matched_members(problem, pool.members)))
        buffer = trained(plan.segment, members, folder_for(plan, members))
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


def _at_once(problem: Problem) -> int:
    """Experts that are best trained together, as many on each device."""
    devices = meshes.count(problem.loop.mesh)
    if jax.default_backend() == "cpu":
        return devices
    return -(-EXPERTS_AT_ONCE // devices) * devices


def _make_trained(
    problem: Problem,
    recipe: RecipeSettings,
    plan: ExpertPlan,
    root: jax.Array,
    on_expert: Callable[[int, int], None],
) -> Callable[[int, np.ndarray, Path | None], Any]:
    """``trained(segment, members, folder)``: the buffer of experts on these images."""
    train = experts.make_expert_trainer(
        problem.network,
        plan,
        problem.statistics,
        experts.STEP_BY_STEP._replace(mesh=problem.loop.mesh),
    )

    def trained(segment: int, members: np.ndarray, folder: Path | None) -> Any:
        return experts.expert_trajectories(
            train,
            problem.network,
            plan,
            root=root,
            segment=segment,
            data=problem.real,
            table=sampling.make_table([members], len(problem.dataset.train.labels)),
            folder=folder,
            identity=expert_identity(problem, recipe, plan.epochs, members),
            on_chunk=partial(on_expert, segment),
        )

    return trained


def expert_identity(
    problem: Problem, recipe: RecipeSettings, epochs: int, members: np.ndarray
) -> dict[str, Any]:
    """Everything that stored experts depend on, as plain JSON."""
    s = problem.settings
    return {
        "dataset": problem.dataset.name,
        "data_hash": problem.dataset.content_hash,
        "network": asdict(s.network),
        "normalization": [list(problem.statistics.mean), list(problem.statistics.std)],
        "zca": s.data.zca,
        "recipe": asdict(recipe),
        "epochs": epochs,
        "seed": s.seed,
        "pool": digest(members),
        "version": __version__,
        "results": RESULTS,
    }
