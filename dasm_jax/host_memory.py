"""How the C library hands memory back to the operating system: not at all.

XLA on CPU allocates the temporaries of a program at every call, and frees them after.
glibc returns large blocks to the kernel at once, which then clears and maps them anew,
page by page, at the next step (figures in docs/performance.md).
"""

import ctypes
import sys

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


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
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1),  # whose end is not given back
        mallopt(_M_ARENA_MAX, 1),  # of which there is one, without a limit of size
    ]
    return all(told)
