"""Select real images by every method of the list, and evaluate the selections."""

from pathlib import Path
from typing import Any

from dasm_jax import evaluate
from dasm_jax.experiments import sets
from dasm_jax.experiments.common import (
    FINISHED,
    Table,
    finished_summary,
    load_problem,
    percent,
    recorded,
    written,
)
from dasm_jax.files import write_json
from dasm_jax.problem import decode_segments, decoded_count
from dasm_jax.schema import Settings
from dasm_jax.workdir import PhaseClock


def run(settings: Settings, workdir: Path) -> str:
    """Run the experiment; returns the table and the paths for the terminal."""
    summary = finished_summary(workdir)
    if summary is not None:
        return f"{_report(summary)}\n\n{FINISHED}\n{_paths(workdir)}"
    clock = PhaseClock()
    with clock.phase("data"):
        problem = load_problem(settings)
    (workdir / "sets").mkdir(exist_ok=True)
    c, ipc = settings.coreset, settings.ipc
    select = sets.make_selection(problem)
    with recorded(problem, workdir, clock, len(c.methods) + 1) as log:
        table = Table(problem, log)
        evaluator = evaluate.make_evaluator(problem)
        total = max(decoded_count(problem, (ipc,)), ipc * problem.dataset.n_classes)
        for method in c.methods:
            with clock.phase("select"):
                if method in sets.DISTILLED:
                    own = sets.settings_for(settings, method, ipc, settings.seed)
                    parts = sets.distil(own, problem.dataset, workdir / "experts")
                else:
                    parts = select(method, ipc)
            seconds = sum(part.seconds for part in parts)
            sets.save(workdir / "sets" / f"{method}.npz", problem, method, parts)
            formed = problem._replace(
                parameterization=sets.formation_for(problem, method)
            )
            data = decode_segments(formed, [part.pixels for part in parts], total)
            with clock.phase("evaluate"):
                accuracy = evaluator(*data)
            table.add(sets.LABELS[method], ipc, accuracy, seconds_making=seconds)
        count = len(problem.dataset.train.labels)
        with clock.phase("evaluate"):
            full = evaluator(*evaluate.full_set(problem))
        table.add("Full", count // problem.dataset.n_classes, full, stored=count)
    summary = {
        "dataset": problem.dataset.name,
        "seed": settings.seed,
        "ipc": ipc,
        "seconds_selecting": clock.seconds["select"],
        "seconds_evaluating": clock.seconds["evaluate"],
        "evaluation_networks": settings.evaluate.networks,
        "evaluation_steps": settings.evaluate.steps,
        "table": table.rows,
    }
    write_json(workdir / "summary.json", summary)
    return f"{_report(summary)}\n\n{_paths(workdir)}"


def _report(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['dataset']}, IPC {summary['ipc']}: test accuracy in %, mean ± std",
        f"of {summary['evaluation_networks']} networks, "
        f"{summary['evaluation_steps']} steps each",
        "",
        f"{'method':<15}{'accuracy':>13}{'seconds to make':>18}",
    ]
    for row in summary["table"]:
        spent = f"{row['seconds_making']:.1f}" if "seconds_making" in row else ""
        accuracy = percent(row["mean"], row["std"])
        lines.append(f"{row['set']:<15}{accuracy:>13}{spent:>18}".rstrip())
    lines += ["", "networks that select count with the first method that needs them"]
    return "\n".join(lines)


def _paths(workdir: Path) -> str:
    return written(workdir, "sets", "summary.json", "metrics.jsonl", "manifest.json")
