"""Several devices: one axis that classes, networks and images of a batch lie along.

``None`` stands for a single device everywhere, and changes nothing there. On a mesh
every array is replicated, held whole by each device, unless it is said otherwise here.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dasm_jax.errors import UserError
from dasm_jax.types import Array

AXIS = "devices"
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)
# Devices that a CPU is taken for, at most: each holds all the images, and the numbers
# of classes of the usual data sets divide by five.
MOST_CPU_DEVICES = 5


def take_cores_for_devices() -> None:
    """Let JAX see a device in every core of a CPU, up to ``MOST_CPU_DEVICES``.

    XLA splits single operations between cores, which gains little: on two of them a
    class takes four fifths of its time on one, so two classes side by side win
    (docs/performance.md). To be called before JAX looks for devices. A number that was
    set by JAX_NUM_CPU_DEVICES or in XLA_FLAGS stands.
    """
    told = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 0 and not told:  # type: ignore[attr-defined]
        cores = min(_cores(), MOST_CPU_DEVICES)
        jax.config.update("jax_num_cpu_devices", cores)


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_mesh(devices: int) -> Mesh | None:
    """A mesh of so many devices, of all processes; 0: of all there are.

    Raises:
      UserError: there are fewer, or a process would be left without work.
    """
    there = jax.devices()
    count = devices or len(there)
    if count > len(there):
        raise UserError(
            f"config.devices={devices} is more than there are: {len(there)} of kind "
            f"{there[0].platform}; lower it, or set it to 0 for all of them"
        )
    if count < len(there) and jax.process_count() > 1:
        raise UserError(
            f"config.devices={devices} leaves out some of the {len(there)} devices of "
            f"{jax.process_count()} processes; set it to 0 for all of them"
        )
    if count == 1:
        return None
    return jax.make_mesh(
        (count,), (AXIS,), axis_types=(AxisType.Auto,), devices=there[:count]
    )


def count(mesh: Mesh | None) -> int:
    """How many devices work side by side."""
    return 1 if mesh is None else mesh.size


def sharding(mesh: Mesh | None, spec: PartitionSpec = WHOLE) -> NamedSharding | None:
    """For ``out_shardings`` and constraints; None, which leaves it open, for None."""
    return None if mesh is None else NamedSharding(mesh, spec)


def jit(mesh: Mesh | None, function: Callable, **options: Any) -> Any:
    """``jax.jit`` of a function whose arguments and results are all replicated."""
    if mesh is None:
        return jax.jit(function, **options)
    whole = sharding(mesh)
    return jax.jit(function, in_shardings=whole, out_shardings=whole, **options)


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """Put arrays of the host or of any device whole on every device.

    With several processes each of them holds the same arrays, and JAX checks that.
    """
    if mesh is None:
        return jax.device_put(tree)
    put = partial(jax.device_put, device=sharding(mesh))

    def put_leaf(leaf: Any) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return put(leaf)
        # device_put refuses keys for devices of other processes.
        data = put(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return jax.tree.map(put_leaf, tree)


def pad(mesh: Mesh | None, tree: Any) -> Any:
    """Repeat the last row of the leading axis until it divides by the devices."""
    rows = len(jax.tree.leaves(tree)[0])
    missing = -rows % count(mesh)
    if not missing:
        return tree
    index = np.minimum(np.arange(rows + missing), rows - 1)
    return jax.tree.map(lambda leaf: leaf[index], tree)


def split_rows(mesh: Mesh, body: Callable[..., Any], xs: Any, *shared: Any) -> Any:
    """``body`` of the rows of the leading axis of ``xs``, a share on each device.

    ``body(share, *shared)`` maps rows to rows, without a word between devices. The rows
    of ``xs`` may be any number: the last one is repeated to fill the shares, and
    dropped after. The result is replicated.
    """
    rows = len(jax.tree.leaves(xs)[0])
    shares = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(SPLIT, *[WHOLE] * len(shared)),
        out_specs=SPLIT,
        check_vma=False,
    )
    results = shares(pad(mesh, xs), *shared)
    results = jax.tree.map(lambda leaf: leaf[:rows], results)
    return jax.lax.with_sharding_constraint(results, sharding(mesh))


def split_batch(mesh: Mesh | None, batch: Any) -> Any:
    """Let every device work on its share of the images of a batch, inside a program.

    What is made of the shares jointly, such as a mean or a gradient, XLA sums up over
    the devices. A batch that does not divide by them is worked on by all of them alike.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if mesh is None or rows % mesh.size:
        return batch
    constrain = jax.lax.with_sharding_constraint
    # Held whole until here: else the drawing of the batch would be split as well, and
    # images would travel between devices for the sake of CutMix's partners.
    return constrain(constrain(batch, sharding(mesh)), sharding(mesh, SPLIT))
