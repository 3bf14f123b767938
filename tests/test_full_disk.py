"""No room: one line that says where, nothing lost, and the same bytes afterwards."""

import resource
import subprocess
from contextlib import suppress

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

ROOM = "make room there, then start the same command again"


@pytest.fixture
def disk(tmp_path):
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
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk):
    """Leave no byte; returns the file that takes them."""
    path = disk / "ballast"
    with path.open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 4096)
    return path


def until_full(write):
    """A file may still fill the page that it has."""
    for _ in range(200):
        write()


@pytest.mark.parametrize("units", [1, 3, 5, 9])
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(calm, disk, units):
    workdir = disk / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, units, lambda: fill(disk))
        with pytest.raises(CannotWrite, match=ROOM) as caught:
            start(workdir)
    assert f"cannot write {workdir}" in str(caught.value)
    assert not list(workdir.rglob(".*.unfinished"))
    whole = [
        name
        for name in items(workdir)
        if checkpoint.read_metadata(workdir / "checkpoints", name)
    ]
    assert whole == items(workdir)
    assert bool(whole) == (units > 1)
    (disk / "ballast").unlink()
    start(workdir)
    assert outcome(workdir) == outcome(calm)


def test_what_was_there_stays(disk):
    log = RunLog(disk, 1)
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
        write(disk / name, 4)
    before = {name: (disk / name).read_bytes() for name in writers}
    ballast = fill(disk)
    for name, write in writers.items():
        with pytest.raises(CannotWrite, match=f"cannot write {disk / name}: No space"):
            write(disk / name, 5000)
    with pytest.raises(CannotWrite, match=ROOM):
        until_full(lambda: log.metrics("b", text="b" * 99))
    with pytest.raises(CannotWrite, match=ROOM):
        until_full(lambda: log.line("b" * 99))
    log.close()
    assert {name: (disk / name).read_bytes() for name in writers} == before
    ballast.unlink()
    assert not list(disk.glob(".*"))


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
    assert "File too large; raise the limit on the size of files" in line
    assert len(items(run.workdir)) == 2
    with np.load(run.workdir / "synthetic.npz") as file:
        assert len(file["images"])
    run.finish()
    assert run.result() == calm_run.result()
