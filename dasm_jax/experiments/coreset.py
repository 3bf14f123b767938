"""Select real images by every method of the list, and evaluate the selections."""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dasm_jax import evaluate
from dasm_jax.errors import NonFiniteError, UserError
from dasm_jax.experiments import sets
from dasm_jax.experiments.common import (
    Table,
    failed,
    finished_summary,
    load_problem,
    percent,
    recorded,
    shown_again,
    written,
)
from dasm_jax.experiments.keeper import discard
from dasm_jax.experiments.rollback import keep_rollbacks, log_rollback
from dasm_jax.files import make_folder, write_json
from dasm_jax.problem import Problem, decode_segments, decoded_count
from dasm_jax.run_log import LogPosition, RunLog
from dasm_jax.schema import Settings
from dasm_jax.workdir import PhaseClock


def run(settings: Settings, workdir: Path) -> str:
    """Run the experiment; returns the table and the paths for the terminal."""
    summary = finished_summary(workdir)
    if summary is not None and not summary["failures"]:
        _discard(settings.coreset.methods, workdir)
        return f"{shown_again(workdir, summary, _report)}\n{_paths(workdir)}"
    clock = PhaseClock()
    with clock.phase("data"):
        problem = load_problem(settings)
    make_folder(workdir / "sets")
    c, ipc = settings.coreset, settings.ipc
    select = sets.make_selection(problem)
    failures: dict[str, str] = {}
    # Begun anew where the sets are.
    after = None if settings.checkpoint.resume == "never" else LogPosition()
    with recorded(problem, workdir, clock, len(c.methods) + 1, after) as log:
        keep_rollbacks(log)
        table = Table(problem, log)
        evaluator = evaluate.make_evaluator(problem)
        total = max(decoded_count(problem, (ipc,)), ipc * problem.dataset.n_classes)
        for method in c.methods:
            try:
                with clock.phase("select"):
                    parts = _make(problem, select, method, workdir, log)
            except (UserError, NonFiniteError) as error:  # of this method only
                failures[sets.LABELS[method]] = failed(error)["failure"]
                log.advance(f"{method}: {error}", True)
                continue
            seconds = sum(part.seconds for part in parts)
            formation = sets.formation_for(problem, method)
            sets.save(workdir / "sets" / f"{method}.npz", problem, parts, formation)
            formed = problem._replace(parameterization=formation)
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
        "split": settings.data.tested_on,
        "evaluation_networks": settings.evaluate.networks,
        "evaluation_steps": settings.evaluate.steps,
        "table": table.rows,
        "failures": failures,
    }
    write_json(workdir / "summary.json", summary)
    made = [method for method in c.methods if sets.LABELS[method] not in failures]
    _discard(made, workdir)
    if not made:
        first = next(iter(failures.values()))
        raise UserError(f"every method failed, the first one: {first}")
    return f"{_report(summary)}\n\n{_paths(workdir)}"


def _discard(methods: Sequence[str], workdir: Path) -> None:
    for method in methods:
        discard(workdir / "runs" / method)


def _make(
    problem: Problem,
    select: Callable[[str, int], list[sets.Part]],
    method: str,
    workdir: Path,
    log: RunLog,
) -> list[sets.Part]:
    s = problem.settings
    if method not in sets.DISTILLED:
        return select(method, s.ipc)
    own = sets.settings_for(s, method, s.ipc, s.seed)
    parts, records = sets.distil(
        own,
        problem.dataset,
        workdir / "runs" / method,
        log.line,
        partial(log_rollback, log, set=sets.LABELS[method]),
    )
    for record in records:
        log.metrics("measures", set=sets.LABELS[method], **record)
    return parts


def _report(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['dataset']}, IPC {summary['ipc']}: {summary.get('split', 'test')} "
        "accuracy in %, mean ± std",
        f"of {summary['evaluation_networks']} networks, "
        f"{summary['evaluation_steps']} steps each",
        "",
        f"{'method':<15}{'accuracy':>13}{'seconds to make':>18}",
    ]
    for row in summary["table"]:
        spent = f"{row['seconds_making']:.1f}" if "seconds_making" in row else ""
        accuracy = percent(row["mean"], row["std"])
        lines.append(f"{row['set']:<15}{accuracy:>13}{spent:>18}".rstrip())
    for name, failure in summary["failures"].items():
        lines += textwrap.wrap(f"{name} failed: {failure}", 80)
    lines += ["", "networks that select count with the first method that needs them"]
    return "\n".join(lines)


def _paths(workdir: Path) -> str:
    return written(workdir, "sets", "summary.json", "metrics.jsonl", "manifest.json")
