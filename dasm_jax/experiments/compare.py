"""A table of matchers: each alone and under DASM, with Random, Full and SRe2L beside.

Every cell is a run of its own, in a process of its own, so that its peak memory is its
own too; finished cells are not run again.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dasm_jax import evaluate, signals
from dasm_jax.errors import CannotWrite, Interrupted, NonFiniteError, UserError
from dasm_jax.experiments import distill, recover
from dasm_jax.experiments.common import (
    SUMMARY,
    Table,
    check_fit,
    finished_summary,
    load_data,
    load_problem,
    percent,
    recorded,
    written,
)
from dasm_jax.experiments.compare_table import Cell, render
from dasm_jax.experiments.document import check_document, renew_section
from dasm_jax.experiments.memory import memory_explained
from dasm_jax.files import expecting_ours, read_json, write_atomically, write_json
from dasm_jax.run_log import RunLog
from dasm_jax.schema import Settings
from dasm_jax.settings import changed
from dasm_jax.workdir import (
    PhaseClock,
    claim_workdir,
    highest_peak,
    manifest,
    open_workdir,
    origin_of,
)

# Du et al., "Sequential Subset Matching for Dataset Distillation", NeurIPS 2023, as a
# control: DASM's segments, but no difficulty. Networks come from the segments so far.
SEQMATCH = (
    ("matcher.name", "idc"),
    ("matcher.idc.trajectory.start", "segments"),
    ("dasm.pool", "full"),
    ("dasm.context", "cumulative"),
    ("dasm.budget", "flops"),
    ("dasm.polish", 0.0),
    ("synthetic.init", "mix"),
)

# What a run spends beside making the set.
NOT_SYNTHESIS = ("seconds_evaluating", "seconds_compiling", "seconds_measuring")

LOOK = 0.2  # seconds between looks for a signal that came while a cell runs


def cells_of(settings: Settings) -> list[Cell]:
    """All runs that the table needs, the cheap ones of every kind first."""
    c, segments = settings.compare, settings.dasm.segments
    cells = []
    for seed in c.seeds:
        for ipc in sorted(c.ipcs):
            cells.append(Cell("Random", "", ipc, seed, "baselines", ()))
            for name in c.matchers:
                for column, k in (("one segment", 1), ("DASM", segments)):
                    changes = (("matcher.name", name), ("dasm.segments", k))
                    cells.append(
                        Cell(name.upper(), column, ipc, seed, "distill", changes)
                    )
            cells.append(Cell("SeqMatch", "DASM", ipc, seed, "distill", SEQMATCH))
            cells.append(Cell("SRe2L", "one segment", ipc, seed, "recover", ()))
    return cells


def cell_settings(settings: Settings, cell: Cell) -> Settings:
    """Settings of one cell, evaluated like all the others.

    Raises:
      UserError: the cell does not hold together.
    """
    own = dict(cell.changes)
    segments = own.get("dasm.segments", settings.dasm.segments)
    # No more segments than images, as in all other tables.
    own["dasm.segments"] = min(segments, cell.ipc)
    return changed(
        settings,
        {
            "experiment": "distill"
            if cell.experiment == "baselines"
            else cell.experiment,
            "ipc": cell.ipc,
            "seed": cell.seed,
            "evaluate.seed": cell.seed,
            "evaluate.prefixes": False,
            "evaluate.baselines": False,
            "measure.networks": 0,
            **own,
        },
    )


def run(settings: Settings, workdir: Path) -> str:
    """Run all cells that are not finished; returns the table for the terminal.

    Raises:
      Interrupted: by a signal; finished cells are kept, and what the one that ran had
        distilled.
      UserError: a cell's settings do not hold together, or the document cannot be
        written.
    """
    clock = PhaseClock()
    cells = cells_of(settings)
    each = {cell: cell_settings(settings, cell) for cell in cells}
    # What is wrong with a cell is said before the first one runs.
    dataset = load_data(settings)
    for of_cell in each.values():
        check_fit(of_cell, dataset)
    document = Path(settings.compare.document).expanduser()
    if settings.compare.document:
        check_document(document, "config.compare.document")
    claim_workdir(workdir, settings)
    log = RunLog(workdir, len(cells))
    results: dict[Cell, dict[str, Any]] = {}
    try:
        for cell in cells:
            folder = workdir / "cells" / cell.folder
            with clock.phase("cells"):
                failure = _in_a_process(cell.experiment, each[cell], str(folder))
            with expecting_ours(folder / SUMMARY):
                results[cell] = failure or _outcome(folder)
                shown = _accuracy_text(results[cell])
            log.metrics("cell", cell=cell.folder, **results[cell])
            log.advance(f"{cell.folder}: {shown}", True)
    except Interrupted as error:
        log.line(str(error))
        raise
    finally:
        log.close()
    # After the cells: asking for the devices takes memory of some.
    record = manifest(dataset.content_hash, clock.seconds)
    write_json(workdir / "manifest.json", record)
    text = render(settings, results)
    write_atomically(workdir / "table.md", lambda file: file.write(text.encode()))
    paths = written(workdir, "table.md", "manifest.json", "cells")
    if settings.compare.document:
        name = f"matchers: {settings.data.name}"
        renew_section(document, name, text)
        paths += f"\n      {document}"
    return f"{text}\n{paths}"


def _in_a_process(
    experiment: str, settings: Settings, folder: str
) -> dict[str, Any] | None:
    """Run one cell; a signal is passed on to its process, which ends in its own way.

    Raises:
      Interrupted: a signal came, to this process or to that of the cell.
    """
    context = multiprocessing.get_context("spawn")  # JAX is threaded
    with signals.noted() as found, ProcessPoolExecutor(1, context) as executor:
        with signals.interrupts_held():  # the process starts here
            cell = executor.submit(run_cell, experiment, settings, folder)
        _pass_on(found, cell)
        try:
            failure = cell.result()
        except BrokenProcessPool:
            failure = {"failure": "its process was killed, perhaps for want of memory"}
    if found.signal is not None:  # and the cell had nothing to keep, or was finished
        name = signal.Signals(found.signal).name
        raise Interrupted(
            found.signal,
            f"stopped by {name}; the same command goes on with the cell "
            f"{os.path.basename(folder)}",
        )
    return failure


def _pass_on(found: signals.Noted, cell: Future[Any]) -> None:
    """Wait until a cell is done, and tell its process once of a signal that came."""
    while not cell.done() and found.signal is None:
        wait([cell], LOOK)
    if found.signal is not None:
        for process in multiprocessing.active_children():
            if process.pid is not None:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(process.pid, found.signal)


def run_cell(experiment: str, settings: Settings, folder: str) -> dict[str, Any] | None:
    """Run one cell; what went wrong is its result, not the end of the table.

    Raises:
      CannotWrite: so goes the next one.
    """
    runs: dict[str, Callable[[Settings, Path], Any]] = {
        "distill": distill.run,
        "recover": recover.run,
        "baselines": run_baselines,
    }
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        # Where there is nothing to keep, Ctrl-C ends this process without a traceback.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signals.release_interrupts()
    try:
        with memory_explained(settings), open_workdir(folder, settings) as workdir:
            runs[experiment](settings, workdir)
    except CannotWrite:
        raise
    except (UserError, NonFiniteError) as error:
        return {"failure": str(error)}
    return None


def _end_with(parent: BaseProcess) -> None:
    """End this process with the one that waits for it.

    That one waits even when it is asked to stop, so it was killed, or asked twice:
    nobody reads the result, and another run may be on its way.
    """
    parent.join()
    os._exit(1)


def run_baselines(settings: Settings, workdir: Path) -> None:
    """Random and Full under the recipe of the table."""
    if finished_summary(workdir) is not None:
        return
    clock = PhaseClock()
    problem = load_problem(settings)
    with recorded(problem, workdir, clock, 2) as log, clock.phase("evaluate"):
        evaluator = evaluate.make_evaluator(problem)
        table = Table(problem, log)
        total = settings.ipc * problem.dataset.n_classes
        random = evaluate.random_set(problem, settings.ipc, total)
        table.add("Random", settings.ipc, evaluator(*random))
        count = len(problem.dataset.train.labels)
        full = evaluator(*evaluate.full_set(problem))
        table.add("Full", count // problem.dataset.n_classes, full, stored=count)
    write_json(workdir / "summary.json", {"table": table.rows})


def _outcome(folder: Path) -> dict[str, Any]:
    """What the table shows of a finished cell."""
    summary = finished_summary(folder)
    assert summary is not None, f"{folder} has no summary"
    details = read_json(folder / "manifest.json", folder / SUMMARY)
    row = summary["table"][-1 if "teacher_accuracy" not in summary else 0]
    outcome = {
        "mean": row["mean"],
        "std": row["std"],
        "seconds": sum(
            value
            for name, value in summary.items()
            if name.startswith("seconds_") and name not in NOT_SYNTHESIS
        ),
        "peak_bytes": highest_peak(details["peak_memory_bytes"]),
        **origin_of(details),
    }
    if "label_bytes" in row:
        outcome |= {
            "label_bytes": row["label_bytes"],
            "image_bytes": row["stored_bytes"],
            "hard_mean": summary["table"][1]["mean"],
        }
    if len(summary["table"]) == 2 and summary["table"][1]["set"] == "Full":
        random, full = summary["table"]
        outcome |= {"mean": random["mean"], "std": random["std"]}
        outcome |= {"full_mean": full["mean"], "full_std": full["std"]}
    return outcome


def _accuracy_text(result: dict[str, Any]) -> str:
    if "failure" in result:
        return result["failure"]
    return f"{percent(result['mean'], result['std'])} %"
