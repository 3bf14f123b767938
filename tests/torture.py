"""Kill a run again and again, and compare what it leaves with one left in peace.

    make torture            # 20 kills, minutes
    python -m tests.torture --kills=3 --seed=1

SIGKILL comes at random moments after matching has begun, and at chosen ones: in the
middle of a checkpoint, during export, while networks score, while one evaluates. The
same command is started again after each.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "--config=configs/digits.py",
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
LONGEST = 2.0  # seconds that a process lives after it has begun, at random
PATIENCE = 120.0


class Run:
    """One workdir, and the processes that were started in it."""

    def __init__(self, workdir: Path, programs: Path, options: Iterable[str] = ()):
        """``programs`` is where compiled ones are kept, for a quick start."""
        self.workdir = workdir
        self._command = [sys.executable, "main.py", *OPTIONS, *options]
        self._command += [f"--workdir={self.workdir}"]
        own = {
            "JAX_COMPILATION_CACHE_DIR": programs,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
            "JAX_PLATFORMS": "cpu",
        }
        self._environment = os.environ | {k: str(v) for k, v in own.items()}

    def start(self) -> subprocess.Popen[str]:
        """Start the command, once more."""
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self) -> str:
        """Start it and let it end; returns what it printed."""
        process = self.start()
        out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        return out

    def kill_at(self, moment: Callable[[], bool]) -> bool:
        """Start it, and end it with SIGKILL when ``moment()`` is true.

        Returns:
          whether it was alive then.

        Raises:
          AssertionError: it failed before.
        """
        process = self.start()
        until = time.monotonic() + PATIENCE
        while process.poll() is None and not moment():
            assert time.monotonic() < until, "the moment never came"
            time.sleep(0.0005)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (0, -9), errors
        return process.returncode == -9

    def begun(self) -> Callable[[], bool]:
        """True once the next process has matched or evaluated something."""
        log = self.workdir / "log.txt"
        before = log.read_bytes() if log.exists() else b""

        def moment() -> bool:
            now = log.read_bytes() if log.exists() else b""
            return len(now) > len(before) and now.count(b"/") > before.count(b"/")

        return moment

    def later(self, seconds: float) -> Callable[[], bool]:
        """So long after it has begun."""
        begun, since = self.begun(), []

        def moment() -> bool:
            if not since and begun():
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] >= seconds

        return moment

    def writing_a_checkpoint(self) -> Callable[[], bool]:
        """An item is there, and not whole."""
        folder, begun = self.workdir / "checkpoints", self.begun()

        def moment() -> bool:
            items = folder.glob("[0-9]*")
            return begun() and any(not (p / "metadata.json").exists() for p in items)

        return moment

    def exporting(self) -> Callable[[], bool]:
        """The set has a temporary file beside it."""
        known = set(self.workdir.glob(".synthetic.npz.*"))
        return lambda: bool(set(self.workdir.glob(".synthetic.npz.*")) - known)

    def scoring(self) -> Callable[[], bool]:
        """A segment has just ended, and the networks that score come next."""
        pictures = self.workdir / "images"
        known = len([*pictures.glob("*.png")])
        return lambda: len([*pictures.glob("*.png")]) > known

    def evaluating(self) -> Callable[[], bool]:
        """One more set has been evaluated."""
        folder = self.workdir / "checkpoints"
        known = len([*folder.glob("evaluation_*")])
        return lambda: len([*folder.glob("evaluation_*")]) > known

    def where(self) -> str:
        """What the last line of the log says that was done."""
        lines = (self.workdir / "log.txt").read_text().splitlines()
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
        return digest.hexdigest(), (summary["table"], summary["measures"]), metrics


def torture(
    folder: Path,
    programs: Path,
    kills: int,
    seed: int = 0,
    options: Iterable[str] = (),
    say: Callable[[str], None] = print,
) -> bool:
    """Whether killed runs leave the same as one in peace; every one finishes.

    Args:
      folder: for workdirs.
      programs: for compiled programs.
      kills: how many, in as many runs as it takes.
      seed: of the random moments.
      options: of the command, after ``OPTIONS``.
      say: told what happens.
    """
    began = time.monotonic()
    calm = Run(folder / "calm", programs, options)
    calm.finish()
    say(f"uninterrupted, compiling included: {time.monotonic() - began:.0f} s")
    expected = calm.result()
    equal: list[bool] = []
    rng = np.random.default_rng(seed)
    chosen = ("writing_a_checkpoint", "exporting", "scoring", "evaluating")
    counts: Counter[str] = Counter()
    while counts.total() < kills:
        run = Run(folder / f"killed_{len(equal)}", programs, options)
        while counts.total() < kills:
            # Every other one at random.
            kind = "random"
            if counts.total() % 2:
                kind = chosen[counts.total() // 2 % len(chosen)]
            moment = run.later(rng.uniform(0, LONGEST))
            if kind != "random":
                moment = getattr(run, kind)()
            if not run.kill_at(moment):
                break  # it was finished before
            counts[kind] += 1
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
    with tempfile.TemporaryDirectory() as folder:
        said = time.monotonic()
        # Programs of its own, so that what a kill leaves of one counts as well.
        places = Path(folder) / "runs", Path(folder) / "programs"
        fine = torture(*places, options.kills, options.seed, say=_say)
        _say(f"{time.monotonic() - said:.0f} s in all")
    sys.exit(not fine)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
