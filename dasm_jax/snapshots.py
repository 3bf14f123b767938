"""A run between two outer iterations, as a list of arrays and back."""

from typing import Any

import jax
import numpy as np

from dasm_jax.budget import SegmentPlan
from dasm_jax.pools import Pool
from dasm_jax.problem import Problem
from dasm_jax.progress import Active, Seconds, SegmentResult, Snapshot
from dasm_jax.scoring import Difficulty


def to_arrays(snapshot: Snapshot) -> tuple[list[np.ndarray], dict[str, Any]]:
    """All arrays of a snapshot, and the rest: plain JSON that says what they are.

    Of plans only the halvings are stored, the rest follows from the settings. Nothing
    is copied.
    """
    active = snapshot.active
    stored = Snapshot(
        [
            r._replace(plan=r.plan.halvings, pool=_join(r.pool))  # type: ignore[arg-type]
            for r in snapshot.finished
        ],
        active and active._replace(pool=_join(active.pool)),
        snapshot.halvings,
    )
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(stored)]
    layout = {
        "scored": [result.pool.difficulty is not None for result in stored.finished],
        "active": active
        and {
            "scored": active.pool.difficulty is not None,
            "networks": len(active.pool.networks),
            "clusters": active.pool.clusters is not None,
            "state": len(active.state),
        },
        "arrays": [[array.dtype.str, list(array.shape)] for array in arrays],
    }
    return arrays, layout


def arrays_like(layout: dict[str, Any]) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays that belong to a layout."""
    return [
        jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for dtype, shape in layout["arrays"]
    ]


def from_arrays(
    problem: Problem,
    plans: list[SegmentPlan],
    arrays: list[np.ndarray],
    layout: dict[str, Any],
) -> Snapshot:
    """The snapshot that ``to_arrays`` took apart, of a run of the same problem."""
    params = jax.eval_shape(problem.network.init, jax.random.key(0))
    of_result = SegmentResult(
        plan=0,  # type: ignore[arg-type]
        pixels=np.empty(0),
        learned=problem.method.learned,
        pool=_pool_like(False, []),
        seconds=Seconds(0.0, 0.0, 0.0, 0.0),
        seen=problem.method.view(params),
    )
    finished = [
        of_result._replace(pool=_pool_like(scored, [])) for scored in layout["scored"]
    ]
    active = layout["active"] and Active(
        outer=0,
        pool_round=0,
        pool=_pool_like(
            layout["active"]["scored"],
            [params] * layout["active"]["networks"],
            layout["active"]["clusters"],
        ),
        state=[np.empty(0)] * layout["active"]["state"],
        seconds=of_result.seconds,
    )
    structure = jax.tree.structure(Snapshot(finished, active))
    stored: Snapshot = jax.tree.unflatten(structure, arrays)
    return Snapshot(
        [
            result._replace(
                plan=plan.slowed(int(result.plan)),  # type: ignore[arg-type]
                learned=jax.tree.map(float, result.learned),
                pool=_split(result.pool),
                seconds=Seconds(*map(float, result.seconds)),
            )
            for plan, result in zip(plans, stored.finished)
        ],
        stored.active
        and Active(
            int(stored.active.outer),
            int(stored.active.pool_round),
            _split(stored.active.pool),
            stored.active.state,
            Seconds(*map(float, stored.active.seconds)),
        ),
        int(stored.halvings),
    )


def _pool_like(scored: bool, networks: list[Any], clusters: bool = False) -> Pool:
    nothing = np.empty(0)
    difficulty = Difficulty(nothing, nothing, nothing) if scored else None
    return Pool(
        [nothing, nothing], difficulty, networks, 0.0, [nothing] if clusters else None
    )


def _join(pool: Pool) -> Pool:
    """Few arrays instead of one per class: members, how many a class has, clusters."""
    counts = np.array([len(members) for members in pool.members])
    clusters = pool.clusters and [np.concatenate(pool.clusters)]
    return pool._replace(
        members=[np.concatenate(pool.members), counts], clusters=clusters
    )


def _split(pool: Pool) -> Pool:
    members, counts = pool.members
    ends = np.cumsum(counts)[:-1]
    return pool._replace(
        members=np.split(members, ends),
        seconds=float(pool.seconds),
        clusters=pool.clusters and np.split(pool.clusters[0], ends),
    )
