"""Which outputs of a run have the same bits when it is run again, and where.

    make determinism
    python -m tests.determinism --python .venv-newest/bin/python

One config runs twice on one device and once on four (fake ones, on a CPU); then once
with every other interpreter, which may hold another JAX. What differs is given as the
largest difference. The exit code is 1 unless the second run has the bits of the first.
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
PATIENCE = 300.0
VERSIONS = (
    "import jax, platform; "
    "print(f'Python {platform.python_version()}, jax {jax.__version__}')"
)


class Run(NamedTuple):
    """A run to compare with the first one."""

    title: str
    python: str
    devices: int


def run(folder: Path, which: Run, options: Iterable[str]) -> dict[str, np.ndarray]:
    """Run the program in ``folder``; returns its outputs by name.

    Raises:
      AssertionError: it failed.
    """
    flags = [
        flag
        for flag in os.environ.get("XLA_FLAGS", "").split()
        if "host_platform_device_count" not in flag
    ]
    flags.append(f"--xla_force_host_platform_device_count={which.devices}")
    command = [which.python, "main.py", *OPTIONS, *options, f"--workdir={folder}"]
    done = subprocess.run(
        [*command, f"--config.devices={which.devices}"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return outputs(folder)


def outputs(folder: Path) -> dict[str, np.ndarray]:
    """Everything that a run makes, by the name it has in the report."""
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
    """``same bits``, or the largest difference; ``others`` where there is none."""
    same_kind = (one.shape, one.dtype) == (other.shape, other.dtype)
    if same_kind and one.tobytes() == other.tobytes():
        return "same bits"
    if not same_kind or one.dtype.kind != "f":
        return "others"
    return f"{np.abs(one.astype(np.float64) - other).max():.1e}"


def report(
    runs: list[Run], folder: Path, options: Iterable[str] = ()
) -> tuple[str, bool]:
    """Run all, and compare each with the first.

    Returns:
      a table as Markdown, and whether the second has the bits of the first.
    """
    found = [run(folder / str(i), which, options) for i, which in enumerate(runs)]
    first, others = found[0], found[1:]
    rows = [["compared with one device", *(which.title for which in runs[1:])]]
    rows.append(["---"] * len(rows[0]))
    for name in first:
        rows.append([name, *(compare(first[name], other[name]) for other in others)])
    same = all(row[1] == "same bits" for row in rows[2:])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows), same


def main() -> None:
    """Parse the options, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", action="append", default=[], help="another interpreter, with JAX"
    )
    options = parser.parse_args()
    runs = [Run("", sys.executable, 1), Run("again", sys.executable, 1)]
    runs.append(Run("4 devices", sys.executable, 4))
    for python in options.python:
        runs.append(Run(_versions(python), python, 1))
    with tempfile.TemporaryDirectory() as folder:
        table, same = report(runs, Path(folder))
    print(f"one device: {_versions(sys.executable)}\n\n{table}")
    sys.exit(not same)


def _versions(python: str) -> str:
    command = [python, "-c", VERSIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
