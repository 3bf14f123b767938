"""The row that gradient matching is compared with: BN-statistics recovery (SRe2L).

A network with batch norm is trained on the real data, images are recovered from its
weights and running statistics, and students learn its soft labels of every augmented
view. Those labels are what the comparison is about: their bytes are printed.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dasm_jax import evaluate, export, nets, recovery, sampling, trainers
from dasm_jax.augment import parse_strategy
from dasm_jax.errors import UserError
from dasm_jax.experiments.common import (
    Table,
    finished_summary,
    load_problem,
    recorded,
    render_table,
    shown_again,
    written,
)
from dasm_jax.files import write_json
from dasm_jax.keys import Use, key_for
from dasm_jax.nets import Network
from dasm_jax.parameterization import make_parameterization
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.run_log import RunLog
from dasm_jax.schema import Settings
from dasm_jax.types import ArrayDataset, Params, SyntheticSet
from dasm_jax.workdir import PhaseClock


def run(settings: Settings, workdir: Path) -> str:
    """Run the experiment; returns the table and the paths for the terminal."""
    summary = finished_summary(workdir)
    if summary is not None:
        return f"{shown_again(workdir, summary, _report)}\n{_paths(workdir)}"
    clock = PhaseClock()
    with clock.phase("data"):
        problem = load_problem(settings)
    shape = problem.dataset.image_shape
    with recorded(problem, workdir, clock, 4) as log:
        with clock.phase("teach"):
            teacher, params, accuracy = _teach(problem)
            log.advance(f"teacher: {100 * accuracy:.1f} %", True)
        with clock.phase("recover"):
            synthetic = _recover(problem, teacher, params)
            log.advance("recovered", True)
        export.save_synthetic(
            workdir / "synthetic.npz",
            synthetic,
            # Recovered whole, whatever the factor of distilled sets is.
            parameterization=make_parameterization("single", 1, shape[:2]),
            statistics=problem.statistics,
            class_names=problem.dataset.class_names,
        )
        with clock.phase("evaluate"):
            rows = _evaluate(problem, teacher, params, synthetic, log)
    summary = {
        "dataset": problem.dataset.name,
        "seed": settings.seed,
        "teacher_accuracy": accuracy,
        "seconds_synthesis": clock.seconds["teach"] + clock.seconds["recover"],
        "seconds_evaluating": clock.seconds["evaluate"],
        "split": settings.data.tested_on,
        "evaluation_networks": settings.evaluate.networks,
        "evaluation_steps": settings.evaluate.steps,
        "table": rows,
    }
    write_json(workdir / "summary.json", summary)
    return f"{_report(summary)}\n\n{_paths(workdir)}"


def _teach(problem: Problem) -> tuple[Network, Params, float]:
    s = problem.settings
    architecture = s.network.architecture._replace(norm="batch")
    try:
        network = nets.make_network(
            architecture, problem.dataset.image_shape, problem.dataset.n_classes
        )
    except ValueError as error:
        raise UserError(f"config.{error}; recovery needs batch norms") from None
    recipe = recipe_from(s.evaluate.recipe, s.recover.teacher_steps)
    train = trainers.make_trainer(network, recipe, problem.statistics, problem.loop)
    key = key_for(jax.random.key(s.seed), Use.RECOVERY, 0)
    count = len(problem.dataset.train.labels)
    params = train(key, problem.real, sampling.prefix_table(count, count))[-1]
    accuracy = evaluate.accuracy(
        trainers.make_predictor(network.apply, problem.statistics, problem.loop.mesh),
        params,
        problem.dataset.test,
    )
    return network, params, accuracy


def _recover(problem: Problem, teacher: Network, params: Params) -> SyntheticSet:
    s = problem.settings
    recover = recovery.make_recoverer(
        teacher,
        problem.statistics,
        steps=s.recover.steps,
        learning_rate=s.recover.lr,
        bn_weight=s.recover.bn_weight,
        strategy=parse_strategy(s.recover.augment),
        loop=problem.loop,
    )
    labels = np.repeat(np.arange(problem.dataset.n_classes, dtype=np.int32), s.ipc)
    key = key_for(jax.random.key(s.seed), Use.RECOVERY, 1)
    pixels = recover(key, params, labels, problem.dataset.image_shape)
    return SyntheticSet(np.asarray(pixels), labels, np.ones(len(labels), np.int32))


def _evaluate(
    problem: Problem,
    teacher: Network,
    params: Params,
    synthetic: SyntheticSet,
    log: RunLog,
) -> list[dict[str, Any]]:
    s = problem.settings
    count = len(synthetic.labels)
    data = jax.device_put(ArrayDataset(synthetic.pixels, synthetic.labels))
    table = sampling.prefix_table(count, count)
    labels = recovery.make_teacher_labels(teacher, params, s.recover.temperature)
    # A batch goes round where there are fewer images; every view has its own label.
    views = s.evaluate.steps * s.evaluate.recipe.batch
    label_bytes = recovery.label_bytes(views, problem.dataset.n_classes)
    rows = Table(problem, log)
    soft = evaluate.make_evaluator(problem, soft_labels=labels)(data, table)
    rows.add("soft labels", s.ipc, soft, label_bytes=label_bytes)
    hard = evaluate.make_evaluator(problem)(data, table)
    rows.add("hard labels", s.ipc, hard, label_bytes=count)
    return rows.rows


def _report(summary: dict[str, Any]) -> str:
    lines = [*render_table(summary), "", "stored bytes:"]
    for row in summary["table"]:
        lines.append(
            f"  {row['set']}: images {row['stored_bytes']:,}, "
            f"labels {row['label_bytes']:,}"
        )
    lines.append(f"teacher with batch norm {100 * summary['teacher_accuracy']:.1f}")
    return "\n".join(lines)


def _paths(workdir: Path) -> str:
    return written(workdir, "synthetic.npz", "summary.json", "manifest.json")
