"""How much memory there is, and how the C library hands it back: not at all.

XLA on CPU allocates the temporaries of a program at every call, and frees them after.
glibc returns large blocks to the kernel at once, which then clears and maps them anew,
page by page, at the next step (figures in docs/performance.md).
"""

import ctypes
import os
import sys
from pathlib import Path

CONTAINER = Path("/sys/fs/cgroup/memory.max")
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
    return min(there, _limit())


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
    return min(there, _limit())


def _limit() -> int:
    """Bytes that a container may take (cgroup v2); where it does not say, no limit."""
    try:
        return int(CONTAINER.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max"
        return sys.maxsize


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
