"""Sets from disk under one recipe: networks × augmentations, with Random and Full.

Every cell is kept as soon as it is finished, under everything it depends on: started
again, a run continues, and its table may grow. Random and Full are kept in the cache of
the machine too, for every other run under the same recipe.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dasm_jax import __version__, evaluate, mesh, nets, records, source
from dasm_jax.data.cache import DAY, default_dir
from dasm_jax.errors import CannotRead, UserError
from dasm_jax.evaluate import Accuracy, Evaluator
from dasm_jax.experiments.common import failed, load_problem, percent, recorded, written
from dasm_jax.experiments.evaluate_table import add_scores, markdown, render
from dasm_jax.files import remove_unfinished, write_all, write_json
from dasm_jax.problem import Problem, network_for
from dasm_jax.recipes import recipe_from, under_augmentation
from dasm_jax.run_log import RunLog
from dasm_jax.schema import EvaluateSettings, Settings
from dasm_jax.synthetic_files import SyntheticFile, find_sets, load_set
from dasm_jax.training import Recipe
from dasm_jax.workdir import PhaseClock, highest_peak, peak_memory

FORMAT = 1  # part of what a kept result depends on


# The modules that decide an accuracy, beside all of nets/.
DECIDING = (
    "augment",
    "coreset",
    "evaluate",
    "keys",
    "loops",
    "mesh",
    "recipes",
    "sampling",
    "trainers",
    "training",
    "whitening",
)


@functools.cache
def source_hash(package: Path) -> str:
    """Sha256 of the source files that decide an accuracy.

    Kept results outlive the code that made them, Random and Full for all runs of the
    machine: without this a set that is trained by new code would be compared with
    baselines that were trained by old code, as the version changes with releases only.
    """
    files = [package / f"{name}.py" for name in DECIDING]
    files += sorted((package / "nets").glob("*.py"))
    return source.digest(package, files)


class Images(NamedTuple):
    """What a cell trains on, and for how long."""

    kind: str  # "set", "Random" or "Full"
    sets: tuple[int, ...]  # the sets it is, or stands beside, counted from 1
    steps: int
    counts: tuple[int, ...] = ()  # of Random: images of each class


class Cell(NamedTuple):
    """One accuracy of the table."""

    architecture: str
    augmentation: str
    images: Images


def run(settings: Settings, workdir: Path) -> str:
    """Evaluate what is not kept yet; returns the table and the paths for the terminal.

    Raises:
      UserError: a set cannot be read or is another dataset's, a network does not fit.
    """
    paths = find_sets(settings.evaluate.synthetic)
    clock = PhaseClock()
    with clock.phase("data"):
        problem = load_problem(settings)
        sets = [load_set(p, problem.dataset, problem.statistics) for p in paths]
        images = images_of(problem, sets)
    cells = [
        Cell(architecture, augmentation, each)
        for architecture in architectures_of(settings)
        for augmentation in settings.evaluate.augmentations
        for each in images
    ]
    for architecture in architectures_of(settings):
        network_for(problem, architecture)  # what is wrong with one is said now
    _refuse_twins(settings)
    with recorded(problem, workdir, clock, len(cells)) as log:
        runner = _Runner(problem, sets, workdir / "cells", log)
        with clock.phase("evaluate"):
            rows = [runner.row(cell) for cell in cells]
    add_scores(rows)
    summary = _summary(problem, sets, rows)
    write_json(workdir / "summary.json", summary)
    write_all(workdir, {"table.md": markdown(summary).encode()})
    names = ["table.md", "summary.json", "metrics.jsonl", "manifest.json", "cells"]
    return f"{render(summary)}\n\n{written(workdir, *names)}"


def architectures_of(settings: Settings) -> tuple[str, ...]:
    """The networks of the table; none named means that of the config."""
    return settings.evaluate.architectures or (settings.network.name,)


def _refuse_twins(settings: Settings) -> None:
    """Two names may be of one network, whose rows would be trained twice."""
    names: dict[nets.Architecture, str] = {}
    for text in architectures_of(settings):
        network = nets.parse_architecture(text, settings.network.architecture)
        if network in names:
            raise UserError(
                f"config.evaluate.architectures: {names[network]!r} and {text!r} are "
                "one network; name every network once"
            )
        names[network] = text


def steps_for(settings: EvaluateSettings, found: SyntheticFile) -> int:
    """SGD steps of every network on a set, and on Random and Full beside it.

    An epoch is a pass of the sampler: as many whole batches as there are decoded
    images, at least one. At the same compute they are divided by f², which is how many
    images a stored one is decoded to.
    """
    if not settings.epochs:
        return settings.steps
    passes = max(1, len(found.decoded.labels) // settings.recipe.batch)
    share = found.factor**2 if settings.same_compute else 1
    return max(1, round(settings.epochs * passes / share))


def images_of(problem: Problem, sets: list[SyntheticFile]) -> list[Images]:
    """Every set, one Random for all of equal size and steps, one Full for equal steps.

    Raises:
      UserError: a set stores more images of a class than there are real ones.
    """
    s = problem.settings.evaluate
    result = [
        Images("set", (number,), steps_for(s, found))
        for number, found in enumerate(sets, 1)
    ]
    if not s.baselines:
        return result
    randoms: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    fulls: dict[int, list[int]] = {}
    for (_, (number,), steps, _), found in zip(result, sets):
        for label, count in enumerate(found.stored_counts):
            real = len(problem.class_indices[label])
            if count > real:
                raise UserError(
                    f"{found.path} stores {count} images of class "
                    f"{problem.dataset.class_names[label]!r}, the dataset has {real}: "
                    "there is no Random of as many; set config.evaluate.baselines=False"
                )
        randoms.setdefault((steps, found.stored_counts), []).append(number)
        fulls.setdefault(steps, []).append(number)
    for (steps, counts), numbers in randoms.items():
        result.append(Images("Random", tuple(numbers), steps, counts))
    for steps, numbers in fulls.items():
        result.append(Images("Full", tuple(numbers), steps))
    return result


class _Runner:
    """Turns cells into rows: kept ones are read, the others evaluated."""

    def __init__(
        self, problem: Problem, sets: list[SyntheticFile], folder: Path, log: RunLog
    ):
        self._problem, self._sets, self._log = problem, sets, log
        self._folder = folder
        # One buffer length for all, so that nothing is compiled twice.
        self._total = max(len(found.decoded.labels) for found in sets)
        self._total = max(self._total, *(sum(found.stored_counts) for found in sets))
        self._evaluator: tuple[Any, Evaluator] | None = None
        self._cache_works = True

    def row(self, cell: Cell) -> dict[str, Any]:
        """The row of a cell, logged."""
        recipe = self._recipe(cell)
        identity = self._identity(cell, recipe)
        folders = list(self._folders(cell.images.kind))
        kept = (self._find(folder, identity) for folder in folders)
        result: dict[str, Any] | None = next(filter(None, kept), None)
        reused = result is not None
        if result is None:
            began = time.perf_counter()
            try:
                accuracy = self._evaluate(cell, recipe)
            except UserError as error:
                result = failed(error)
            else:
                result = {
                    "networks": list(accuracy.networks),
                    "best": list(accuracy.best),
                    "wall_seconds": round(time.perf_counter() - began, 3),
                    "peak_bytes": highest_peak(peak_memory()),
                }
        if "failure" not in result:
            for folder in folders:
                self._keep(folder, identity, result)
            networks_of = Accuracy(tuple(result["networks"]))
            best = Accuracy(tuple(result["best"]))
            result |= {"mean": networks_of.mean, "std": networks_of.std}
            result |= {"best_mean": best.mean, "best_std": best.std}
        row = {
            "architecture": cell.architecture,
            "augmentation": cell.augmentation,
            "images": cell.images.kind,
            "sets": list(cell.images.sets),
            "steps": cell.images.steps,
            "stored_bytes": self._stored_bytes(cell.images),
            "reused": reused,
            **result,
        }
        self._log.metrics("evaluation", **row)
        shown = row.get("failure") or f"{percent(row['mean'], row['std'])} %"
        name = f"{cell.architecture}, {cell.augmentation}, {cell.images.kind}"
        self._log.advance(f"{name}: {shown}", True)
        return row

    def _folders(self, kind: str) -> Iterator[Path]:
        yield self._folder
        # Several processes would look at it at different moments, and decide otherwise.
        if kind != "set" and jax.process_count() == 1:
            yield default_dir() / "baselines"

    def _find(self, folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
        networks = self._problem.settings.evaluate.networks
        try:
            return records.find(folder, identity, networks)
        except CannotRead:
            if folder == self._folder:
                raise
            return None  # nobody's result is lost with the cache

    def _keep(self, folder: Path, identity: dict[str, Any], result: dict) -> None:
        if folder != self._folder and not self._cache_works:
            return
        if self._find(folder, identity) is not None:
            return
        try:
            if folder != self._folder:
                remove_unfinished(folder, untouched_for=DAY)
            records.keep(folder, identity, result)
        except UserError as error:
            if folder == self._folder:
                raise
            self._cache_works = False
            self._log.line(f"Random and Full are not kept for other runs: {error}")

    def _recipe(self, cell: Cell) -> Recipe:
        s = self._problem.settings.evaluate
        recipe = under_augmentation(s.recipe, cell.augmentation)
        return recipe_from(recipe, cell.images.steps)

    def _identity(self, cell: Cell, recipe: Recipe) -> dict[str, Any]:
        """All that an accuracy depends on."""
        problem, images = self._problem, cell.images
        s, platform = problem.settings, jax.default_backend()
        devices = mesh.count(problem.loop.mesh)
        trained_on: dict[str, Any] = {"kind": images.kind}
        if images.kind == "set":
            trained_on["hash"] = self._sets[images.sets[0] - 1].content_hash
        elif images.kind == "Random":
            trained_on |= {"counts": images.counts, "seed": s.seed}
        return {
            "format": FORMAT,
            "versions": {"dasm_jax": __version__, "jax": jax.__version__},
            "sources": source_hash(source.PACKAGE),
            "device": [platform, jax.devices()[0].device_kind, devices],
            "data": problem.dataset.content_hash,
            "normalization": [*problem.statistics.mean, *problem.statistics.std],
            "whitened": problem.statistics.whitening is not None,
            "images": trained_on,
            "architecture": cell.architecture,
            "network": dataclasses.asdict(s.network),
            "recipe": recipe._asdict(),
            "seed": s.evaluate.seed,
            "networks": s.evaluate.networks,
            "at_once": evaluate.networks_at_once(s.evaluate, platform, devices),
            "looks": s.evaluate.looks,
        }

    def _evaluate(self, cell: Cell, recipe: Recipe) -> Accuracy:
        problem, images = self._problem, cell.images
        made_for = (cell.architecture, recipe)
        if self._evaluator is None or self._evaluator[0] != made_for:
            evaluator = evaluate.make_evaluator(
                problem,
                network=network_for(problem, cell.architecture),
                recipe=recipe,
                looks=problem.settings.evaluate.looks,
            )
            self._evaluator = made_for, evaluator
        if images.kind == "Full":
            data = evaluate.full_set(problem)
        elif images.kind == "Random":
            data = evaluate.random_set(problem, images.counts, self._total)
        else:
            decoded = self._sets[images.sets[0] - 1].decoded
            data = evaluate.in_buffer(decoded, self._total)
        return self._evaluator[1](*data)

    def _stored_bytes(self, images: Images) -> int:
        if images.kind == "Full":
            return self._problem.dataset.train.images.size
        return self._sets[images.sets[0] - 1].stored_bytes


def _summary(
    problem: Problem, sets: list[SyntheticFile], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    s = problem.settings.evaluate
    recipes = {name: under_augmentation(s.recipe, name) for name in s.augmentations}
    return {
        "dataset": problem.dataset.name,
        "split": problem.settings.data.tested_on,
        "evaluation_networks": s.networks,
        "looks": s.looks,
        "sets": [
            {
                "path": str(found.path),
                "hash": found.content_hash,
                "stored_images": sum(found.stored_counts),
                "stored_bytes": found.stored_bytes,
                "decoded_images": len(found.decoded.labels),
                "factor": found.factor,
                "steps": steps_for(s, found),
            }
            for found in sets
        ],
        "recipes": {name: dataclasses.asdict(r) for name, r in recipes.items()},
        "table": rows,
    }
