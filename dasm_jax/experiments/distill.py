"""Distil a dataset, evaluate every prefix, compare with Random and Full."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dasm_jax import evaluate, export, figures
from dasm_jax.budget import SegmentPlan
from dasm_jax.dasm import (
    Progress,
    SegmentResult,
    plan_segments,
    run_dasm,
    synthetic_set,
)
from dasm_jax.data import load_dataset
from dasm_jax.errors import NonFiniteError
from dasm_jax.evaluate import Accuracy
from dasm_jax.pools import decile_shares
from dasm_jax.problem import Problem, decode_segments, decoded_count, make_problem
from dasm_jax.settings import Settings, check_against_data
from dasm_jax.types import SyntheticSet
from dasm_jax.workdir import (
    PhaseClock,
    RunLog,
    claim_workdir,
    manifest,
    write_json,
)


def run(settings: Settings, workdir: Path) -> str:
    """Run the experiment; returns the table and the paths for the terminal.

    A workdir that holds a finished run of these settings is left as it is.
    """
    summary_file = workdir / "summary.json"
    if summary_file.exists():
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        note = "this run was finished before; remove its folder to run it again"
        return f"{_table(summary)}\n\n{note}\n{_paths(workdir)}"
    clock = PhaseClock()
    with clock.phase("data"):
        problem = _load(settings)
    with clock.phase("plan"):
        plans = plan_segments(problem)
    claim_workdir(workdir, settings)
    log = RunLog(workdir, _units(plans))
    try:
        with clock.phase("distill"):
            results = _distill(problem, plans, workdir, log)
        with clock.phase("evaluate"):
            rows = _evaluate(problem, results, log)
    finally:
        log.close()
        write_json(
            workdir / "manifest.json",
            manifest(problem.dataset.content_hash, clock.seconds),
        )
    summary = _summary(problem, results, rows, clock)
    write_json(summary_file, summary)
    return f"{_table(summary)}\n\n{_paths(workdir)}"


def _load(settings: Settings) -> Problem:
    s = settings.data
    dataset = load_dataset(
        s.source,
        s.name,
        data_dir=s.data_dir or None,
        train_split=s.train_split,
        test_split=s.test_split,
        test_share=s.test_share,
        downsample=s.downsample,
    )
    counts = np.bincount(dataset.train.labels, minlength=dataset.n_classes)
    check_against_data(settings, counts.tolist(), dataset.image_shape)
    return make_problem(settings, dataset)


def _units(plans: list[SegmentPlan]) -> int:
    """Steps of the progress bar: outer iterations, and sets to evaluate."""
    return sum(plan.outer_iterations for plan in plans) + 2 * len(plans) + 1


def _distill(
    problem: Problem, plans: list[SegmentPlan], workdir: Path, log: RunLog
) -> list[SegmentResult]:
    every = problem.settings.log.every
    finished: list[np.ndarray] = []

    def on_outer(progress: Progress) -> None:
        plan, distances = progress.plan, progress.distances
        log.metrics(
            "outer",
            segment=plan.segment,
            outer=progress.outer,
            distance=float(distances.mean()),
            distance_per_class=distances.mean(axis=0).tolist(),
            device_seconds=progress.seconds,
        )
        text = (
            f"segment {plan.segment}/{problem.settings.dasm.segments} outer "
            f"{progress.outer}/{plan.outer_iterations} distance {distances.mean():.4g}"
        )
        log.advance(text, progress.outer % every == 0)

    def on_segment(result: SegmentResult) -> None:
        finished.append(result.pixels)
        _save(problem, workdir, synthetic_set(finished))
        shares = decile_shares(problem, result.pool)
        log.metrics("segment", **_segment_record(problem, result, shares))
        figures.save_segment_grid(
            workdir / "images" / f"segment_{result.plan.segment:02d}.png",
            result.pixels,
            problem.dataset.class_names,
            f"{problem.dataset.name}: segment {result.plan.segment} of "
            f"{problem.settings.dasm.segments}, {result.plan.size} images per class",
            shares,
            _describe_pool(problem, result),
        )

    try:
        return run_dasm(problem, plans, on_outer=on_outer, on_segment=on_segment)
    except NonFiniteError as error:
        _save(problem, workdir, error.last_good)
        log.line(str(error))
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


def _segment_record(
    problem: Problem, result: SegmentResult, shares: np.ndarray | None
) -> dict[str, Any]:
    plan, difficulty = result.plan, result.pool.difficulty
    record: dict[str, Any] = {
        "segment": plan.segment,
        "size": plan.size,
        "outer_iterations": plan.outer_iterations,
        "learning_rate": plan.learning_rate,
        "matching_flops": _flops(problem, result),
        "seconds_matching": result.seconds_matching,
        "seconds_scoring": result.seconds_scoring,
        "seconds_compiling": result.seconds_compiling,
        "pool_sizes": [len(members) for members in result.pool.members],
    }
    if difficulty is not None and shares is not None:
        members = np.concatenate(result.pool.members)
        record |= {
            "score_mean_all": float(difficulty.scores.mean()),
            "score_mean_pool": float(difficulty.scores[members].mean()),
            "learned_share": float(difficulty.learned.mean()),
            "pool_share_by_difficulty_decile": shares.round(4).tolist(),
        }
    return record


def _flops(problem: Problem, result: SegmentResult) -> float:
    steps = result.plan.outer_iterations * problem.settings.loop.inner
    return steps * result.plan.flops_per_step


def _evaluate(
    problem: Problem, results: list[SegmentResult], log: RunLog
) -> list[dict[str, Any]]:
    s = problem.settings
    evaluator = evaluate.make_evaluator(problem)
    sizes = tuple(result.plan.size for result in results)
    # One buffer length for every set, so that nothing is compiled twice.
    total = decoded_count(problem, sizes)
    method = "DASM" if s.dasm.segments > 1 else "IDC"
    rows = []

    def add(name: str, ipc: int, stored: int, accuracy: Accuracy) -> None:
        row = {
            "set": name,
            "ipc": ipc,
            "stored_bytes": stored,
            "mean": accuracy.mean,
            "std": accuracy.std,
            "networks": list(accuracy.networks),
        }
        rows.append(row)
        log.metrics("evaluation", **row)
        log.advance(f"{name} {ipc}: {100 * accuracy.mean:.1f} %", True)

    # Bytes as they would be shipped: one per value.
    image_bytes = int(np.prod(problem.dataset.image_shape))
    for k in range(1, len(results) + 1):
        ipc = sum(sizes[:k])
        stored = ipc * problem.dataset.n_classes * image_bytes
        segments = [result.pixels for result in results[:k]]
        distilled = evaluator(*decode_segments(problem, segments, total))
        add(method, ipc, stored, distilled)
        add("Random", ipc, stored, evaluator(*evaluate.random_set(problem, ipc, total)))
    count = len(problem.dataset.train.labels)
    full = evaluator(*evaluate.full_set(problem))
    add("Full", count // problem.dataset.n_classes, count * image_bytes, full)
    return rows


def _summary(
    problem: Problem,
    results: list[SegmentResult],
    rows: list[dict[str, Any]],
    clock: PhaseClock,
) -> dict[str, Any]:
    s = problem.settings
    return {
        "dataset": problem.dataset.name,
        "seed": s.seed,
        "segments": s.dasm.segments,
        "budget": s.dasm.budget,
        "matching_flops": sum(_flops(problem, r) for r in results),
        "seconds_matching": sum(r.seconds_matching for r in results),
        "seconds_scoring": sum(r.seconds_scoring for r in results),
        "seconds_compiling": sum(r.seconds_compiling for r in results),
        "seconds_evaluating": clock.seconds["evaluate"],
        "evaluation_networks": s.evaluate.networks,
        "evaluation_steps": s.evaluate.steps,
        "table": rows,
    }


def _table(summary: dict[str, Any]) -> str:
    head = (
        f"{summary['dataset']}: test accuracy in %, mean ± std of "
        f"{summary['evaluation_networks']} networks, "
        f"{summary['evaluation_steps']} steps each"
    )
    by_ipc: dict[int, dict[str, str]] = {}
    for row in summary["table"]:
        cell = f"{100 * row['mean']:.1f}"
        if row["std"] is not None:
            cell += f" ± {100 * row['std']:.1f}"
        by_ipc.setdefault(row["ipc"], {})[row["set"]] = cell
    methods = list(dict.fromkeys(row["set"] for row in summary["table"]))
    lines = [head, "", "  ipc  " + "".join(f"{name:>14}" for name in methods)]
    for ipc, cells in by_ipc.items():
        label = "all" if "Full" in cells else str(ipc)
        row = "".join(f"{cells.get(name, ''):>14}" for name in methods)
        lines.append(f"{label:>5}  {row}".rstrip())
    lines += [
        "",
        "± is over networks; Random is one draw, nested in the larger ones",
        f"budget {summary['budget']}: {summary['matching_flops']:.3g} matching FLOPs "
        f"in {summary['seconds_matching']:.0f} s, scoring "
        f"{summary['seconds_scoring']:.0f} s,",
        f"compiling the update {summary['seconds_compiling']:.0f} s, evaluation "
        f"{summary['seconds_evaluating']:.0f} s",
    ]
    return "\n".join(lines)


def _paths(workdir: Path) -> str:
    shown = workdir
    if workdir.is_relative_to(Path.cwd()):
        shown = workdir.relative_to(Path.cwd())
    names = ["synthetic.npz", "summary.json", "metrics.jsonl", "manifest.json"]
    files = [shown / name for name in names] + [shown / "images"]
    return "wrote " + "\n      ".join(str(file) for file in files)
