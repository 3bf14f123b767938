"""Distil a dataset, evaluate every prefix, compare with Random and Full."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dasm_jax import evaluate, export, figures, measures
from dasm_jax.budget import SegmentPlan
from dasm_jax.dasm import synthetic_set
from dasm_jax.device_memory import Need
from dasm_jax.errors import NonFiniteError
from dasm_jax.experiments.common import (
    Table,
    finished_summary,
    load_problem,
    recorded,
    render_table,
    shown_again,
    written,
)
from dasm_jax.experiments.keeper import Keeper, discard
from dasm_jax.experiments.rollback import undo
from dasm_jax.files import write_json
from dasm_jax.measures import Reference
from dasm_jax.plan import plan_segments
from dasm_jax.polish import fold
from dasm_jax.pools import decile_shares, digest
from dasm_jax.problem import Problem, decode_segments, decoded_count
from dasm_jax.progress import Progress, Seconds, SegmentResult
from dasm_jax.run_log import RunLog
from dasm_jax.schema import Settings
from dasm_jax.types import SyntheticSet
from dasm_jax.workdir import PhaseClock


def run(settings: Settings, workdir: Path) -> str:
    """Run the experiment; returns the table and the paths for the terminal.

    A workdir that holds a finished run of these settings is left as it is, and one that
    holds a part of it is continued.
    """
    summary = finished_summary(workdir)
    if summary is not None:
        discard(workdir)
        return f"{shown_again(workdir, summary, _report)}\n{_paths(workdir)}"
    clock = PhaseClock()
    with clock.phase("data"):
        problem = load_problem(settings)
    with clock.phase("plan"):
        plans = plan_segments(problem)
    keeper = Keeper(problem, plans, workdir, clock)
    units = _units(settings, plans)
    with keeper, recorded(problem, workdir, clock, units, keeper.after) as log:
        if keeper.after is not None:
            log.line(f"goes on from {keeper.where}")
        if keeper.moved:
            log.line(keeper.moved)
        with clock.phase("distill"):
            results = _distill(problem, keeper, workdir, log)
        with clock.phase("measure"):
            reference, measured = _measure(problem, keeper, results, log)
        with clock.phase("evaluate"):
            rows = _evaluate(problem, keeper, results, reference, log)
    halvings = keeper.snapshot.halvings
    summary = _summary(problem, results, halvings, rows, measured, clock)
    write_json(workdir / "summary.json", summary)
    discard(workdir)
    return f"{_report(summary)}\n\n{_paths(workdir)}"


def _units(settings: Settings, plans: list[SegmentPlan]) -> int:
    """Steps of the progress bar: outer iterations, and sets to evaluate."""
    sets = settings.dasm.segments if settings.evaluate.prefixes else 1
    if settings.evaluate.baselines:
        sets = 2 * sets + 1
    return sum(plan.outer_iterations for plan in plans) + sets


def _distill(
    problem: Problem, keeper: Keeper, workdir: Path, log: RunLog
) -> list[SegmentResult]:
    every = problem.settings.log.every

    def on_outer(progress: Progress) -> None:
        plan, distances = progress.plan, progress.distances
        of_classes = distances.mean(axis=0, dtype=np.float64)  # f32 may overflow
        where = "polish"
        if not plan.covers:
            where = f"segment {plan.segment}/{problem.settings.dasm.segments}"
        log.metrics(
            "outer",
            segment=plan.segment,
            **({"part": "polish"} if plan.covers else {}),
            outer=progress.outer,
            distance=float(of_classes.mean()),
            distance_per_class=of_classes.tolist(),
            device_seconds=progress.seconds,
        )
        text = (
            f"{where} outer {progress.outer}/{plan.outer_iterations} distance "
            f"{of_classes.mean():.4g}"
        )
        log.advance(text, progress.outer % every == 0)

    def on_segment(finished: list[SegmentResult]) -> None:
        result = finished[-1]
        plan, polished = result.plan, bool(result.plan.covers)
        _save(problem, workdir, synthetic_set([each.pixels for each in fold(finished)]))
        shares = decile_shares(problem, result.pool)
        kind = "polish" if polished else "segment"
        log.metrics(kind, **_segment_record(result, shares))
        picture, what = "polished", "polished"
        if not polished:
            picture = f"segment_{plan.segment:02d}"
            what = f"{plan.name} of {problem.settings.dasm.segments}"
        figures.save_segment_grid(
            workdir / "images" / f"{picture}.png",
            result.pixels,
            problem.dataset.class_names,
            f"{problem.dataset.name}: {what}, {plan.size} images per class",
            shares,
            _describe_pool(problem, result),
        )

    def on_need(need: Need) -> None:
        log.facts["estimated_memory_bytes"] = need._asdict()
        log.line(str(need))

    try:
        return keeper.distil(
            experts_folder=workdir / "experts",
            position=lambda: log.position,
            on_expert=lambda segment, done: log.line(
                f"segment {segment}: {done} experts ready"
                if segment
                else f"bank: {done} networks ready"
            ),
            on_outer=on_outer,
            on_segment=on_segment,
            on_rollback=partial(undo, log),
            on_need=on_need,
        )
    except NonFiniteError as error:
        _save(problem, workdir, error.last_good)
        log.line(str(error))
        log.line("the last good set is in synthetic.npz")
        raise


def _save(problem: Problem, workdir: Path, synthetic: SyntheticSet) -> None:
    export.save_synthetic(
        workdir / "synthetic.npz",
        synthetic,
        parameterization=problem.parameterization,
        statistics=problem.statistics,
        class_names=problem.dataset.class_names,
    )


def _describe_pool(problem: Problem, result: SegmentResult) -> str:
    sizes = [len(members) for members in result.pool.members]
    if sizes == [len(indices) for indices in problem.class_indices]:
        return "pool: every real image"
    return f"pool of {min(sizes)} to {max(sizes)} per class"


def _segment_record(result: SegmentResult, shares: np.ndarray | None) -> dict[str, Any]:
    plan, difficulty = result.plan, result.pool.difficulty
    members = np.concatenate(result.pool.members)
    record: dict[str, Any] = {
        "segment": plan.segment,
        "size": plan.size,
        "outer_iterations": plan.outer_iterations,
        "inner_steps": plan.inner,
        "network_steps": plan.network_steps,
        "learning_rate": plan.learning_rate,
        "matching_flops": plan.flops,
        **_seconds([result]),
        "pool_sizes": [len(of_class) for of_class in result.pool.members],
        "pool_sha256": digest(members),
    }
    if result.learned != ():
        record["step_size"] = result.learned
    if difficulty is not None and shares is not None:
        record |= {
            "score_mean_all": float(difficulty.scores.mean(dtype=np.float64)),
            "score_mean_pool": float(difficulty.scores[members].mean(dtype=np.float64)),
            "learned_share": float(difficulty.learned.mean()),
            "pool_share_by_difficulty_decile": shares.round(4).tolist(),
        }
    return record


def _seconds(results: list[SegmentResult]) -> dict[str, float]:
    """Where the time of these segments went."""
    return {
        f"seconds_{name}": sum(getattr(result.seconds, name) for result in results)
        for name in Seconds._fields
    }


def _measure(
    problem: Problem, keeper: Keeper, results: list[SegmentResult], log: RunLog
) -> tuple[Reference | None, list[dict[str, Any]]]:
    """What the run says of itself; nothing where that was not asked for."""
    reference = keeper.once(
        "reference",
        measures.reference_like(problem),
        lambda: measures.reference_for(problem, log.line),
    )
    if reference is None:
        return None, []
    records = list(measures.measure_segments(problem, reference, results))
    for record in records:
        log.metrics("measures", **record)
    return reference, records


def _evaluate(
    problem: Problem,
    keeper: Keeper,
    results: list[SegmentResult],
    reference: Reference | None,
    log: RunLog,
) -> list[dict[str, Any]]:
    s = problem.settings
    table = Table(problem, log)

    def add(
        name: str,
        ipc: int,
        make: Callable[[], Any],
        pixels: Sequence[np.ndarray] = (),
        **more: Any,
    ) -> None:
        """Evaluate the set that ``make`` gives, unless that was done before.

        With other ``pixels`` it is another set: a run that went on elsewhere, or from
        an earlier moment, may have made others of the same settings.
        """
        cell = f"evaluation_{len(table.rows):03d}"
        made_from = hashlib.sha256(b"".join(each.tobytes() for each in pixels))
        accuracy = keeper.accuracy(
            cell, lambda: evaluator(*make()), made_from.hexdigest()
        )
        if reference is not None:
            shares = measures.accuracy_by_decile(reference, accuracy)
            more["accuracy_by_decile"] = shares
        table.add(name, ipc, accuracy, **more)

    evaluator = evaluate.make_evaluator(problem)
    sizes = tuple(result.plan.size for result in results)
    # One buffer length for every set, so that nothing is compiled twice.
    total = decoded_count(problem, sizes)
    count = len(results)
    for k in range(1 if s.evaluate.prefixes else count, count + 1):
        ipc = sum(sizes[:k])
        segments = [result.pixels for result in results[:k]]
        decoded = partial(decode_segments, problem, segments, total)
        flops = sum(result.plan.flops for result in results[:k])
        add(method_label(s), ipc, decoded, segments, matching_flops=flops)
        if s.evaluate.baselines:
            add("Random", ipc, partial(evaluate.random_set, problem, ipc, total))
    if s.evaluate.baselines:
        count = len(problem.dataset.train.labels)
        full = partial(evaluate.full_set, problem)
        add("Full", count // problem.dataset.n_classes, full, stored=count)
    return table.rows


def method_label(s: Settings) -> str:
    """How tables name the method: the matcher, or DASM on top of it."""
    name = s.matcher.name.upper()
    if s.dasm.segments == 1:
        return name
    return "DASM" if s.matcher.name == "idc" else f"DASM/{name}"


def _summary(
    problem: Problem,
    results: list[SegmentResult],
    halvings: int,
    rows: list[dict[str, Any]],
    measured: list[dict[str, Any]],
    clock: PhaseClock,
) -> dict[str, Any]:
    s = problem.settings
    return {
        "dataset": problem.dataset.name,
        "seed": s.seed,
        "segments": s.dasm.segments,
        "halvings": halvings,
        "budget": s.dasm.budget,
        "matching_flops": sum(result.plan.flops for result in results),
        **_seconds(results),
        "seconds_measuring": clock.seconds["measure"],
        "seconds_evaluating": clock.seconds["evaluate"],
        "split": s.data.tested_on,
        "evaluation_networks": s.evaluate.networks,
        "evaluation_steps": s.evaluate.steps,
        "table": rows,
        "measures": measured,
    }


def _report(summary: dict[str, Any]) -> str:
    lines = render_table(summary)
    experts = summary["seconds_experts"]
    if summary["halvings"]:
        lines += [
            "",
            f"rollbacks, each with the image rate halved: {summary['halvings']}",
        ]
    lines += [
        "",
        "± is over networks; Random is one draw, nested in the larger ones; FLOPs are",
        "those of matching all segments up to there",
        f"budget {summary['budget']}: {summary['matching_flops']:.3g} matching FLOPs "
        f"in {summary['seconds_matching']:.0f} s, scoring "
        f"{summary['seconds_scoring']:.0f} s,",
        *([f"experts {experts:.0f} s,"] if experts else []),
        f"compiling the update {summary['seconds_compiling']:.0f} s, evaluation "
        f"{summary['seconds_evaluating']:.0f} s, measuring "
        f"{summary['seconds_measuring']:.0f} s",
    ]
    return "\n".join(lines)


def _paths(workdir: Path) -> str:
    names = ["synthetic.npz", "summary.json", "metrics.jsonl", "manifest.json"]
    return written(workdir, *names, "images")
