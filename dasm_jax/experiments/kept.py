"""What a checkpoint of a run holds, and whether a file that says so can be one."""

import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dasm_jax import source
from dasm_jax.budget import SegmentPlan
from dasm_jax.checkpoint import differences
from dasm_jax.clusters import by_clusters
from dasm_jax.errors import UserError, printable
from dasm_jax.experiments.rollback import MOST_HALVINGS
from dasm_jax.mesh import available_cores
from dasm_jax.numbered import INSTEAD_OF, Item
from dasm_jax.pools import Pool
from dasm_jax.problem import Problem
from dasm_jax.progress import Snapshot
from dasm_jax.records import LARGEST_AMOUNT, is_amount
from dasm_jax.run_log import LogPosition
from dasm_jax.segment_setup import segment_data, state_like
from dasm_jax.snapshots import arrays_like, from_arrays, to_arrays
from dasm_jax.stored_tree import Damaged
from dasm_jax.types import Params
from dasm_jax.workdir import PACKAGES

FORMAT = 3  # of what is stored; a checkpoint of another one is refused
MOST_AXES = 32
SCHEDULE = "outer iterations"  # of the segments

# What a file that is not ours makes of reading it.
_NOT_OURS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Kept(NamedTuple):
    """A checkpoint that the run can go back to."""

    number: int  # of its item; 0: the start of the run, which is none
    snapshot: Snapshot
    log: LogPosition
    tried: bool  # whether it was gone back to before


class Found(NamedTuple):
    """The content of an item."""

    snapshot: Snapshot
    log: LogPosition


def machine(problem: Problem) -> dict[str, Any]:
    """What the last bits of a result follow, beside the settings."""
    mesh, device = problem.loop.mesh, jax.devices()[0]
    of_cpu = {}
    if device.platform == "cpu":  # XLA divides its sums by the threads there are
        of_cpu = {"cpu": _cpu(), "cores": available_cores()}
    return {
        "devices": 1 if mesh is None else mesh.devices.size,
        "platform": device.platform,
        "kind": device.device_kind,
        **of_cpu,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "source": source.everything()[:12],
    }


def schedule(plans: Sequence[SegmentPlan]) -> dict[str, str]:
    """How long segments are; it follows XLA's count of FLOPs, which may change."""
    return {SCHEDULE: " ".join(str(plan.outer_iterations) for plan in plans)}


def _cpu() -> str:
    """The model of this machine's CPU, as far as it is told."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def moved(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What there is to say of a run that goes on elsewhere; "" where it does not."""
    if SCHEDULE not in before:  # of a commit that did not store it
        now = {name: value for name, value in now.items() if name != SCHEDULE}
    changes = _changes(before, now)
    if not changes:
        return ""
    same_length = before.get(SCHEDULE) == now.get(SCHEDULE)
    what = "the last bits may differ" if same_length else "the set will be another one"
    return printable(f"goes on with {', '.join(changes)}: {what}")


@contextmanager
def of_this_code(
    metadata: dict[str, Any], now: dict[str, Any], folder: Path
) -> Iterator[None]:
    """Tell apart what is damaged from what other code wrote, and meant.

    Args:
      metadata: of a checkpoint, whose digests are right.
      now: the ``machine``.
      folder: of all checkpoints.

    Raises:
      Damaged: that is met inside, and it was written by this code, or nobody says.
      UserError: instead of that, where it was written by another one.
    """
    try:
        yield
    except Damaged:
        before = metadata.get("machine")
        if not isinstance(before, dict):
            raise
        code = (*PACKAGES, "source")
        there, here = ({name: x.get(name) for name in code} for x in (before, now))
        changes = ", ".join(_changes(there, here))
        if not changes:
            raise
        raise UserError(
            f"{folder} holds checkpoints that do not fit this code "
            f"({printable(changes)}); go on with that, use another --workdir, or start "
            "anew with config.checkpoint.resume='never'"
        ) from None


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{name} {now.get(name)} where it was {before.get(name)}"
        for name in differences(now, before)
    ]


def to_store(
    snapshot: Snapshot,
    log: LogPosition,
    identity: dict[str, Any],
    where: dict[str, Any],
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Arrays and metadata of a checkpoint; ``where`` is the ``machine``."""
    arrays, layout = to_arrays(snapshot)
    metadata = {
        "identity": identity,
        "machine": where,
        "layout": layout,
        "log": log._asdict(),
    }
    return arrays, metadata


def expected(metadata: dict[str, Any], path: Path) -> list[jax.ShapeDtypeStruct]:
    """The arrays that belong to metadata, which may come from anyone.

    Raises:
      Damaged: they are not what ``to_store`` gives.
    """
    log, layout = metadata.get("log"), metadata.get("layout")
    if not (
        isinstance(metadata.get("identity"), dict)
        and isinstance(metadata.get("machine"), dict)
        and isinstance(log, dict)
        and isinstance(layout, dict)
        and _is_position(log)
        and _is_layout(layout)
    ):
        raise Damaged(path)
    return arrays_like(layout)


def restored(
    problem: Problem,
    plans: list[SegmentPlan],
    arrays: list[np.ndarray],
    metadata: dict[str, Any],
    path: Path,
) -> Found:
    """The content of a checkpoint whose metadata were found as ``expected``.

    Raises:
      Damaged: the arrays are not those of such a run.
    """
    try:
        snapshot = from_arrays(problem, plans, arrays, metadata["layout"])
        _check_snapshot(problem, plans, snapshot)
    except _NOT_OURS as error:
        raise Damaged(path) from error
    return Found(snapshot, LogPosition(**metadata["log"]))


def as_kept(item: Item) -> Kept:
    """An item with ``Found`` in it."""
    return Kept(item.number, *item.content, tried=INSTEAD_OF in item.metadata)


def copied(snapshot: Snapshot) -> Snapshot:
    """With a state of its own, which an update may be given, and so overwrite."""
    active = snapshot.active
    if active is None:
        return snapshot
    state = [leaf.copy() for leaf in active.state]
    return snapshot._replace(active=active._replace(state=state))


def _is_position(log: dict[str, Any]) -> bool:
    return (
        {*log} == {*LogPosition._fields}
        and _is_count(log["done"])
        and type(log["seconds"]) in (int, float)
        and 0 <= log["seconds"] < LARGEST_AMOUNT
        and (log["metrics_bytes"] is None or _is_count(log["metrics_bytes"]))
    )


def _is_layout(layout: dict[str, Any]) -> bool:
    arrays, scored = layout.get("arrays"), layout.get("scored")
    active = layout.get("active", 0)
    return (
        isinstance(arrays, list)
        and all(map(_is_array, arrays))
        and isinstance(scored, list)
        and len(scored) <= len(arrays)
        and all(type(each) is bool for each in scored)
        and (active is None or _is_active(active, len(arrays)))
    )


def _is_array(text: Any) -> bool:
    """Whether it is a dtype of numbers, and a shape."""
    match text:
        case [str(dtype), list(shape)]:
            return (
                re.fullmatch("[<|](b1|[iu][1248]|f[248])", dtype) is not None
                and len(shape) <= MOST_AXES
                and all(map(_is_count, shape))
            )
    return False


def _is_active(active: Any, most: int) -> bool:
    return (
        isinstance(active, dict)
        and all(type(active.get(name)) is bool for name in ("scored", "clusters"))
        and all(
            _is_count(active.get(name)) and active[name] <= most
            for name in ("networks", "state")
        )
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_AMOUNT


def _check_snapshot(
    problem: Problem, plans: list[SegmentPlan], snapshot: Snapshot
) -> None:
    """Refuse what a run of this problem never holds, with a ValueError."""
    finished, active, halvings = snapshot
    done = len(finished) + (active is not None)
    _require(done <= len(plans))
    for each in (halvings, *(result.plan.halvings for result in finished)):
        _require(0 <= each <= MOST_HALVINGS)
    n_classes, shape = problem.dataset.n_classes, problem.dataset.image_shape
    params = jax.eval_shape(problem.network.init, jax.random.key(0))
    seen = problem.method.view(params)
    for plan, result in zip(plans, finished):
        pixels = jax.ShapeDtypeStruct((n_classes, plan.size, *shape), np.float32)
        _check_like((result.pixels, result.seen), (pixels, seen))
        _require(all(map(is_amount, result.seconds)))
        _require(all(map(math.isfinite, jax.tree.leaves(result.learned))))
        _check_pool(problem, result.pool, params)
    if active is not None:
        plan = plans[len(finished)]
        _require(0 <= active.outer <= plan.outer_iterations and active.pool_round >= 0)
        _require(all(map(is_amount, active.seconds)))
        _check_pool(problem, active.pool, params)
        _check_clusters(problem, active.pool)
        data = segment_data(
            problem,
            plan,
            active.pool,
            active.pool_round,
            [result.pixels for result in finished],
        )
        _check_like(active.state, state_like(problem, plan, data))


def _check_like(arrays: Any, like: Any) -> None:
    """Refuse leaves of another number, shape or dtype."""
    for ours, expected in zip(
        jax.tree.leaves(arrays), jax.tree.leaves(like), strict=True
    ):
        _require(ours.shape == expected.shape and ours.dtype == expected.dtype)


def _check_pool(problem: Problem, pool: Pool, params: Params) -> None:
    count = len(problem.dataset.train.labels)
    _require(len(pool.members) == problem.dataset.n_classes)
    _require(is_amount(pool.seconds))
    for members in pool.members:
        _require(members.ndim == 1 and np.issubdtype(members.dtype, np.integer))
        _require(((members >= 0) & (members < count)).all())
    if pool.difficulty is not None:
        _require(all(values.shape == (count,) for values in pool.difficulty))
        scores, learned, confidence = (values.dtype for values in pool.difficulty)
        _require((scores, learned, confidence) == (np.float32, np.bool_, np.float32))
    for network in pool.networks:
        _check_like(network, params)


def _check_clusters(problem: Problem, pool: Pool) -> None:
    _require((pool.clusters is not None) == by_clusters(problem.settings))
    if pool.clusters is not None:
        for clusters, members in zip(pool.clusters, pool.members, strict=True):
            _require(clusters.shape == members.shape and clusters.dtype == np.int32)
            _require(((clusters >= 0) & (clusters < problem.method.real_batch)).all())


def _require(true: bool | np.bool) -> None:
    if not true:
        raise ValueError("not of this run")
