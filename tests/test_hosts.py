"""Several processes: one set, written once, and nobody left waiting."""

import io
import os
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dasm_jax import hosts
from dasm_jax.errors import UserError
from tests.test_mesh import ROUNDING

ROOT = Path(__file__).parent.parent
PATIENCE = 300.0  # seconds, of which a busy machine may need many
TINY = [
    "--config=configs/digits.py",
    *(
        f"--config.{setting}"
        for setting in (
            "ipc=2",
            "dasm.segments=2",
            "dasm.budget=steps",
            "dasm.score_steps=4",
            "network.width=2",
            "network.depth=1",
            "matcher.idc.loop.niter=2",
            "matcher.idc.loop.inner=2",
            "matcher.idc.trajectory.n_data=64",
            "evaluate.steps=4",
            "evaluate.networks=2",
            "evaluate.baselines=False",
            "evaluate.prefixes=False",
            "measure.networks=0",
        )
    ),
]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(*arguments, cache):
    # A device for each process, and none of the compiler's slower passes.
    flags = re.sub(r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"])
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *TINY, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"XLA_FLAGS": flags, "DASM_CACHE_DIR": str(cache), "TMPDIR": str(cache)},
    )


def run_two(workdir, cache, *more):
    """(exit code, stdout without Gloo's greetings, stderr) of both processes."""
    meeting = ["--processes=2", f"--coordinator=localhost:{free_port()}"]
    both = [
        start(f"--workdir={workdir}", *meeting, f"--process={i}", *more, cache=cache)
        for i in range(2)
    ]
    results = []
    try:
        for process in both:
            out, err = process.communicate(timeout=PATIENCE)
            lines = [line for line in out.splitlines() if "[Gloo]" not in line]
            results.append((process.returncode, "\n".join(lines), err))
    finally:
        for process in both:
            process.kill()
            process.communicate()  # or its pipes would fail a later test
    return results


def test_two_processes_write_the_set_of_one_and_write_it_once(tmp_path):
    cache, workdir = tmp_path / "cache", tmp_path / "two"
    cache.mkdir()
    (code, out, err), (other_code, other_out, other_err) = run_two(workdir, cache)
    assert (code, other_code) == (0, 0), err + other_err
    assert out.count("synthetic.npz") == 1
    assert other_out.strip() == ""
    one = start(f"--workdir={tmp_path}/one", cache=cache)
    one.communicate(timeout=PATIENCE)
    assert one.returncode == 0
    names = [
        {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
        for folder in (workdir, tmp_path / "one")
    ]
    assert names[0] == names[1]
    sets = [np.load(tmp_path / name / "synthetic.npz") for name in ("one", "two")]
    np.testing.assert_allclose(
        sets[0]["stored_pixels"], sets[1]["stored_pixels"], atol=ROUNDING, rtol=0
    )
    # Nothing of the second process is left.
    left = [p.name for p in cache.iterdir() if p.name.startswith("tmp")]
    assert left == []


@pytest.mark.slow
def test_two_processes_show_what_is_finished_and_refuse_another_run(tmp_path):
    cache, workdir = tmp_path / "cache", tmp_path / "two"
    cache.mkdir()
    assert [code for code, _, _ in run_two(workdir, cache)] == [0, 0]
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    link = tmp_path / "link"
    link.symlink_to(workdir)
    shown = run_two(link, cache)
    assert [code for code, _, _ in shown] == [0, 0], shown
    assert "finished before" in shown[0][1]
    refused = run_two(workdir, cache, "--config.seed=5")
    assert refused[0][0] == 2
    assert refused[1][0] != 0
    assert "differs in seed" in refused[0][2]
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_of_links_only_a_folder_of_the_run_is_sent(tmp_path):
    workdir, other = tmp_path / "run", tmp_path / "other"
    for folder in (workdir / "images", other / "000001"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("content")
    (workdir / "checkpoints").symlink_to(other)
    (workdir / "secret").symlink_to("/etc/hostname")
    (workdir / "datasets").symlink_to(other)
    (workdir / "images" / "deeper").symlink_to(other)
    (other / "loop").symlink_to(workdir)
    with tarfile.open(fileobj=io.BytesIO(b"".join(hosts._pack(workdir)))) as archive:
        archive.extractall(tmp_path / "copy", filter="data")
    copied = {p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*")}
    assert {path.as_posix() for path in copied} == {
        "images",
        "images/file",
        "checkpoints",
        "checkpoints/000001",
        "checkpoints/000001/file",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, 0, False), "--processes is missing"),
        ((None, 2, None, False), "--coordinator and --process are missing"),
        (("host:1", 2, 2, False), "--process=2 must be from 0 to 1"),
        (("host:1", 0, 0, False), "--processes=0 must be at least 1"),
        (("host", 2, 0, False), "--coordinator=host must be host:port"),
        (("host:1", 2, 0, True), "--distributed asks the cluster"),
    ],
)
def test_flags_that_do_not_go_together(given, message):
    with pytest.raises(UserError, match=message):
        hosts.start(*given)


def test_alone_nothing_is_started():
    hosts.start(None, None, None, False)
    assert hosts.is_first()


def test_nobody_there_is_one_line():
    code = (
        "from dasm_jax import hosts\n"
        "from dasm_jax.errors import UserError\n"
        "try:\n"
        f"    hosts.start('localhost:{free_port()}', 2, 1, False, timeout=2)\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "    hosts.leave(2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("--coordinator=localhost:")
    assert len(done.stdout.splitlines()) == 1
