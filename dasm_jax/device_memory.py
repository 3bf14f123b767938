"""What compiled programs take of a device's memory, and what it has."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from dasm_jax import mesh as meshes
from dasm_jax.host_memory import available_memory, physical_memory
from dasm_jax.mesh import Mesh

GIGA = 10**9


class Need(NamedTuple):
    """An estimate, in bytes, of one device; of a CPU, of the machine."""

    data: int  # real images, pixels, optimisers and networks, which are there already
    programs: int  # on top of that, while they run
    used: int  # of the device, by whatever there is, the data among it
    limit: int  # that it has

    @property
    def fits(self) -> bool:
        """Whether the programs can run."""
        return self.used + self.programs <= self.limit

    def __str__(self) -> str:
        return (
            f"matching needs about {_text(self.data + self.programs)} of memory "
            f"({_text(self.data)} for data, {_text(self.programs)} for programs); "
            f"there are {_text(self.limit)}, of which {_text(self.used)} are in use"
        )


def program_bytes(program: jax.stages.Compiled) -> dict[str, int] | None:
    """Bytes of one call by use, on each device; ``None`` where XLA does not tell.

    What is donated counts once in ``total``.
    """
    analysis = program.memory_analysis()
    if analysis is None:
        return None
    names = ("temp", "argument", "output", "alias")
    sizes = {name: int(getattr(analysis, f"{name}_size_in_bytes")) for name in names}
    total = sizes["temp"] + sizes["argument"] + sizes["output"] - sizes["alias"]
    return {**sizes, "total": total}


def room(device: Any) -> tuple[int, int] | None:
    """Bytes in use, and all there are; ``None`` where nobody knows."""
    if device.platform == "cpu":
        available, limit = available_memory(), physical_memory()
        return None if available is None else (limit - available, limit)
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats.get("bytes_in_use", 0), stats["bytes_limit"]


def estimate(
    resident: Any, programs: Iterable[jax.stages.Compiled], mesh: Mesh | None
) -> Need | None:
    """What it takes to call programs one after another.

    All that they return is there at the same time, and the temporaries of one of them.
    Devices of a CPU share its memory.

    Args:
      resident: arrays that are on the device already.
      programs: compiled.
      mesh: that they run on.

    Returns:
      ``None`` where XLA or the device does not tell.
    """
    known = room(jax.local_devices()[0])
    sizes = [program_bytes(program) for program in programs]
    if known is None or not all(sizes):
        return None
    found = [size for size in sizes if size]
    running = sum(max(0, size["output"] - size["alias"]) for size in found)
    running += max(size["temp"] for size in found)
    if jax.default_backend() == "cpu":
        running *= meshes.count(mesh)
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(resident))
    return Need(data, running, *known)


def _text(count: int) -> str:
    return f"{count / GIGA:.2f} GB" if count >= GIGA / 100 else f"{count / 1e6:.1f} MB"
