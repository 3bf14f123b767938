"""Kill a run again and again, and compare what it leaves with one left in peace.

    make torture            # 20 kills, minutes
    python -m tests.torture --kills=3 --seed=1

SIGKILL comes at random moments of the whole life of a process, and at chosen ones:
while a checkpoint is written, loaded or removed, while an expert is written, during
export, while a network is trained to score, scores, or is trained to evaluate, and when
the run is finished but its checkpoints are there. The same command is started again
after each.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "--config=configs/paper.py:digits",  # where segments are long enough to rescore
    "--config.ipc=3",
    "--config.dasm.segments=3",
    "--config.network.width=4",
    "--config.network.depth=1",
    "--config.matcher.idc.loop.niter=30",
    "--config.matcher.idc.loop.inner=5",
    "--config.matcher.idc.real_batch=32",
    "--config.dasm.rescore_every=8",
    "--config.dasm.score_steps=60",
    "--config.dasm.networks=1",
    "--config.evaluate.networks=1",
    "--config.evaluate.steps=60",
    "--config.measure.steps=60",
    "--config.checkpoint.minutes=0",
)
# What is matched, and the moments that are chosen beside the random ones.
MATCHERS = {
    "idc": (
        (),
        (
            "writing_a_checkpoint",
            "exporting",
            "training",
            "scoring",
            "removing",
            "evaluating",
            "discarding",
        ),
    ),
    "mtt": (
        (
            "--config.matcher.name=mtt",
            "--config.dasm.rescore_every=0",
            "--config.matcher.mtt.loop.niter=15",
            "--config.matcher.mtt.loop.inner=3",
            "--config.matcher.mtt.steps=4",
            "--config.matcher.mtt.experts=4",
            "--config.matcher.mtt.epochs=4",
            "--config.matcher.mtt.max_start=2",
        ),
        ("writing_an_expert", "loading", "writing_a_checkpoint"),
    ),
}
# Moments that processes end themselves at (``tests/dying.py``): of so many steps, one.
FROM_INSIDE = {
    "loading": 6,
    "removing": 6,
    "discarding": 12,
    "training": 60,  # of one network
    "scoring": 2,
    "evaluating": 120,  # of two
}
PATIENCE = 600.0  # s that a process may take, on a machine that is busy with more


class Run:
    """One workdir, and the processes that were started in it."""

    def __init__(self, workdir: Path, programs: Path, options: Iterable[str] = ()):
        """``programs`` is where compiled ones are kept, for a quick start."""
        self.workdir = workdir
        self._command = ["main.py", *OPTIONS, *options, f"--workdir={self.workdir}"]
        own = {
            "JAX_COMPILATION_CACHE_DIR": programs,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
            "JAX_PLATFORMS": "cpu",
        }
        self._environment = os.environ | {k: str(v) for k, v in own.items()}

    def start(self, *before: str, own_group: bool = False) -> subprocess.Popen[str]:
        """Start the command, once more; ``before`` comes in front of it."""
        return subprocess.Popen(
            [sys.executable, *before, *self._command],
            cwd=ROOT,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=own_group,
        )

    def finish(self) -> str:
        """Start it and let it end; returns what it printed."""
        process = self.start()
        try:
            out, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        assert process.returncode == 0, errors
        return out

    def kill_at(self, moment: Callable[[], bool], *before: str) -> bool:
        """Start it, and end it with SIGKILL when ``moment()`` is true.

        Returns:
          whether it was alive then.

        Raises:
          AssertionError: it failed before.
        """
        process = self.start(*before)
        until = time.monotonic() + PATIENCE
        while process.poll() is None and not moment() and time.monotonic() < until:
            time.sleep(0.0005)
        process.kill()
        _, errors = process.communicate()
        assert time.monotonic() < until, "the moment never came, nor did the end"
        assert process.returncode in (0, -signal.SIGKILL), errors
        return process.returncode != 0

    def kill(self, kind: str, rng: np.random.Generator, life: float) -> bool:
        """Start it, and end it at a moment of this kind; whether that came.

        Args:
          kind: "random", or one of the moments in ``MATCHERS``.
          rng: draws the random moment, or the step of a short one.
          life: seconds that a process lives at most.
        """
        if kind == "random":
            return self.kill_at(after(rng.uniform(0, life)))
        if kind in FROM_INSIDE:
            step = int(rng.integers(1, FROM_INSIDE[kind], endpoint=True))
            return self.kill_inside(kind, step)
        return self.kill_at(getattr(self, kind)())

    def kill_inside(self, kind: str, step: int) -> bool:
        """Start it, and let it end itself at a moment of ``tests/dying.py``."""
        return self.kill_at(lambda: False, "-m", "tests.dying", kind, str(step))

    def may_come(self, kind: str) -> bool:
        """Whether the next process can see this moment; what it loads must be there."""
        items = (self.workdir / "checkpoints").glob("[0-9]*")
        return kind != "loading" or not all(map(unfinished, items))

    @property
    def finished(self) -> bool:
        """Whether only checkpoints may be left to remove."""
        return (self.workdir / "summary.json").exists()

    def begun(self) -> Callable[[], bool]:
        """True once the next process has matched or evaluated something."""
        log = self.workdir / "log.txt"
        before = log.read_bytes() if log.exists() else b""

        def moment() -> bool:
            now = log.read_bytes() if log.exists() else b""
            return len(now) > len(before) and now.count(b"/") > before.count(b"/")

        return moment

    def writing_a_checkpoint(self) -> Callable[[], bool]:
        """One is there, and not whole."""
        items, begun = self.workdir / "checkpoints", self.begun()
        return lambda: begun() and any(map(unfinished, items.glob("[0-9]*")))

    def writing_an_expert(self) -> Callable[[], bool]:
        """The same of an expert; what an earlier kill left does not count."""
        folder = self.workdir / "experts"
        known = {item for item in folder.glob("*") if unfinished(item)}
        return lambda: any(map(unfinished, {*folder.glob("*")} - known))

    def exporting(self) -> Callable[[], bool]:
        """The set has a temporary file beside it."""
        known = set(self.workdir.glob(".synthetic.npz.*"))
        return lambda: bool(set(self.workdir.glob(".synthetic.npz.*")) - known)

    def where(self) -> str:
        """What the last line of the log says that was done."""
        log = self.workdir / "log.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        return lines[-1].split(", about")[0] if lines else "the very beginning"

    def result(self) -> tuple[str, object, list]:
        """Digest of the set, table and measures; kinds of metrics in their order."""
        digest = hashlib.sha256((self.workdir / "synthetic.npz").read_bytes())
        summary = json.loads((self.workdir / "summary.json").read_text())
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        metrics = [
            {k: v for k, v in json.loads(line).items() if "seconds" not in k}
            for line in lines
        ]
        assert not (self.workdir / "checkpoints").exists(), "they are not needed now"
        return digest.hexdigest(), (summary["table"], summary["measures"]), metrics


def after(seconds: float) -> Callable[[], bool]:
    """So long from now."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def unfinished(item: Path) -> bool:
    """Whether a checkpoint or an expert is there, and not whole."""
    return not (item / "metadata.json").exists()


def torture(
    folder: Path,
    programs: Path,
    kills: int,
    seed: int = 0,
    options: Iterable[str] = (),
    say: Callable[[str], None] = print,
    chosen: Sequence[str] = ("writing_a_checkpoint",),
) -> bool:
    """Whether killed runs leave the same as one in peace; every one finishes.

    Args:
      folder: for workdirs.
      programs: for compiled programs.
      kills: how many, in as many runs as it takes.
      seed: of the random moments.
      options: of the command, after ``OPTIONS``.
      say: told what happens.
      chosen: moments for every other kill, in turn.

    Raises:
      AssertionError: a run fails, or the moments do not come.
    """
    # Those that are killed find their programs: a life that is measured while they are
    # compiled is longer, and random moments of it would come too late.
    Run(folder / "compiling", programs, options).finish()
    calm, began = Run(folder / "calm", programs, options), time.monotonic()
    calm.finish()
    life = time.monotonic() - began
    say(f"uninterrupted: {life:.0f} s")
    expected, equal = calm.result(), []
    rng, starts = np.random.default_rng(seed), 0
    counts: Counter[str] = Counter()
    waiting: list[str] = []
    while counts.total() < kills:
        run = Run(folder / f"killed_{len(equal)}", programs, options)
        while counts.total() < kills and not run.finished:
            kind, waiting = "random", waiting or list(chosen)
            if counts.total() % 2:
                kind = next(filter(run.may_come, waiting), kind)
            starts += 1
            assert starts <= 3 * kills + 3, (
                f"{starts - 1} processes, and only {counts.total()} of {kills} kills "
                f"({dict(counts)}); the next moment, {kind}, does not come"
            )
            if run.kill(kind, rng, life):
                counts[kind] += 1
                waiting = [other for other in waiting if other != kind]
                say(f"kill {counts.total():2d}, {kind}: after {run.where()}")
        run.finish()
        equal.append(run.result() == expected)
        say(f"finished; bytes equal: {run.result()[0] == expected[0]}")
        say(f"table, measures and metrics equal: {equal[-1]}")
    say(f"kills survived: {counts.total()} ({dict(counts)})")
    say(f"bytes equal: {all(equal)}, sha256 {expected[0]}")
    return all(equal)


def main() -> None:
    """Parse the options, torture, and exit with 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, fine = time.monotonic(), True
    with tempfile.TemporaryDirectory() as folder:
        # Programs of its own, so that what a kill leaves of one counts as well.
        programs = Path(folder) / "programs"
        shares = {"idc": options.kills - options.kills // 3, "mtt": options.kills // 3}
        for name, (changes, chosen) in MATCHERS.items():
            _say(f"{name}:")
            place = Path(folder) / name
            rest = (options.seed, changes, _say, chosen)
            fine &= torture(place, programs, shares[name], *rest)
    _say(f"{time.monotonic() - began:.0f} s in all")
    sys.exit(not fine)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
