"""Clocks, medians, what the machine is, and how results are printed."""

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dasm_jax.errors import UserError
from dasm_jax.mesh import make_mesh
from dasm_jax.workdir import provenance

PEAK_SIDE = 2048  # of the matrices that the machine's peak is measured with
WIDTH = 80  # columns that a table may have


class Spread(NamedTuple):
    """Of repeated measurements of one thing."""

    median: float
    min: float
    max: float

    def times(self, factor: float) -> "Spread":
        """In another unit."""
        return Spread(*(factor * value for value in self))


def spread(values: list[float]) -> Spread:
    """Median and range."""
    return Spread(statistics.median(values), min(values), max(values))


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of one call, which must wait for its own results."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(
    works: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Wall seconds of every work, ``repeats`` times.

    One after another within a repeat, so that whatever else the machine does meanwhile
    falls on all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
    return seconds


def threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def matmul_peak(repeats: int = 7) -> float:
    """FLOP/s of a large f32 matrix product on the default device, at its precision."""
    matrix = jax.random.normal(jax.random.key(0), (PEAK_SIDE, PEAK_SIDE))
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    work = lambda: product(matrix, matrix).block_until_ready()  # noqa: E731
    work()
    taken = in_turns({"product": work}, repeats)["product"]
    return 2 * PEAK_SIDE**3 / statistics.median(taken)


def machine(*, with_torch: bool) -> dict[str, Any]:
    """What a row of results was measured on, and with which code."""
    return {
        **provenance(),
        "threads": threads(),
        "jax_version": importlib.metadata.version("jax"),
        "torch_version": importlib.metadata.version("torch") if with_torch else None,
    }


def milliseconds(seconds: Spread | None) -> str:
    """Median and range, for a cell of a table."""
    if seconds is None:
        return "-"
    median, low, high = (f"{1e3 * s:.{1 if s < 0.1 else 0}f}" for s in seconds)
    return f"{median} ({low}..{high})"


def table(rows: list[tuple[str, ...]], widths: tuple[int, ...]) -> str:
    """Rows of cells; the first column is flush left, all others right."""
    lines = []
    for first, *rest in rows:
        cells = [f"{first:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:])]
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Options that every benchmark has."""
    parser.add_argument("--repeats", type=positive, default=repeats)
    parser.add_argument("--json", type=Path, help="file to append a line per row to")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for tests")
    parser.add_argument(
        "--devices", type=positive, help="for ours; of a CPU each core is one (all)"
    )


def check_devices(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program, with one line, where there are not so many devices."""
    try:
        make_mesh(options.devices or 0)
    except UserError as error:
        parser.error(str(error).replace("config.devices=", "--devices "))


def positive(text: str) -> int:
    """A whole number above 0.

    Raises:
      ArgumentTypeError: it is not.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def give_line(line: dict[str, Any], file: Path | None) -> None:
    """Print a result as one JSON line, and append it to ``file``."""
    text = json.dumps(line, allow_nan=False)
    print(text, flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(text + "\n")


def as_json(seconds: Spread | None) -> dict[str, float] | None:
    """Milliseconds of a spread of seconds."""
    if seconds is None:
        return None
    in_ms = seconds.times(1e3)._asdict()
    return {name: round(value, 4) for name, value in in_ms.items()}
