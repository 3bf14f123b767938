"""Training of networks (evaluation, experts): ours beside an eager PyTorch loop.

    python -m benchmarks.training --cases small,paper --networks 1,3

One recipe on both sides: batches of 64, colour and crop for each image, CutMix in
every second batch. Ours trains one network, or several at once, from scratch: as
evaluation and scoring do, and as experts, whose parameters are brought to the host
before and after. Eager PyTorch trains one after another, so how many there are does not
matter to it.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases, timing
from benchmarks.cases import Case, problem_for
from benchmarks.timing import spread
from dasm_jax import experts, sampling, trainers
from dasm_jax.evaluate import full_set
from dasm_jax.host_memory import keep_freed_memory
from dasm_jax.mesh import take_cores_for_devices
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.training import Recipe

WIDTHS = (26, 26, 24)


class Work(NamedTuple):
    """One way of training, and how much of it a call is."""

    run: Callable[[], object]
    networks: int
    steps: int  # of each network


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table and a JSON line for every case; returns the exit code."""
    options = _parse(argv)
    for case in options.cases:
        line = measure(case, options)
        print(show(line), flush=True)
        timing.give_line(line, options.json)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description="Training of networks."
    )
    cases.add_options(parser)
    parser.add_argument(
        "--networks", default="1,3", help="how many at once, commas between"
    )
    parser.add_argument(
        "--steps", type=timing.positive, default=40, help="SGD steps of a repeat"
    )
    options = cases.parse(parser, argv)
    try:
        options.networks = [timing.positive(n) for n in options.networks.split(",")]
    except argparse.ArgumentTypeError as error:
        parser.error(f"--networks: {error}")
    return options


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One case as a line of results."""
    problem = problem_for(case, options.devices)
    s = problem.settings.matcher.idc.trajectory.recipe  # color, crop and CutMix
    recipe = recipe_from(s, decay_steps=options.steps)
    works = {}
    for count in options.networks:
        works[f"ours {count}"] = make_ours(problem, recipe, count)
        works[f"experts {count}"] = make_experts(problem, recipe, count)
    if not options.no_torch:
        works["torch 1"] = make_torch(problem, recipe)
    first = {name: timing.seconds_of(work.run) for name, work in works.items()}
    calls = {name: work.run for name, work in works.items()}
    rows = {}
    for name, taken in timing.in_turns(calls, options.repeats).items():
        _, count, steps = works[name]
        # Of one network: the time of a call is shared by all that it trains.
        per_step = spread([t / steps / count for t in taken])
        rows[name] = {
            "step_ms": timing.as_json(per_step),
            "steps_per_second": round(1 / per_step.median, 2),
            "networks_per_hour": round(
                3600 / per_step.median / problem.settings.evaluate.steps, 3
            ),
            "first_seconds": round(first[name], 3),
        }
    return {
        "benchmark": "training",
        "case": case.name,
        "sizes": case._asdict(),
        **timing.machine(with_torch=not options.no_torch),
        "repeats": options.repeats,
        "steps": options.steps,
        "steps_of_a_network": problem.settings.evaluate.steps,
        **rows,
    }


def make_ours(problem: Problem, recipe: Recipe, count: int) -> Work:
    """Train ``count`` networks at once from scratch, for the recipe's steps."""
    train = trainers.make_trainer(
        problem.network, recipe, problem.statistics, problem.loop
    )
    keys = jax.random.split(jax.random.key(0), count)
    key = keys[0] if count == 1 else keys
    data, table = full_set(problem)
    table = jax.tree.map(jnp.asarray, table)

    def work() -> None:
        jax.block_until_ready(train(key, data, table))

    return Work(work, count, recipe.decay_steps)


def make_experts(problem: Problem, recipe: Recipe, count: int) -> Work:
    """Train ``count`` experts at once for an epoch, of the recipe's steps if the images
    are enough for them."""
    train = experts.make_expert_trainer(
        problem.network,
        experts.ExpertPlan(count, 1, count, recipe),
        problem.statistics,
        experts.STEP_BY_STEP._replace(mesh=problem.loop.mesh),
    )
    images = len(problem.real.labels)
    steps = max(1, min(recipe.decay_steps, images // recipe.batch))
    table = sampling.prefix_table(min(images, steps * recipe.batch), images)

    def work() -> None:
        train(jax.random.key(0), 1, range(count), problem.real, table)

    return Work(work, count, steps)


def make_torch(problem: Problem, recipe: Recipe) -> Work:
    """Train a network in eager PyTorch, in the faster memory format."""
    from benchmarks import theirs

    theirs.use_all_cores()
    costs, found = {}, {}
    real = theirs.real_images(problem)
    for name in theirs.FORMATS:
        net, rng = theirs.make_net(problem, name), np.random.default_rng(0)
        step = theirs.make_network_step(problem, net, recipe, rng, real)
        step()
        costs[name] = min(timing.seconds_of(step) for _ in range(3))
        found[name] = step
    step = found[min(costs, key=costs.__getitem__)]

    def work() -> None:
        for _ in range(recipe.decay_steps):
            step()

    return Work(work, 1, recipe.decay_steps)


def show(line: dict[str, Any]) -> str:
    """A line of results as a table of at most 80 columns."""
    rows: list[tuple[str, ...]] = [
        (line["case"], "ms per step, network", "steps/s (networks/h)")
    ]
    for name, row in line.items():
        if not isinstance(row, dict) or "step_ms" not in row:
            continue
        side, count = name.split()
        title = "eager PyTorch" if side == "torch" else side
        milliseconds = timing.Spread(**row["step_ms"]).times(1e-3)
        rows.append(
            (
                title if count == "1" else f"{title}, {count} at once",
                timing.milliseconds(milliseconds),
                f"{row['steps_per_second']:,.1f} ({row['networks_per_hour']:,.2f})",
            )
        )
    return timing.table(rows, WIDTHS)


if __name__ == "__main__":
    keep_freed_memory()  # as main.py does; both sides gain
    take_cores_for_devices()  # as main.py does
    sys.exit(main())
