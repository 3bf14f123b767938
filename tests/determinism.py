"""Which outputs of a run have the same bits when it is run again, and where.

    make determinism
    python -m tests.determinism --python some/other/bin/python

One config runs twice on one device and once on four (fake ones, on a CPU); then the
same with every other interpreter, which may hold another JAX. Every run compiles for
itself: with the programs of an earlier one, a second run would not show that compiling
gives the same ones again. What differs is given as the largest difference. The exit
code is 1 unless every second run has the bits of the first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "--config=configs/digits.py",
    "--config.ipc=4",
    "--config.dasm.segments=2",
    "--config.matcher.idc.loop.niter=4",
    "--config.dasm.score_steps=100",
    "--config.dasm.networks=1",
    "--config.evaluate.networks=2",
    "--config.evaluate.steps=300",
    "--config.measure.steps=100",
)
# What `make matrix` installs.
OTHERS = (".venv-oldest/bin/python", ".venv-newest/bin/python")
ALONE, AGAIN, SAME = "one device", "again", "same bits"
PATIENCE = 1200.0  # s that a run may take, most of them for compiling
VERSIONS = (
    "import jax, platform; "
    "print(f'Python {platform.python_version()}, jax {jax.__version__}')"
)


Outputs = dict[str, np.ndarray]  # of a run, by the name they have in the report


class Run(NamedTuple):
    """A run, by what it has in the report."""

    title: str
    python: str
    devices: int


def runs_of(python: str) -> list[Run]:
    """What runs with an interpreter: one, and two to compare with it."""
    devices = {ALONE: 1, AGAIN: 1, "4 devices": 4}
    return [Run(title, python, count) for title, count in devices.items()]


def run(folder: Path, which: Run, options: Iterable[str]) -> Outputs:
    """Run the program in ``folder``, with nothing compiled; returns its outputs.

    Raises:
      AssertionError: it failed.
    """
    flags = [
        flag
        for flag in os.environ.get("XLA_FLAGS", "").split()
        if "host_platform_device_count" not in flag
    ]
    flags.append(f"--xla_force_host_platform_device_count={which.devices}")
    own = {
        "JAX_COMPILATION_CACHE_DIR": f"{folder}_programs",
        "XLA_FLAGS": " ".join(flags),
    }
    command = [which.python, "main.py", *OPTIONS, *options, f"--workdir={folder}"]
    done = subprocess.run(
        [*command, f"--config.devices={which.devices}"],
        cwd=ROOT,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return outputs(folder)


def outputs(folder: Path) -> Outputs:
    """Everything that a run makes."""
    file = (folder / "synthetic.npz").read_bytes()
    found = {"synthetic.npz, the file": np.frombuffer(file, np.uint8)}
    with np.load(folder / "synthetic.npz") as stored:
        segments = stored["stored_segments"]
        for number in np.unique(segments):
            pixels = stored["stored_pixels"][segments == number]
            found[f"pixels of segment {number}"] = pixels
    texts = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(text) for text in texts]
    for title, kind, name in (
        ("matching distances", "outer", "distance_per_class"),
        ("members of the pools", "segment", "pool_sha256"),
        ("difficulty, mean of each pool", "segment", "score_mean_pool"),
        ("gradient norms", "measures", "mean_gradient_norm_by_decile"),
        ("accuracies", "evaluation", "networks"),
    ):
        rows = [line[name] for line in lines if line["kind"] == kind and name in line]
        assert rows, f"no {name} in metrics.jsonl"
        rows = [[*row.values()] if isinstance(row, dict) else row for row in rows]
        found[title] = np.array(rows)
    return found


def compare(one: np.ndarray, other: np.ndarray) -> str:
    """``SAME``, or the largest difference; ``others`` where there is none."""
    same_kind = (one.shape, one.dtype) == (other.shape, other.dtype)
    if same_kind and one.tobytes() == other.tobytes():
        return SAME
    if not same_kind or one.dtype.kind != "f":
        return "others"
    return f"{np.abs(one.astype(np.float64) - other).max():.1e}"


def report(
    folder: Path, pythons: Iterable[str], options: Iterable[str] = ()
) -> tuple[str, bool]:
    """Run with all interpreters, and compare what the runs of each of them make.

    Args:
      folder: for workdirs.
      pythons: interpreters; what the first one makes is compared with all others. Of
        those of the same versions the first one counts.
      options: of the command, after ``OPTIONS``.

    Returns:
      tables as Markdown, and whether every second run has the bits of the first.
    """
    tables, same, elsewhere = [], True, {}
    distinct: dict[str, str] = {}
    for python in pythons:
        distinct.setdefault(_versions(python), python)
    for number, (with_what, python) in enumerate(distinct.items()):
        found = {
            each.title: run(folder / f"{number} {each.title}", each, options)
            for each in runs_of(python)
        }
        first = found.pop(ALONE)
        tables.append(table(f"{ALONE}, {with_what}", first, found | elsewhere))
        same &= all(compare(first[name], found[AGAIN][name]) == SAME for name in first)
        elsewhere = elsewhere or {with_what: first}
    return "\n\n".join(tables), same


def table(title: str, first: Outputs, others: dict[str, Outputs]) -> str:
    """How others differ from the first, as Markdown."""
    rows = [[f"compared with {title}", *others], ["---"] * (1 + len(others))]
    for name in first:
        rows.append([name, *(compare(first[name], o[name]) for o in others.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Parse the options, run, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", action="append", default=[], help="another interpreter, with JAX"
    )
    options = parser.parse_args()
    missing = [name for name in OTHERS if not (ROOT / name).exists()]
    if missing:
        print(f"run `make matrix` first to compare with {' and '.join(missing)}")
    there = [str(ROOT / name) for name in OTHERS if name not in missing]
    with tempfile.TemporaryDirectory() as folder:
        pythons = [sys.executable, *there, *options.python]
        tables, same = report(Path(folder), pythons)
    print(tables)
    sys.exit(not same)


def _versions(python: str) -> str:
    command = [python, "-c", VERSIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
