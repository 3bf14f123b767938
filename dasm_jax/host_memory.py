"""How much memory there is, and how the C library hands it back: not at all.

XLA on CPU allocates the temporaries of a program at every call, and frees them after.
glibc returns large blocks to the kernel at once, which then clears and maps them anew,
page by page, at the next step (figures in docs/performance.md).
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

CONTAINERS = Path("/sys/fs/cgroup")
OWN_CONTAINER = Path("/proc/self/cgroup")
# What a container gives back when something else needs it, by its memory.stat.
_GIVEN_BACK = ("active_file", "inactive_file", "slab_reclaimable")
# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def physical_memory() -> int:
    """Bytes that this machine, or container, has; where it says none, all there can be.

    What is larger cannot be read, and is not worth trying.
    """
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        there = sys.maxsize
    return min(there, *(limit for limit, _ in _containers()), sys.maxsize)


def available_memory() -> int | None:
    """Bytes that a process can still take without swapping; ``None``: unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    there = 1024 * int(line.split()[1])
                    break
            else:
                return None
    except (OSError, ValueError):
        return None
    return max(0, min(there, *(limit - used for limit, used in _containers()), there))


def _containers() -> Iterator[tuple[int, int]]:
    """Bytes that containers around this process may take, and have taken (cgroup v2).

    What they would give back is not taken. Those that do not say have no limit.
    """
    try:
        entry = OWN_CONTAINER.read_text(encoding="utf-8").partition("0::")[2]
    except (OSError, ValueError):
        entry = ""
    own = CONTAINERS / entry.partition("\n")[0].strip("/")
    for folder in (own, *own.parents):
        try:
            limit = int((folder / "memory.max").read_text(encoding="ascii"))
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):  # "max"
            continue
        held = dict(re.findall(r"^(\w+) ([0-9]+)$", stat, re.MULTILINE))
        yield limit, max(0, used - sum(int(held.get(name, 0)) for name in _GIVEN_BACK))


def mappings_taken() -> float:
    """Share, 0 to 1, of the memory mappings that this process may have; 0: unknown.

    Linux gives a process 65,530 of them, of any size.
    """
    try:
        most = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file) / most
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next allocation.

    To be called before the first program runs. A process then stays as large as its
    largest moment.

    Returns:
      whether the C library could be told; others than glibc cannot.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    told = [
        mallopt(_M_MMAP_MAX, 0),  # large blocks come from the heap as well
        mallopt(_M_TRIM_THRESHOLD, -1),  # whose end is never given back
        mallopt(_M_ARENA_MAX, 1),  # of which there is one, without a limit of size
    ]
    return all(told)
