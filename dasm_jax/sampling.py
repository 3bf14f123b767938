"""Batches drawn without replacement, group by group, inside a compiled step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key


class IndexTable(NamedTuple):
    """Groups of dataset indices, padded to one length so that shapes never change."""

    indices: Array | np.ndarray  # i32[G, P], a row is valid up to its count
    counts: Array | np.ndarray  # i32[G], at least 1


class Clusters(NamedTuple):
    """Parts of every group of a table in whose rows they lie one after another."""

    starts: Array | np.ndarray  # i32[G, B], places in the row
    counts: Array | np.ndarray  # i32[G, B], at least 1


class SamplerState(NamedTuple):
    """Where each group stands in its current pass."""

    order: Array  # i32[G, P] slots of the table, shuffled
    position: Array  # i32[G] next slot to hand out
    epoch: Array  # i32[G] passes begun


def make_table(groups: list[np.ndarray], width: int | None = None) -> IndexTable:
    """Pad groups of indices to a table of ``width`` (default: the longest group).

    Raises:
      ValueError: a group is empty or longer than ``width``.
    """
    counts = np.array([len(group) for group in groups], np.int32)
    width = int(counts.max()) if width is None else width
    if counts.min() < 1 or counts.max() > width:
        raise ValueError(f"groups must have 1 to {width} members, got {counts}")
    indices = np.zeros((len(groups), width), np.int32)
    for row, group in zip(indices, groups):
        row[: len(group)] = group
    return IndexTable(indices, counts)


def make_clusters(
    groups: list[np.ndarray], clusters: list[np.ndarray], number: int, width: int
) -> tuple[IndexTable, Clusters]:
    """Sort groups by their clusters, and say where those are.

    Args:
      groups: dataset indices i[P_g].
      clusters: i[P_g] < ``number``, of every member of a group.
      number: of clusters per group. One that is empty stands for the whole group.
      width: of the table.
    """
    table = make_table(
        [group[np.argsort(of, kind="stable")] for group, of in zip(groups, clusters)],
        width,
    )
    counts = np.stack([np.bincount(of, minlength=number) for of in clusters])
    starts = np.where(counts > 0, np.cumsum(counts, axis=1) - counts, 0)
    counts = np.where(counts > 0, counts, counts.sum(axis=1, keepdims=True))
    return table, Clusters(starts.astype(np.int32), counts.astype(np.int32))


def one_of_each(
    key: Key[Array, ""], table: IndexTable, clusters: Clusters
) -> Int[Array, "G B"]:
    """A random member of every cluster: dataset indices i32[G, B]."""
    counts = jnp.asarray(clusters.counts)
    slots = clusters.starts + jax.random.randint(key, counts.shape, 0, counts)
    return jnp.take_along_axis(jnp.asarray(table.indices), slots, axis=1)


def prefix_table(count: int, width: int) -> IndexTable:
    """One group: the first ``count`` of ``width`` samples."""
    return make_table([np.arange(count)], width)


def start_sampler(table: IndexTable) -> SamplerState:
    """State whose pass is already used up: the first batch begins pass 0."""
    shape = table.indices.shape
    return SamplerState(
        order=jnp.zeros(shape, jnp.int32),
        position=jnp.full(shape[0], shape[1], jnp.int32),
        epoch=jnp.full(shape[0], -1, jnp.int32),
    )


def next_batch(
    key: Key[Array, ""], state: SamplerState, table: IndexTable, size: int
) -> tuple[SamplerState, Int[Array, "G {size}"]]:
    """Take ``size`` indices from every group, without replacement within a pass.

    A group that has fewer than ``size`` left begins a new, freshly shuffled pass. A
    group smaller than a batch fills it by going round.

    Args:
      key: the same key at every call; the pass number is folded in.
      state: position of every group.
      table: the groups, i32[G, P] with counts i32[G].
      size: batch size per group.

    Returns:
      the new state and dataset indices i32[G, size].
    """
    counts = jnp.asarray(table.counts)
    used_up = state.position + size > jnp.maximum(counts, size)
    epoch = state.epoch + used_up.astype(jnp.int32)
    position = jnp.where(used_up, 0, state.position)

    def shuffle_group(group, epoch, count, old, renew):
        key_now = jax.random.fold_in(jax.random.fold_in(key, group), epoch)
        draws = jax.random.uniform(key_now, old.shape)
        # Padding sorts behind every draw, so it is never reached.
        draws = jnp.where(jnp.arange(old.size) < count, draws, 2.0)
        return jnp.where(renew, jnp.argsort(draws).astype(jnp.int32), old)

    def shuffle(order):
        groups = jnp.arange(order.shape[0])
        return jax.vmap(shuffle_group)(groups, epoch, counts, order, used_up)

    order = jax.lax.cond(used_up.any(), shuffle, lambda order: order, state.order)
    turns = (position[:, None] + jnp.arange(size)[None, :]) % counts[:, None]
    slots = jnp.take_along_axis(order, turns, axis=1)
    batch = jnp.take_along_axis(jnp.asarray(table.indices), slots, axis=1)
    return SamplerState(order, position + size, epoch), batch
