"""Cells of a table: sets that are made once, kept, and evaluated side by side.

Every set, and every accuracy, is a file of its own under the workdir: a run that was
interrupted goes on where it stopped, and one that asks for more makes only what is
missing. What a file depends on is kept in it, so that none is taken for another.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dasm_jax import evaluate, hosts
from dasm_jax.errors import NonFiniteError, UserError
from dasm_jax.evaluate import Accuracy, Evaluator
from dasm_jax.experiments import cell_files, sets
from dasm_jax.experiments.cell_files import ACCURACY, COST, digest, kept_in
from dasm_jax.experiments.common import accounted, check_fit, failed, percent
from dasm_jax.experiments.keeper import discard
from dasm_jax.experiments.memory import make_room_for_programs
from dasm_jax.experiments.rollback import log_rollback
from dasm_jax.files import cannot_write, make_folder, read_record, write_json
from dasm_jax.parameterization import Parameterization, make_parameterization
from dasm_jax.problem import Problem, make_problem
from dasm_jax.run_log import LogPosition, RunLog
from dasm_jax.schedule import segment_sizes
from dasm_jax.schema import Settings
from dasm_jax.source import RESULTS
from dasm_jax.types import ArrayDataset, Dataset
from dasm_jax.workdir import PhaseClock, claim_workdir, identity, provenance

FULL = "full"


class Cell(NamedTuple):
    """One set, evaluated."""

    method: str
    ipc: int  # 0 for the full set
    seed: int
    made_as: int  # ipc of the run that it is a prefix of, its own where it is whole

    @property
    def name(self) -> str:
        """Of its files. A prefix of another run is another set."""
        size = f"_ipc{self.ipc}" if self.ipc else ""
        whole = f"of{self.made_as}" if self.made_as != self.ipc else ""
        return f"{self.method}{size}{whole}_seed{self.seed}"


class Source(NamedTuple):
    """One synthesis or selection, and the cells that it gives."""

    settings: Settings | None  # of its matcher; None where real images are taken
    cells: tuple[Cell, ...]  # of one seed; the last is whole, the others its prefixes

    @property
    def whole(self) -> Cell:
        """The cell that has all the images."""
        return self.cells[-1]


def full_source(seed: int) -> Source:
    """All real images."""
    return Source(None, (Cell(FULL, 0, seed, 0),))


Result = dict[str, Any]  # of a cell: what its file holds, or a failure


def fill(
    settings: Settings,
    workdir: Path,
    dataset: Dataset,
    sources: list[Source],
    clock: PhaseClock,
) -> dict[Cell, Result]:
    """Make and evaluate what is missing, seed by seed.

    Args:
      settings: of the experiment; what is evaluated and selected is under these.
      workdir: an open one, which they claim.
      dataset: the real images.
      sources: of all cells, one seed after another.
      clock: told of the time it takes.

    Raises:
      UserError: what is there is of other images, or nothing can be written.
    """
    for name in ("cells", "sets"):
        make_folder(workdir / name)
    claim_workdir(workdir, settings)
    log = RunLog(
        workdir, sum(len(source.cells) for source in sources), after=LogPosition()
    )
    results: dict[Cell, Result] = {}
    with accounted(log, workdir, dataset.content_hash, clock):
        for seed in dict.fromkeys(source.whole.seed for source in sources):
            own = [source for source in sources if source.whole.seed == seed]
            bench = _Bench(settings, dataset, seed, own, workdir, clock, log)
            for source in own:
                for cell in source.cells:
                    results[cell] = bench.result(source, cell)
                    log.advance(f"{cell.name}: {_text(results[cell])}", True)
                # Not sooner: whatever a kill leaves is discarded the next time.
                if not any("failure" in results[cell] for cell in source.cells):
                    discard(bench.folder(source))
    return results


def check_sources(settings: Settings, sources: list[Source], dataset: Dataset) -> None:
    """Say what is wrong with a run before the first one begins.

    Raises:
      UserError: it is.
    """
    for made, whole in {(source.settings, source.whole.ipc) for source in sources}:
        if whole:
            real = made or sets.settings_for(settings, "random", whole, 0)
            check_fit(real, dataset)
        if made:
            hosts.check(made)  # before the first one is made


def failures_of(results: dict[Cell, Result]) -> list[str]:
    """A line for every cell that failed."""
    return [
        f"{cell.name}: {result['failure']}"
        for cell, result in results.items()
        if "failure" in result
    ]


def check_results(results: dict[Cell, Result], what: str) -> None:
    """See that there is something to show.

    Raises:
      UserError: every cell failed; names ``what``.
    """
    if all("failure" in result for result in results.values()):
        first = next(iter(results.values()))["failure"]
        raise UserError(f"every cell of the {what} failed, the first one: {first}")


class _Bench:
    """Everything that the cells of one seed share, made when it is first needed."""

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        seed: int,
        sources: list[Source],
        workdir: Path,
        clock: PhaseClock,
        log: RunLog,
    ):
        self._dataset, self._workdir = dataset, workdir
        self._clock, self._log = clock, log
        largest = max(1, *(source.whole.ipc for source in sources))
        self._problem: Problem = make_problem(
            sets.settings_for(settings, "random", largest, seed), dataset
        )
        # Images of the largest decoded set: one buffer, so one compiled trainer.
        self._room = max(_decoded_images(source, dataset) for source in sources)
        self._select: Callable[[str, int], list[sets.Part]] = sets.make_selection(
            self._problem
        )
        self._evaluator: Evaluator | None = None

    def result(self, source: Source, cell: Cell) -> Result:
        """What is known of a cell: read, or made and kept, or why it failed.

        Raises:
          UserError: what is there is of other data, or nothing can be written.
        """
        path = self._accuracy(cell)
        origin = self._origin(source)
        kept = kept_in(path, ACCURACY, origin, self._log.line)
        if kept is not None:
            return kept
        make_room_for_programs()
        try:
            full = cell.method == FULL
            result = self._full() if full else self._of_set(source, cell, origin)
        except (UserError, NonFiniteError) as error:
            return failed(error)
        result |= origin
        # Logged first: once the file is there nothing of the cell is written again.
        self._log.drop("cell", cell=cell.name)
        self._log.metrics("cell", cell=cell.name, **result)
        write_json(path, result)
        return result

    def folder(self, source: Source) -> Path:
        """Of an unfinished run, which the same settings alone go on with."""
        name = f"{source.whole.name}_{self._origin(source)['settings']}"
        return self._workdir / "runs" / name

    def _origin(self, source: Source) -> dict[str, str]:
        """What a file of the source depends on, beside its name."""
        found = identity(source.settings or self._problem.settings)
        found.pop("measure")  # looks on
        if source.settings is None:
            for name in ("ipc", "matcher", "dasm", "synthetic"):
                found.pop(name)
            found["coreset"] = dataclasses.asdict(self._problem.settings.coreset)
        return {
            "settings": digest({**found, "results": RESULTS}),
            "data_hash": self._dataset.content_hash,
        }

    def _of_set(self, source: Source, cell: Cell, origin: dict[str, str]) -> Result:
        stored = self._stored(cell, origin)
        if stored is None:
            # None is written over that may be whole.
            there = {other for other in source.cells if self._stored(other, origin)}
            parts = None
            if source.whole in there:  # sizes that were asked for later
                parts = self._kept_parts(source)
            if parts is None:
                parts, there = self._make(source), set()
            self._keep(source, parts, origin, set(source.cells) - there)
            stored = self._stored(cell, origin)
        assert stored is not None, f"{self._facts(cell)} was just written"
        facts, decoded = stored
        data = evaluate.in_buffer(decoded, self._room)
        return {**{name: facts[name] for name in COST}, **self._evaluated(*data)}

    def _stored(
        self, cell: Cell, origin: dict[str, str]
    ) -> tuple[dict[str, Any], ArrayDataset] | None:
        """Facts and images of a set; None where it has to be made, or made again.

        Raises:
          CannotRead: it may be whole.
          UserError: it is of other images.
        """
        path = self._facts(cell)
        facts = kept_in(path, COST, origin, self._log.line)
        if facts is None:
            return None
        npz = path.with_suffix(".npz")
        decoded = sets.load_decoded(npz, self._problem, self._room)
        return None if decoded is None else (facts, decoded)

    def _full(self) -> Result:
        return {
            **self._evaluated(*evaluate.full_set(self._problem)),
            "matching_flops": 0.0,
            "seconds_making": 0.0,
        }

    def _evaluated(self, data: ArrayDataset, table: Any) -> Result:
        began = time.perf_counter()
        with self._clock.phase("evaluate"):
            if self._evaluator is None:
                self._evaluator = evaluate.make_evaluator(self._problem)
            accuracy: Accuracy = self._evaluator(data, table)
        return {
            "mean": accuracy.mean,
            "std": accuracy.std,
            "networks": list(accuracy.networks),
            "seconds_evaluating": time.perf_counter() - began,
            **provenance(),
        }

    def _accuracy(self, cell: Cell) -> Path:
        return self._workdir / "cells" / f"{cell.name}.json"

    def _facts(self, cell: Cell) -> Path:
        """Written after the set of a cell: where it is, the set is whole."""
        return self._workdir / "sets" / f"{cell.name}.json"

    def _kept_parts(self, source: Source) -> list[sets.Part] | None:
        """Segments of a set that is there; None where its file does not say enough."""
        path, s = self._facts(source.whole), source.settings
        costs = cell_files.spent_on_segments(read_record(path))
        if s is None or costs is None:
            return None
        sizes = segment_sizes(source.whole.ipc, s.dasm.segments)
        npz = path.with_suffix(".npz")
        return sets.load_parts(npz, sizes, self._dataset.n_classes, costs)

    def _make(self, source: Source) -> list[sets.Part]:
        """The segments of the whole set of a source."""
        with self._clock.phase("make"):
            if source.settings is None:
                return self._select(source.whole.method, source.whole.ipc)
            parts, measured = sets.distil(
                source.settings,
                self._dataset,
                self.folder(source),
                self._log.line,
                partial(log_rollback, self._log, cell=source.whole.name),
            )
        # A kill may have come between them and the facts.
        self._log.drop("measures", cell=source.whole.name)
        for record in measured:
            self._log.metrics("measures", cell=source.whole.name, **record)
        return parts

    def _keep(
        self,
        source: Source,
        parts: list[sets.Part],
        origin: dict[str, str],
        cells: set[Cell],
    ) -> None:
        """Write the sets of these cells of a source, each with what it cost."""
        for cell in source.cells:
            if cell not in cells:
                continue
            try:  # an accuracy is of the set beside it
                self._accuracy(cell).unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(self._accuracy(cell), error) from error
            segments = sets.prefix(parts, cell.ipc)
            facts = self._facts(cell)
            npz = facts.with_suffix(".npz")
            sets.save(npz, self._problem, segments, _formation(source, self._dataset))
            spent = cell_files.spent_on(
                [part.flops for part in segments], [part.seconds for part in segments]
            )
            write_json(facts, {**spent, **origin})


def _formation(source: Source, dataset: Dataset) -> Parameterization:
    """How the stored images are decoded; real ones are what they are."""
    s, shape = source.settings, dataset.image_shape[:2]
    if s is None:
        return make_parameterization("single", 1, shape)
    return make_parameterization(s.synthetic.formation, s.factor, shape)


def _decoded_images(source: Source, dataset: Dataset) -> int:
    s, ipc = source.settings, source.whole.ipc
    formation = _formation(source, dataset)
    sizes = segment_sizes(ipc, s.dasm.segments if s else 1)
    per_class = sum(len(formation.tiles(n).sources) for n in sizes if n)
    return per_class * dataset.n_classes


def _text(result: Result) -> str:
    if "failure" in result:
        return result["failure"]
    return f"{percent(result['mean'], result['std'])} %"
