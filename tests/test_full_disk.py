"""No room: one line that says where, nothing lost, and the same bytes afterwards."""

import math
import re
import resource
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from dasm_jax import checkpoint, figures, files
from dasm_jax.errors import CannotWrite, UserError
from dasm_jax.experiments import compare
from dasm_jax.run_log import RunLog
from dasm_jax.settings import from_config
from tests.small import small_config
from tests.stopped import (  # noqa: F401  (fixtures)
    COMPILED,
    FEWER,
    _compiled_once,
    items,
    outcome,
    start,
    stop_after,
)
from tests.torture import Run

HIGHER = "raise the limit on the size of files (ulimit -f)"


class Disk(NamedTuple):
    """A folder in which no more can be written at some moment."""

    folder: Path
    fill: Callable[[], object]
    make_room: Callable[[], object]
    says: str  # the reason and the remedy


@pytest.fixture(params=["small_disk", "limit"])
def disk(request):
    """Room ends in two ways; a limit can be set where no disk can be mounted."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    ballast = path / "ballast"
    says = "No space left on device; make room there, then start the same command again"
    yield Disk(path, partial(fill, ballast), ballast.unlink, says)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(ballast):
    """Leave no byte; this file takes them."""
    with ballast.open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 4096)


@pytest.fixture
def limit(tmp_path):
    """A limit on the size of files, of this process: none can grow past a byte."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    least = jax.config.jax_persistent_cache_min_compile_time_secs

    def make_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)

    def forbid():
        # What is compiled then must not be left torn in the cache that tests share.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))

    yield Disk(tmp_path, forbid, make_room, f"File too large; {HIGHER}")
    make_room()


def until_full(write):
    """A file may still fill the page that it has."""
    for _ in range(200):
        write()


@pytest.mark.parametrize("units", [1, 3, 5, 9])
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(calm, disk, units):
    workdir = disk.folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, units, disk.fill)
        with pytest.raises(CannotWrite, match=re.escape(disk.says)) as caught:
            start(workdir)
    disk.make_room()
    assert f"cannot write {workdir}" in str(caught.value)
    assert not list(workdir.rglob(".*.unfinished"))
    whole = [
        name
        for name in items(workdir)
        if checkpoint.read_metadata(workdir / "checkpoints", name)
    ]
    assert whole == items(workdir)
    assert bool(whole) == (units > 1)
    start(workdir)
    assert outcome(workdir) == outcome(calm)


def test_what_was_there_stays(disk):
    folder, says = disk.folder, re.escape(disk.says)
    log = RunLog(folder, 1)
    log.metrics("a")
    log.line("a")
    writers = {
        "s.json": lambda path, n: files.write_json(path, [n] * n),
        "s.npz": lambda path, n: files.write_atomically(
            path, lambda file: np.savez(file, a=np.zeros(n), b=np.zeros(n))
        ),
        "s.png": lambda path, n: figures.save_segment_grid(
            path, np.zeros((1, n % 9, 8, 8, 1), np.float32), ("a",), "t", None, "p"
        ),
    }
    for name, write in writers.items():
        write(folder / name, 4)
    before = {name: (folder / name).read_bytes() for name in writers}
    disk.fill()
    for name, write in writers.items():
        with pytest.raises(CannotWrite, match=f"cannot write {folder / name}: {says}"):
            write(folder / name, 5000)
    with pytest.raises(CannotWrite, match=says):
        until_full(lambda: log.metrics("b", text="b" * 99))
    with pytest.raises(CannotWrite, match=says):
        until_full(lambda: log.line("b" * 99))
    log.close()
    assert {name: (folder / name).read_bytes() for name in writers} == before
    disk.make_room()
    assert not list(folder.glob(".*"))


def test_a_table_ends_where_nothing_can_be_written(tmp_path, monkeypatch):
    def full(settings, workdir):
        raise CannotWrite("cannot write it")

    monkeypatch.setattr(compare.distill, "run", full)
    with pytest.raises(UserError, match="cannot write it"):
        compare.run_cell("distill", from_config(small_config()), str(tmp_path))


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(tmp_path):
    calm_run = Run(tmp_path / "calm", COMPILED, FEWER)
    calm_run.finish()
    run = Run(tmp_path / "run", COMPILED, FEWER)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * 1024, limits[1]))
    try:
        process = run.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith(f"error: cannot write {run.workdir}/checkpoints/0000")
    assert f"File too large; {HIGHER}" in line
    assert len(items(run.workdir)) == 2
    with np.load(run.workdir / "synthetic.npz") as file:
        assert len(file["images"])
    run.finish()
    assert run.result() == calm_run.result()
