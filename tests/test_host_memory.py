"""What a process frees, it keeps, and of its mappings it leaves enough."""

import subprocess
import sys

import pytest

from dasm_jax import host_memory

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


PROGRAMS = """
import gc, jax, jax.numpy as jnp
from dasm_jax import host_memory, segment_setup
from dasm_jax.experiments import memory
def compiled(size):
    return jax.jit(lambda x: jnp.sort(x) @ x).lower(jnp.ones(size)).compile()
compiled(100)  # XLA itself needs some
shares = [host_memory.mappings_taken()]
jitted = [jax.jit(lambda x, n=n: jnp.sort(x * n)) for n in range(20)]
for f in jitted:
    f(jnp.ones(3))
for size in range(1, 21):
    segment_setup.PROGRAMS.find((size,), lambda: compiled(size))
shares.append(host_memory.mappings_taken())
for most in (0.5, 0.0):
    memory.MOST_MAPPINGS = most
    memory.make_room_for_programs()
    gc.collect()
    shares.append(host_memory.mappings_taken())
print(*shares)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts mappings")
def test_programs_give_their_mappings_back():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS], capture_output=True, text=True, check=True
    )
    before, with_programs, with_room, forgotten = map(float, done.stdout.split())
    assert 0 < before < with_programs < 0.5
    assert with_room == with_programs  # there was no need
    assert with_programs - forgotten > 0.8 * (with_programs - before)


@pytest.fixture
def container(tmp_path, monkeypatch):
    """``container(path, **files)``: of this process, the innermost one last."""
    monkeypatch.setattr(host_memory, "CONTAINERS", tmp_path)
    monkeypatch.setattr(host_memory, "OWN_CONTAINER", tmp_path / "own")

    def make(path, **files):
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"memory.{name}").write_text(text)
        (tmp_path / "own").write_text(f"0::/{path}\n")

    return make


STAT = "anon 5\ninactive_file {}\nactive_file 90000\nslab_reclaimable 10000\n"


def test_a_container_has_less_than_its_machine(container):
    there = host_memory.physical_memory()
    container("", max="1000000\n", current="500000\n", stat=STAT.format(100_000))
    assert host_memory.physical_memory() == 1_000_000
    assert host_memory.available_memory() == 700_000
    # Slurm's and systemd's are inside of others, which may hold others still.
    container("job/step", max="max\n", current="9\n", stat=STAT.format(0))
    assert host_memory.physical_memory() == 1_000_000
    container("job", max="500000\n", current="550000\n", stat=STAT.format(0))
    container("job/step", max="max\n", current="9\n", stat=STAT.format(0))
    assert host_memory.physical_memory() == 500_000
    assert host_memory.available_memory() == 50_000
    assert there > 1_000_000


def test_without_a_container_the_machine_is_all_there_is(tmp_path, monkeypatch):
    there = host_memory.physical_memory()
    monkeypatch.setattr(host_memory, "CONTAINERS", tmp_path)
    monkeypatch.setattr(host_memory, "OWN_CONTAINER", tmp_path / "none")
    assert host_memory.physical_memory() >= there
    assert 0 < host_memory.available_memory() <= host_memory.physical_memory()
