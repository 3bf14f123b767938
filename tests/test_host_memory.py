"""What a process frees, it keeps: where glibc can be told so."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from dasm_jax.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def touch():
    np.ones(16 * 2**20, np.uint8)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(what):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, what], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is told on Linux")
def test_large_blocks_are_not_mapped_anew():
    handed_back, kept = page_faults("hand back"), page_faults("keep")
    assert kept < 200 < handed_back
