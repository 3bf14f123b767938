"""Several devices: one axis that classes, networks and images of a batch lie along.

``None`` stands for a single device everywhere, and changes nothing there. Accelerators
and processes talk: every array is whole on each device, unless it is said otherwise
here, and what they compute jointly is put together within a program.

Devices of one CPU do not. They share one pool of threads, and where a few wait in it
for the others to join in a sum, those may find no thread left to get there. Arrays are
whole on the first device, which uses all cores; work that falls apart into rows is
spread over all of them and collected between programs.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dasm_jax.errors import UserError
from dasm_jax.types import Array

AXIS = "devices"
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)
# Devices that a CPU is taken for, at most: each holds all the images, and the numbers
# of classes of the usual data sets divide by five.
MOST_CPU_DEVICES = 5


class Mesh(NamedTuple):
    """Devices that work side by side."""

    devices: jax.sharding.Mesh
    talks: bool  # whether one program may send arrays from device to device


def take_cores_for_devices() -> None:
    """Let JAX see a device in every core of a CPU, up to ``MOST_CPU_DEVICES``.

    XLA splits single operations between cores, which gains little: on two of them a
    class takes four fifths of its time on one, so two classes side by side win
    (docs/performance.md). To be called before JAX looks for devices. A number that was
    set by JAX_NUM_CPU_DEVICES or in XLA_FLAGS stands.
    """
    told = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 0 and not told:  # type: ignore[attr-defined]
        cores = min(available_cores(), MOST_CPU_DEVICES)
        jax.config.update("jax_num_cpu_devices", cores)


def available_cores() -> int:
    """Cores that this process may use."""
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
    if there[0].platform == "cpu" and len(there) > jax.process_count() > 1:
        raise UserError(
            "several processes on CPUs have one device each; unset "
            "xla_force_host_platform_device_count in XLA_FLAGS and JAX_NUM_CPU_DEVICES"
        )
    if count == 1:
        return None
    axis_types = (AxisType.Auto,)
    found = jax.make_mesh((count,), (AXIS,), axis_types, devices=there[:count])
    return Mesh(found, there[0].platform != "cpu" or jax.process_count() > 1)


def count(mesh: Mesh | None) -> int:
    """How many devices work side by side."""
    return 1 if mesh is None else mesh.devices.size


def talks(mesh: Mesh | None) -> bool:
    """Whether devices compute jointly within a program."""
    return mesh is not None and mesh.talks


def sharding(mesh: Mesh, spec: PartitionSpec = WHOLE) -> NamedSharding:
    """Along the axis of a mesh, or whole on every device."""
    return NamedSharding(mesh.devices, spec)


def jit(mesh: Mesh | None, function: Callable, **options: Any) -> Any:
    """``jax.jit`` of a function on arrays that are, and stay, where ``place`` puts."""
    if mesh is None or not mesh.talks:
        return jax.jit(function, **options)
    whole = sharding(mesh)
    return jax.jit(function, in_shardings=whole, out_shardings=whole, **options)


def place(mesh: Mesh | None, tree: Any) -> Any:
    """Put arrays of the host or of any device where whole arrays are.

    With several processes each of them holds the same arrays, and JAX checks that.
    """
    if mesh is None or not mesh.talks:
        return jax.device_put(tree)
    return _put(tree, sharding(mesh))


def spread(mesh: Mesh | None, tree: Any) -> Any:
    """Put arrays whole on every device, for ``jit_rows`` and other shared programs."""
    return place(mesh, tree) if mesh is None else _put(tree, sharding(mesh))


def collect(mesh: Mesh | None, tree: Any) -> Any:
    """Put the rows of several devices together, where ``place`` puts."""
    if mesh is None:
        return tree
    if mesh.talks:  # from device to device, not by way of the host
        return jax.jit(lambda tree: tree, out_shardings=sharding(mesh))(tree)
    # Newer versions of JAX go by way of the host, which for a CPU is the same place.
    with jax.transfer_guard_device_to_host("allow"):
        return _put(tree, mesh.devices.devices.flat[0])


def share_out(mesh: Mesh | None, rows: Any) -> Any:
    """Put rows of the leading axis on the devices, which divide them, in shares."""
    return rows if mesh is None else _put(rows, sharding(mesh, SPLIT))


def _put(tree: Any, where: Any) -> Any:
    def put_leaf(leaf: Any) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, where)
        # device_put refuses keys for devices of other processes.
        data = jax.device_put(jax.random.key_data(leaf), where)
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


def _shared(mesh: Mesh, body: Callable[..., Any], number: int) -> Callable[..., Any]:
    """``body(rows, …)`` with ``number`` more arguments, a share on each device."""
    in_specs = (SPLIT, *[WHOLE] * number)
    return jax.shard_map(
        body, mesh=mesh.devices, in_specs=in_specs, out_specs=SPLIT, check_vma=False
    )


def jit_rows(mesh: Mesh | None, body: Callable[..., Any], number: int) -> Any:
    """``jax.jit`` of a body that maps rows to rows, a share on each device.

    Args:
      mesh: whose devices divide the rows.
      body: ``body(rows, *whole)``, without a word between devices.
      number: of the other arguments, which ``spread`` puts in place.

    Returns:
      the function; ``collect`` puts its results together.
    """
    if mesh is None:
        return jax.jit(body)
    if mesh.talks:
        return jit(mesh, partial(split_rows, mesh, body))
    rows, whole = sharding(mesh, SPLIT), sharding(mesh)
    return jax.jit(
        _shared(mesh, body, number),
        in_shardings=(rows, *[whole] * number),
        out_shardings=rows,
    )


def split_rows(
    mesh: Mesh | None, body: Callable[..., Any], xs: Any, *shared: Any
) -> Any:
    """The same inside a program, of any number of rows, where devices talk.

    The last row is repeated to fill the shares, and dropped after. The result is whole
    on every device. Where devices do not talk, that is ``body(xs, *shared)``.
    """
    if mesh is None or not mesh.talks:
        return body(xs, *shared)
    rows = len(jax.tree.leaves(xs)[0])
    results = _shared(mesh, body, len(shared))(pad(mesh, xs), *shared)
    results = jax.tree.map(lambda leaf: leaf[:rows], results)
    return jax.lax.with_sharding_constraint(results, sharding(mesh))


def split_batch(mesh: Mesh | None, batch: Any) -> Any:
    """Let every device work on its share of the images of a batch, inside a program.

    What is made of the shares jointly, such as a mean or a gradient, XLA sums up over
    the devices. A batch that does not divide by them is worked on by all of them alike,
    and one where devices do not talk by the first.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if mesh is None or not mesh.talks or rows % count(mesh):
        return batch
    constrain = jax.lax.with_sharding_constraint
    # Held whole until here: else the drawing of the batch would be split as well, and
    # images would travel between devices for the sake of CutMix's partners.
    return constrain(constrain(batch, sharding(mesh)), sharding(mesh, SPLIT))
