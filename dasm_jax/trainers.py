"""The compiled programs that train networks: one, or several at once.

``training`` has the step that they repeat.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dasm_jax import mesh as meshes
from dasm_jax import sampling
from dasm_jax.keys import Use, key_for
from dasm_jax.loops import Loop
from dasm_jax.memo import remembered
from dasm_jax.mesh import Mesh
from dasm_jax.nets import Network
from dasm_jax.sampling import IndexTable, SamplerState
from dasm_jax.training import (
    ApplyFn,
    Recipe,
    SoftLabels,
    TrainState,
    make_train_step,
    normalize,
    start_training,
    to_unit,
)
from dasm_jax.types import ArrayDataset, Normalization, Params

# Networks that are trained together. Passes over the data end for all of them at once;
# what says so is not mapped, so that shuffling stays a branch that is seldom taken.
TOGETHER = TrainState(
    params=0,
    opt_state=0,
    sampler=SamplerState(order=0, position=None, epoch=None),  # type: ignore[arg-type]
    step=None,  # type: ignore[arg-type]
)
# The same for a mesh.
SHARES = jax.tree.map(
    lambda axis: meshes.WHOLE if axis is None else meshes.SPLIT,
    TOGETHER,
    is_leaf=lambda axis: axis is None,
)


def make_advance(
    network: Network,
    recipe: Recipe,
    statistics: Normalization,
    loop: Loop,
    *,
    several: bool,
    soft_labels: SoftLabels | None = None,
) -> Callable[..., TrainState]:
    """Compile ``advance(key, state, data, table, steps) -> state`` of one network.

    Or of several: keys [n], and leaves as ``TOGETHER`` says. On a mesh the batch of one
    network is split, while of several each device trains its share (``n`` is what
    ``mesh.pad`` makes of their number) without a word to the others. The state is
    donated, and lies as ``share_out`` puts it.
    """
    mesh = loop.mesh
    step = make_train_step(
        network,
        recipe,
        statistics,
        soft_labels=soft_labels,
        mesh=None if several else mesh,
    )
    if several:
        axes = (0, TOGETHER, None, None)
        step = jax.vmap(step, in_axes=axes, out_axes=(TOGETHER, 0))

    def advance(key, state, data, table, steps):
        return loop.repeat(lambda s: step(key, s, data, table), state, steps)[0]

    if mesh is None or not several:
        return meshes.jit(mesh, advance, static_argnums=4, donate_argnums=1)

    def advance_shares(key, state, data, table, steps):
        return jax.shard_map(
            partial(advance, steps=steps),
            mesh=mesh.devices,
            in_specs=(meshes.SPLIT, SHARES, meshes.WHOLE, meshes.WHOLE),
            out_specs=SHARES,
            check_vma=False,
        )(key, state, data, table)

    return jax.jit(
        advance_shares, static_argnums=4, donate_argnums=1, out_shardings=_shares(mesh)
    )


def share_out(mesh: Mesh | None, state: TrainState, *, several: bool) -> TrainState:
    """Put a state where ``make_advance`` wants it."""
    if several and mesh is not None:
        return jax.device_put(state, _shares(mesh))
    return meshes.place(mesh, state)


def gather(mesh: Mesh | None, params: Params, count: int | None) -> Params:
    """Parameters in one place, of the first ``count`` networks; None: there is one.

    Those after them are what ``mesh.pad`` filled up with.
    """
    if count is None or mesh is None:
        return params
    params = meshes.collect(mesh, params)
    return jax.tree.map(lambda leaf: leaf[:count], params)


def _shares(mesh: Mesh) -> Any:
    return jax.tree.map(partial(meshes.sharding, mesh), SHARES)


def _stack_states(states: list[TrainState]) -> TrainState:
    def stack(*leaves: Array) -> Array:
        return jnp.stack(leaves)

    first = states[0]
    return TrainState(
        params=jax.tree.map(stack, *(state.params for state in states)),
        opt_state=jax.tree.map(stack, *(state.opt_state for state in states)),
        sampler=first.sampler._replace(
            order=jnp.stack([state.sampler.order for state in states])
        ),
        step=first.step,
    )


def _copy(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)


@remembered
def make_trainer(
    network: Network,
    recipe: Recipe,
    statistics: Normalization,
    loop: Loop,
    *,
    soft_labels: SoftLabels | None = None,
) -> Callable[..., list[Any]]:
    """Compile a trainer that starts from scratch and runs ``recipe.decay_steps``.

    Returns:
      ``train(key, data, table, snapshots=1, see=copy) -> [see(params), …]``: what is
      seen of the network at ``snapshots`` evenly spaced moments, the last one at the
      end. ``key`` of shape [n] trains n networks at once, each from the same weights as
      alone and up to rounding to the same ones; their leaves have a leading axis.
      ``see`` must not keep ``params`` itself, which the next step overwrites. On a mesh
      one network is trained on all devices, several are shared out among them.
    """
    make = partial(make_advance, network, recipe, statistics, loop)
    alone = make(several=False, soft_labels=soft_labels)
    together = make(several=True, soft_labels=soft_labels)

    def start(key: Key[Array, ""], table: IndexTable) -> TrainState:
        params = network.init(key_for(key, Use.NETWORK_INIT))
        return start_training(params, recipe, sampling.start_sampler(table))

    def train(
        key: Key[Array, "*n"],
        data: ArrayDataset,
        table: IndexTable,
        snapshots: int = 1,
        see: Callable[[Params], Any] = _copy,
    ) -> list[Any]:
        count = len(key) if key.ndim else None
        if count is None:
            data, table = meshes.place(loop.mesh, (data, table))
            advance, state = alone, start(key, table)
            key = meshes.place(loop.mesh, key)
        else:
            data, table = meshes.spread(loop.mesh, (data, table))
            key = meshes.pad(loop.mesh, key)
            advance = together
            state = _stack_states([start(one, table) for one in key])
            key = meshes.share_out(loop.mesh, key)
        state = share_out(loop.mesh, state, several=count is not None)
        kept, done = [], 0
        for i in range(snapshots):
            stop = recipe.decay_steps * (i + 1) // snapshots
            while done < stop:
                steps = min(loop.steps_per_call, stop - done)
                with jax.transfer_guard("disallow"):
                    state = advance(key, state, data, table, steps)
                done += steps
            kept.append(see(gather(loop.mesh, state.params, count)))
        return kept

    return train


def train_each(
    train: Callable[..., list[Any]],
    mesh: Mesh | None,
    keys: Sequence[Key[Array, ""]],
    data: ArrayDataset,
    table: IndexTable,
    snapshots: int = 1,
    on_network: Callable[[], None] = lambda: None,
) -> list[list[Params]]:
    """Snapshots of every network, trained one by one, or one on each device at once.

    Args:
      train: from ``make_trainer``.
      mesh: that it was made for.
      keys: one for each network.
      data: what they are trained on.
      table: which of it.
      snapshots: of each network.
      on_network: called when one is trained, or all that are trained at once.
    """
    trajectories, at_once = [], meshes.count(mesh)
    for chunk in (keys[i : i + at_once] for i in range(0, len(keys), at_once)):
        if len(chunk) == 1:
            trajectories.append(train(chunk[0], data, table, snapshots))
        else:
            seen = train(jnp.stack(chunk), data, table, snapshots)
            each = [unstack(params, len(chunk)) for params in seen]
            trajectories += [list(trajectory) for trajectory in zip(*each)]
        on_network()
    return trajectories


def all_finite(trajectories: Sequence[Sequence[Params]]) -> bool:
    """Whether every network is one still where it ended; waits until it is trained."""
    ends = [trajectory[-1] for trajectory in trajectories]
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ends))


def unstack(params: Params, count: int) -> Iterator[Params]:
    """Parameters of each of ``count`` networks that were trained at once."""
    for i in range(count):
        yield jax.tree.map(lambda leaf, i=i: leaf[i], params)


@remembered
def make_predictor(
    apply_fn: ApplyFn,
    statistics: Normalization,
    mesh: Mesh | None,
    chunk: int = 500,
) -> Callable[[Params, Array], Float[Array, "N K"]]:
    """Compile ``predict(params, images) -> logits`` for a whole split, in chunks.

    Images are u8 or f32 in [0, 1], [N, H, W, C], and stay where they are. On a mesh
    they are replicated, and every device predicts its share of a chunk.
    """

    def predict_chunk(params, images, start, size):
        part = jax.lax.dynamic_slice_in_dim(images, start, size)
        part = meshes.split_batch(mesh, part)
        return apply_fn(params, normalize(to_unit(part), statistics))

    predict_chunk = meshes.jit(mesh, predict_chunk, static_argnums=3)

    def predict(params: Params, images: Array) -> Float[Array, "N K"]:
        count, devices = len(images), meshes.count(mesh)
        size = min(chunk, count)
        size = size // devices * devices or size  # so that it can be shared out
        parts = [
            predict_chunk(params, images, np.int32(start), size)
            for start in range(0, count - size + 1, size)
        ]
        rest = count % size
        if rest:  # the last window reaches back, so that its shape is the same
            last = predict_chunk(params, images, np.int32(count - size), size)
            parts.append(last[size - rest :])
        return jnp.concatenate(parts)

    return predict
