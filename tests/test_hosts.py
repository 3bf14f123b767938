"""Several processes: one set, written once, and nobody left waiting."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
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
            "evaluate.recipe.augment=none",
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


def begin_two(workdir, cache, *more):
    meeting = ["--processes=2", f"--coordinator=localhost:{free_port()}"]
    return [
        start(f"--workdir={workdir}", *meeting, f"--process={i}", *more, cache=cache)
        for i in range(2)
    ]


def ended(both):
    """(exit code, stdout without Gloo's greetings, stderr) of both processes."""
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


def run_two(workdir, cache, *more):
    return ended(begin_two(workdir, cache, *more))


@pytest.mark.slow
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


SHORT = (
    "--config.matcher.name=dm",
    "--config.matcher.dm.real_batch=8",
    "--config.matcher.dm.loop.inner=2",
    "--config.synthetic.factor=1",
)


def metrics(workdir, kind):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def assert_made_alike(tmp_path, cache, *more):
    """``two`` is what one process makes by the same flags."""
    one = start(f"--workdir={tmp_path}/one", *more, cache=cache)
    ended([one])
    assert one.returncode == 0
    sets = [np.load(tmp_path / name / "synthetic.npz") for name in ("one", "two")]
    np.testing.assert_allclose(
        sets[0]["stored_pixels"], sets[1]["stored_pixels"], atol=ROUNDING, rtol=0
    )


@pytest.mark.slow
def test_two_processes_go_back_together(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    diverges = (  # without a norm: f32 overflows, until the rate is a few times smaller
        *SHORT,
        "--config.matcher.dm.loop.niter=4",
        "--config.matcher.dm.image.lr=1e11",
        "--config.network.norm=none",
        "--config.evaluate.recipe.lr=1e-30",
        "--config.checkpoint.minutes=0",
        "--config.on_nonfinite=rollback",
    )
    (code, _, err), (other_code, _, other_err) = run_two(
        tmp_path / "two", cache, *diverges
    )
    assert (code, other_code) == (0, 0), err + other_err
    assert_made_alike(tmp_path, cache, *diverges)
    gone_back = [metrics(tmp_path / name, "rollback") for name in ("one", "two")]
    for line in (*gone_back[0], *gone_back[1]):
        line.pop("seconds")
    assert gone_back[0] == gone_back[1] != []


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    cache, workdir = tmp_path / "cache", tmp_path / "two"
    cache.mkdir()
    long = (*SHORT, "--config.matcher.dm.loop.niter=120")
    both = begin_two(workdir, cache, *long)
    until = time.monotonic() + PATIENCE
    log = workdir / "log.txt"
    while not log.exists() or "outer" not in log.read_text():
        assert time.monotonic() < until
        assert both[0].poll() is None, ended(both)
        time.sleep(0.01)
    both[1].send_signal(signal.SIGTERM)  # one of them hears it, and both stop
    results = ended(both)
    assert [code for code, _, _ in results] == [143, 143], results
    assert "goes on from segment 1, outer iteration" in results[0][2]
    stopped = len(metrics(workdir, "outer"))
    assert 0 < stopped < 120
    assert [code for code, _, _ in run_two(workdir, cache, *long)] == [0, 0]
    assert [p.name for p in cache.iterdir() if p.name.startswith("tmp")] == []
    assert len(metrics(workdir, "outer")) == 120
    assert_made_alike(tmp_path, cache, *long)


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
