"""Accuracy over images per class (the paper's Figure 1): methods × sizes × seeds.

Every set, and every accuracy, is a file of its own under the workdir: a run that was
interrupted goes on where it stopped, and one with more sizes, seeds or methods makes
only what is missing.
"""

import csv
import io
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dasm_jax import evaluate, records
from dasm_jax.errors import CannotWrite, NonFiniteError, UserError
from dasm_jax.evaluate import Accuracy, Evaluator
from dasm_jax.experiments import sets
from dasm_jax.experiments.common import (
    accounted,
    check_fit,
    load_data,
    percent,
    written,
)
from dasm_jax.experiments.curve_table import (
    FULL,
    Entry,
    entries_of,
    render_markdown,
    render_text,
)
from dasm_jax.experiments.document import as_text, check_document, renew_section
from dasm_jax.experiments.keeper import discard
from dasm_jax.experiments.rollback import log_rollback
from dasm_jax.files import read_json, read_record, write_atomically, write_json
from dasm_jax.problem import Problem, decoded_count, make_problem
from dasm_jax.run_log import LogPosition, RunLog
from dasm_jax.schedule import segment_sizes
from dasm_jax.schema import Settings
from dasm_jax.types import ArrayDataset, Dataset
from dasm_jax.workdir import PhaseClock, claim_workdir, provenance

# What the files of a set and of an accuracy must hold.
COST = ("matching_flops", "seconds_making")
AMOUNTS = (*COST, "mean", "std")
ACCURACY = (*AMOUNTS, "networks", "commit", "date", "device")


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


def cells_of(settings: Settings) -> list[Cell]:
    """Every cell, in the order in which they are made."""
    c, cells = settings.curve, []
    for seed in c.seeds:
        for method in c.methods:
            runs = sets.runs_for(method, c.ipcs, settings.dasm.segments)
            made = {ipc: run.ipc for run in runs for ipc in run.prefixes}
            cells += [Cell(method, ipc, seed, made[ipc]) for ipc in sorted(made)]
        cells.append(Cell(FULL, 0, seed, 0))
    return cells


def run(settings: Settings, workdir: Path) -> str:
    """Make and evaluate what is missing; returns the table for the terminal.

    Raises:
      UserError: settings and data do not fit, or something cannot be written.
    """
    c, clock = settings.curve, PhaseClock()
    with clock.phase("data"):
        dataset = load_data(settings)
    # What is wrong with a run is said before the first one begins.
    for method in c.methods:
        for made in sets.runs_for(method, c.ipcs, settings.dasm.segments):
            check_fit(sets.settings_for(settings, method, made.ipc, 0), dataset)
    document = Path(c.document).expanduser()
    if c.document:
        check_document(document, "config.curve.document")
    for name in ("cells", "sets"):
        (workdir / name).mkdir(exist_ok=True)
    claim_workdir(workdir, settings)
    cells = cells_of(settings)
    log = RunLog(workdir, len(cells), after=LogPosition())
    results: dict[Cell, dict[str, Any]] = {}
    with accounted(log, workdir, dataset.content_hash, clock):
        for seed in c.seeds:
            bench = _Bench(settings, dataset, seed, workdir, clock, log)
            for cell in [cell for cell in cells if cell.seed == seed]:
                results[cell] = bench.result(cell)
                log.advance(f"{cell.name}: {_text(results[cell])}", True)
    text = _publish(settings, workdir, document, results)
    if all("failure" in result for result in results.values()):
        first = next(iter(results.values()))["failure"]
        raise UserError(f"every cell of the curve failed, the first one: {first}")
    return text


def _publish(
    settings: Settings,
    workdir: Path,
    document: Path,
    results: dict[Cell, dict[str, Any]],
) -> str:
    from dasm_jax import plots  # here, for matplotlib takes a while to import

    entries = entries_of([cell._asdict() | r for cell, r in results.items()])
    failures = [
        f"{c.name}: {r['failure']}" for c, r in results.items() if "failure" in r
    ]
    title = f"{settings.data.name}: accuracy over images per class"
    full = next(((e.mean, e.std) for e in entries if e.method == FULL), None)
    figure = plots.accuracy_curves(_series(entries), full, title=title)
    markdown = render_markdown(settings, entries, list(results.values()), failures)
    plots.save_png(figure, workdir / "curve.png")
    write_atomically(
        workdir / "cells.csv", lambda file: file.write(_csv(results).encode())
    )
    write_atomically(workdir / "table.md", lambda file: file.write(markdown.encode()))
    write_json(workdir / "summary.json", _summary(settings, entries, failures))
    text = render_text(settings, entries, failures)
    paths = written(workdir, "curve.png", "table.md", "cells.csv", "sets")
    if settings.curve.document:
        picture = document.parent / f"curve_{_slug(settings)}.png"
        plots.save_png(figure, picture)
        shown = f"![{as_text(title)}]({picture.name})\n\n{markdown}"
        renew_section(document, f"curve: {settings.data.name}", shown)
        paths += f"\n      {document}\n      {picture}"
    return f"{text}\n\n{paths}"


def _slug(settings: Settings) -> str:
    """The dataset as part of a file name, whatever a folder is called."""
    name = Path(settings.data.name).name
    return "".join(ch if ch.isalnum() or ch in "-_" else "_" for ch in name)


class _Bench:
    """Everything that the cells of one seed share, made when it is first needed."""

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        seed: int,
        workdir: Path,
        clock: PhaseClock,
        log: RunLog,
    ):
        self._settings, self._dataset, self._seed = settings, dataset, seed
        self._workdir, self._clock, self._log = workdir, clock, log
        largest = max(settings.curve.ipcs)
        self._problem: Problem = make_problem(
            sets.settings_for(settings, "random", largest, seed), dataset
        )
        self._room = _room(self._problem, settings)
        self._select: Callable[[str, int], list[sets.Part]] = sets.make_selection(
            self._problem
        )
        self._evaluator: Evaluator | None = None

    def result(self, cell: Cell) -> dict[str, Any]:
        """What is known of a cell: read, or made and kept, or why it failed.

        Raises:
          UserError: what is there is of other data, or nothing can be written.
        """
        path = self._workdir / "cells" / f"{cell.name}.json"
        kept = self._kept(path, ACCURACY)
        if kept is not None:
            return kept
        try:
            result = self._full() if cell.method == FULL else self._of_set(cell)
        except CannotWrite:
            raise
        except (UserError, NonFiniteError) as error:
            return {"failure": str(error)}
        result["data_hash"] = self._dataset.content_hash
        write_json(path, result)
        self._log.metrics("cell", cell=cell.name, **result)
        return result

    def _kept(self, path: Path, fields: tuple[str, ...]) -> dict[str, Any] | None:
        """What a file holds; None where it is missing, or damaged and made again."""
        if not path.exists():
            return None
        content = read_record(path)
        amounts = [content.get(name) for name in AMOUNTS if name in fields]
        if content.get("std", 0) is None:  # of a single network
            amounts.remove(None)
        intact = {*fields, "data_hash"} <= {*content}
        if not (intact and all(map(records.is_amount, amounts))):
            self._log.line(f"{path.name} is damaged; it is made again")
            return None
        if content["data_hash"] != self._dataset.content_hash:
            raise UserError(
                f"{path} is of other images than config.data.name now has; use another "
                "--workdir"
            )
        return content

    def _of_set(self, cell: Cell) -> dict[str, Any]:
        path = self._facts(cell)
        npz = path.with_suffix(".npz")
        facts = self._kept(path, COST)
        decoded = sets.load_decoded(npz, self._problem, self._room)
        if facts is None or decoded is None:
            self._make(cell)
            facts = read_json(path)
            decoded = sets.load_decoded(npz, self._problem, self._room)
        assert decoded is not None, f"{path} was just written"
        data = evaluate.in_buffer(decoded, self._room)
        return {**facts, **self._evaluated(*data)}

    def _full(self) -> dict[str, Any]:
        return {
            **self._evaluated(*evaluate.full_set(self._problem)),
            "matching_flops": 0.0,
            "seconds_making": 0.0,
        }

    def _evaluated(self, data: ArrayDataset, table: Any) -> dict[str, Any]:
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

    def _facts(self, cell: Cell) -> Path:
        """Written after the set of a cell: where it is, the set is whole."""
        return self._workdir / "sets" / f"{cell.name}.json"

    def _make(self, cell: Cell) -> None:
        """Make the set of a cell, and all others that the same run gives."""
        s = self._settings
        runs = sets.runs_for(cell.method, s.curve.ipcs, s.dasm.segments)
        made = next(run for run in runs if cell.ipc in run.prefixes)
        name = cell._replace(ipc=made.ipc).name
        folder = self._workdir / "runs" / name
        with self._clock.phase("make"):
            if cell.method in sets.DISTILLED:
                settings = sets.settings_for(s, cell.method, made.ipc, self._seed)
                parts, records = sets.distil(
                    settings,
                    self._dataset,
                    folder,
                    self._log.line,
                    partial(log_rollback, self._log, cell=name),
                )
                for record in records:
                    self._log.metrics("measures", cell=name, **record)
            else:
                parts = self._select(cell.method, made.ipc)
        for ipc in made.prefixes:
            segments = sets.prefix(parts, ipc)
            facts = self._facts(cell._replace(ipc=ipc))
            npz = facts.with_suffix(".npz")
            sets.save(npz, self._problem, cell.method, segments)
            spent = {
                "matching_flops": sum(part.flops for part in segments),
                "seconds_making": sum(part.seconds for part in segments),
                "data_hash": self._dataset.content_hash,
            }
            write_json(facts, spent)
        discard(folder)


def _room(problem: Problem, settings: Settings) -> int:
    """Images of the largest decoded set: one buffer, so one compiled trainer."""
    largest, segments = max(settings.curve.ipcs), settings.dasm.segments
    parts = segment_sizes(largest, min(segments, largest))
    whole = [decoded_count(problem, sizes) for sizes in (parts, (largest,))]
    whole += [decoded_count(problem, (ipc,)) for ipc in settings.curve.ipcs]
    return max(*whole, largest * problem.dataset.n_classes)


def _series(entries: list[Entry]) -> dict[str, list[tuple[int, float, float | None]]]:
    """Lines of the figure, by the name of the method."""
    series: dict[str, list[tuple[int, float, float | None]]] = {}
    for entry in entries:
        if entry.method != FULL:
            points = series.setdefault(sets.LABELS[entry.method], [])
            points.append((entry.ipc, entry.mean, entry.std))
    return series


def _csv(results: dict[Cell, dict[str, Any]]) -> str:
    columns = ["mean", "std", "matching_flops", "seconds_making", "commit", "date"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Cell._fields, *columns, "networks"])
    for cell, result in results.items():
        if "failure" not in result:
            networks = " ".join(f"{a:.4f}" for a in result["networks"])
            writer.writerow([*cell, *(result[name] for name in columns), networks])
    return text.getvalue()


def _summary(
    settings: Settings, entries: Iterable[Entry], failures: list[str]
) -> dict[str, Any]:
    return {
        "dataset": settings.data.name,
        "seeds": list(settings.curve.seeds),
        "evaluation_networks": settings.evaluate.networks,
        "evaluation_steps": settings.evaluate.steps,
        "table": [
            {
                "set": sets.LABELS.get(entry.method, "Full"),
                "ipc": entry.ipc,
                "mean": entry.mean,
                "std": entry.std,
                "seeds": list(entry.means),
                "matching_flops": entry.flops,
                "seconds_making": entry.seconds,
            }
            for entry in entries
        ],
        "failures": failures,
    }


def _text(result: dict[str, Any]) -> str:
    if "failure" in result:
        return result["failure"]
    return f"{percent(result['mean'], result['std'])} %"
