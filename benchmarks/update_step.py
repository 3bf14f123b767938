"""One inner step of IDC: the program's compiled update beside eager PyTorch.

    python -m benchmarks.update_step --cases small,paper --json bench.jsonl

Both match every class and train the network, on the same sizes and in one process,
taken in turns. Before that, both must give the same distances and pixel gradients.
FLOPs are those of our program as XLA counts them; the eager program does the same
mathematics, and weight gradients in its last sweep on top, which nothing asks for.
"""

import argparse
import sys
from typing import Any

from benchmarks import cases, ours, timing
from benchmarks.cases import Case, problem_for
from benchmarks.ours import Prepared
from benchmarks.timing import Spread, spread
from dasm_jax.host_memory import keep_freed_memory
from dasm_jax.mesh import take_cores_for_devices
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.workdir import peak_memory

WIDTHS = (21, 24, 24, 7)
HALVES: tuple[str, ...] = ("step", "matching", "network")
TITLES = ("inner step, ms", "  matching", "  network steps")


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table and a JSON line for every case.

    Returns:
      exit code: 1 where the two programs do not do the same work.
    """
    options = _parse(argv)
    peak = timing.matmul_peak()
    print(f"f32 matrix products of {timing.PEAK_SIDE}: {peak / 1e9:.0f} GFLOP/s")
    for case in options.cases:
        problem = problem_for(case, options.devices)
        if not options.no_torch:
            from benchmarks import parity  # only a machine that has PyTorch

            try:
                error = parity.check(problem)
            except parity.MismatchError as mismatch:
                print(f"error: case {case.name}: {mismatch}", file=sys.stderr)
                return 1
            print(
                f"{case.name}: both agree, largest relative error {error:.0e}",
                flush=True,
            )
        line = measure(case, problem, options.repeats, not options.no_torch, peak)
        print(show(line), flush=True)
        timing.give_line(line, options.json)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.update_step",
        description="One inner step of IDC, ours and eager PyTorch.",
    )
    cases.add_options(parser)
    return cases.parse(parser, argv)


def measure(
    case: Case, problem: Problem, repeats: int, with_torch: bool, peak: float
) -> dict[str, Any]:
    """One case as a line of results; ``peak`` in FLOP/s."""
    prepared = ours.prepare(problem)
    programs = {
        "step": ours.compile_step(prepared),
        "matching": ours.compile_matching(prepared),
        "network": ours.compile_network(prepared),
    }
    works = {f"ours {name}": program.run for name, program in programs.items()}
    chosen = None
    if with_torch:
        from benchmarks import theirs

        recipe = recipe_from(problem.settings.matcher.idc.trajectory.recipe)
        chosen = theirs.choose_step(problem, prepared.plan, recipe)
        works["torch matching"] = chosen.step.match
        works["torch network"] = chosen.step.train
    for name, program in programs.items():
        program.run()  # a first call is not like others
        works[f"ours {name}"] = program.run
    seconds = timing.in_turns(works, repeats)
    steps = programs["step"].steps
    mine = {
        name: spread([s / steps for s in seconds[f"ours {name}"]]) for name in HALVES
    }
    eager = None
    if chosen is not None:
        halves = [seconds["torch matching"], seconds["torch network"]]
        # Eager code runs one half after the other: a step is their sum, pair by pair.
        whole = [one + other for one, other in zip(*halves, strict=True)]
        eager = dict(zip(HALVES, (spread(s) for s in (whole, *halves)), strict=True))
    work = work_of_step(problem, prepared)
    line = {
        "benchmark": "update_step",
        "case": case.name,
        "sizes": case._asdict(),
        **timing.machine(with_torch=with_torch),
        "repeats": repeats,
        "steps_per_call": steps,
        "network_steps": prepared.plan.network_steps,
        **work,
        "matmul_peak_gflops": round(peak / 1e9, 2),
        "ours": {
            **rates(mine, work, peak),
            "compile_seconds": round(programs["step"].compile_seconds, 3),
            "memory_bytes": programs["matching"].memory,
        },
        "torch": None,
        "ratio": None,
    }
    if chosen is not None and eager is not None:
        line["torch"] = {
            **rates(eager, work, peak),
            "memory_format": chosen.format,
            "first_seconds": round(chosen.first_seconds, 3),
            "memory_bytes": None,  # PyTorch does not count it on CPU
        }
        line["ratio"] = {
            name: round(eager[name].median / mine[name].median, 3)
            for name in HALVES
            if mine[name].median
        }
    line["process_peak_bytes"] = peak_memory()["process"]
    return line


def work_of_step(problem: Problem, prepared: Prepared) -> dict[str, float]:
    """Images that an inner step looks at, and FLOPs of its halves."""
    m, plan = problem.settings.matcher.idc, prepared.plan
    decoded = len(problem.parameterization.tiles(plan.size).sources)
    matched = m.real_batch + min(decoded, m.synthetic_batch)
    trained = plan.network_steps * m.trajectory.recipe.batch
    return {
        "images_per_step": problem.dataset.n_classes * matched + trained,
        "matching_flops": plan.flops_per_step,
        "network_flops": plan.network_steps * ours.network_flops(prepared),
    }


def rates(
    seconds: dict[str, Spread], work: dict[str, float], peak: float
) -> dict[str, Any]:
    """Times of one side in ms, and how much work that is per second."""
    flops = {
        "matching": work["matching_flops"],
        "network": work["network_flops"],
        "step": work["matching_flops"] + work["network_flops"],
    }
    per_second = {name: flops[name] / seconds[name].median for name in HALVES}
    return {
        **{f"{name}_ms": timing.as_json(seconds[name]) for name in HALVES},
        "images_per_second": round(work["images_per_step"] / seconds["step"].median, 1),
        "gflops": {name: round(per_second[name] / 1e9, 3) for name in HALVES},
        "share_of_peak": {name: round(per_second[name] / peak, 4) for name in HALVES},
    }


def show(line: dict[str, Any]) -> str:
    """A line of results as a table of at most 80 columns."""
    sides = [line["ours"], line["torch"]]

    def row(title: str, cell: Any, last: str = "") -> tuple[str, ...]:
        return (title, *(cell(s) if s else "-" for s in sides), last)

    def milliseconds(name: str) -> Any:
        return lambda side: timing.milliseconds(
            Spread(**side[f"{name}_ms"]).times(1e-3)
        )

    ratio = line["ratio"] or {}
    rows: list[tuple[str, ...]] = [(line["case"], "ours", "PyTorch", "ratio")]
    for title, name in zip(TITLES, HALVES, strict=True):
        last = f"{ratio[name]:.2f}" if name in ratio else ""
        rows.append(row(title, milliseconds(name), last))
    rows += [
        row("images/s", lambda side: f"{side['images_per_second']:,.0f}"),
        row(
            "GFLOP/s (of peak)",
            lambda side: (
                f"{side['gflops']['step']:.1f} "
                f"({100 * side['share_of_peak']['step']:.0f} %)"
            ),
        ),
        row(
            "compiling, first, s",
            lambda side: (
                f"{side.get('compile_seconds', side.get('first_seconds')):.1f}"
            ),
        ),
        row("matching memory", lambda side: _megabytes(side["memory_bytes"])),
    ]
    return timing.table(rows, WIDTHS)


def _megabytes(memory: dict[str, int] | None) -> str:
    return "-" if memory is None else f"{memory['total'] / 2**20:.1f} MiB"


if __name__ == "__main__":
    keep_freed_memory()  # as main.py does; both sides gain
    take_cores_for_devices()  # as main.py does
    sys.exit(main())
