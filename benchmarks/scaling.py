"""How the cost of matching grows: with images per class, classes and segments.

    python -m benchmarks.scaling --json scaling.jsonl

A small network, so that it takes minutes on two cores. Expected: a step costs the same
at every IPC past the cap on the synthetic batch, memory grows there by stored pixels
alone, time grows in proportion to classes, and K segments take as long as one.
"""

import argparse
import statistics
import sys
from typing import Any

from benchmarks import ours, timing
from benchmarks.cases import Case, problem_for
from benchmarks.timing import spread
from dasm_jax.dasm import run_dasm
from dasm_jax.host_memory import keep_freed_memory
from dasm_jax.mesh import take_cores_for_devices
from dasm_jax.problem import Problem

BASE = Case(
    name="scaling",
    side=16,
    width=16,
    n_classes=2,
    stored=50,
    real_batch=32,
    synthetic_batch=64,
    n_data=64,
    per_class=1000,
)
IPCS = (1, 10, 50, 100, 200, 1000)
CLASSES = (1, 2, 4, 8)
SEGMENTS = (1, 2, 5, 10)
# Steps of all segments together. Few decoded images per step, so that the smallest
# segment (2 stored images, 8 decoded) fills a batch as the largest does.
SEGMENT_CASE = BASE._replace(stored=20, synthetic_batch=8)
SEGMENT_STEPS = 100
SCORE_STEPS = 50

TINY = {"side": 8, "width": 2, "real_batch": 4, "synthetic_batch": 8, "n_data": 8}
SWEEPS = ("ipc", "classes", "segments")
WIDTHS = (12, 26, 14, 14)


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table and JSON lines for every sweep; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="How the cost grows."
    )
    parser.add_argument(
        "--sweeps", default=",".join(SWEEPS), help="which ones, commas between"
    )
    timing.add_options(parser, repeats=5)
    options = parser.parse_args(argv)
    timing.check_devices(parser, options)
    for name in options.sweeps.split(","):
        if name not in SWEEPS:
            parser.error(f"unknown sweep {name!r}; known: {', '.join(SWEEPS)}")
    lines = []
    if "ipc" in options.sweeps.split(","):
        values = (1, 10, 20) if options.quick else IPCS
        changes = [{"stored": value} for value in values]
        lines += sweep_steps("ipc", changes, options)
    if "classes" in options.sweeps.split(","):
        values = (1, 2) if options.quick else CLASSES
        changes = [{"n_classes": value} for value in values]
        lines += sweep_steps("classes", changes, options)
    if "segments" in options.sweeps.split(","):
        lines += sweep_segments(options)
    for line in lines:
        timing.give_line(line, options.json)
    return 0


def show(*cells: str) -> None:
    """Print one row of a table, at once: the next may take a minute."""
    print(timing.table([cells], WIDTHS), flush=True)


def sweep_steps(
    name: str, changes: list[dict[str, int]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time and memory of one matching step of all classes."""
    lines = []
    show(name, "matching step, ms", "program MiB", "pixels MiB")
    for change in changes:
        case = BASE._replace(**(TINY if options.quick else {}), **change)
        line = matching_step(problem_for(case, options.devices), options.repeats)
        (value,) = change.values()
        lines.append(
            {
                "benchmark": "scaling",
                "sweep": name,
                name: value,
                "sizes": case._asdict(),
                **timing.machine(with_torch=False),
                "repeats": options.repeats,
                **line,
            }
        )
        milliseconds = timing.Spread(**line["matching_ms"])
        memory = line["memory_bytes"]
        show(
            str(value),
            timing.milliseconds(milliseconds.times(1e-3)),
            "-" if memory is None else f"{memory['total'] / 2**20:.2f}",
            f"{line['pixel_bytes'] / 2**20:.2f}",
        )
    return lines


def matching_step(problem: Problem, repeats: int) -> dict[str, Any]:
    """Milliseconds and bytes of one matching step."""
    prepared = ours.prepare(problem)
    program = ours.compile_matching(prepared)
    program.run()
    seconds = timing.in_turns({"matching": program.run}, repeats)["matching"]
    return {
        "matching_ms": timing.as_json(spread([s / program.steps for s in seconds])),
        "matching_flops": prepared.plan.flops_per_step,
        "compile_seconds": round(program.compile_seconds, 3),
        "memory_bytes": program.memory,
        "pixel_bytes": pixel_bytes(problem),
    }


def pixel_bytes(problem: Problem) -> int:
    """Bytes of all stored images, f32."""
    height, width, channels = problem.dataset.image_shape
    count = problem.settings.ipc * problem.dataset.n_classes
    return 4 * count * height * width * channels


def sweep_segments(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole runs of ``run_dasm`` with equal steps; each from programs of its own."""
    steps, score_steps = SEGMENT_STEPS, SCORE_STEPS
    case, counts, inner = SEGMENT_CASE, SEGMENTS, 5
    if options.quick:
        steps, score_steps, inner, counts = 4, 2, 2, (1, 2)
        case = case._replace(**{**TINY, "stored": 4, "per_class": 40})
    lines = []
    show("segments", "ms per step", "matching s", "scoring share")
    for count in counts:
        problem = problem_for(
            case,
            options.devices,
            dasm__segments=count,
            dasm__budget="steps",
            dasm__networks=1,
            dasm__score_steps=score_steps,
            matcher__idc__loop__inner=inner,
            matcher__idc__loop__niter=steps // inner,
            matcher__idc__image__lr=1e-6,  # noise is not to be fitted
        )
        per_step: list[float] = []
        results = run_dasm(
            problem,
            on_outer=lambda p, seen=per_step: seen.append(p.seconds / p.plan.inner),
        )
        done = sum(r.plan.outer_iterations * r.plan.inner for r in results)
        spent = {
            kind: sum(getattr(r.seconds, kind) for r in results)
            for kind in ("matching", "scoring", "compiling")
        }
        share = spent["scoring"] / (spent["scoring"] + spent["matching"])
        lines.append(
            {
                "benchmark": "scaling",
                "sweep": "segments",
                "segments": count,
                "sizes": case._asdict(),
                **timing.machine(with_torch=False),
                "steps": done,
                "step_ms": timing.as_json(spread(per_step)),
                **{f"{kind}_seconds": round(s, 3) for kind, s in spent.items()},
                "scoring_share": round(share, 4),
            }
        )
        show(
            str(count),
            f"{1e3 * statistics.median(per_step):.1f}",
            f"{spent['matching']:.2f}",
            f"{100 * share:.0f} %",
        )
    return lines


if __name__ == "__main__":
    keep_freed_memory()  # as main.py does; both sides gain
    take_cores_for_devices()  # as main.py does
    sys.exit(main())
