"""What experiments share: loading, rows of a table, and what is printed at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dasm_jax import hosts
from dasm_jax.data import load_dataset
from dasm_jax.errors import (
    CannotWrite,
    Interrupted,
    NonFiniteError,
    SameForAll,
    UserError,
)
from dasm_jax.evaluate import Accuracy
from dasm_jax.files import expecting_ours, is_there, read_json, write_json
from dasm_jax.problem import Problem, make_problem
from dasm_jax.run_log import LogPosition, RunLog
from dasm_jax.schema import Settings
from dasm_jax.settings import check_against_data
from dasm_jax.types import Dataset
from dasm_jax.workdir import REPORT, PhaseClock, claim_workdir, manifest

SUMMARY = "summary.json"
FLOPS = "FLOPs"
FINISHED = "finished before; --config.checkpoint.resume=never runs it anew"


def load_data(settings: Settings) -> Dataset:
    """Load the dataset of the settings.

    Raises:
      UserError: it is not there, or not as it should be.
    """
    s = settings.data
    return load_dataset(
        s.source,
        s.name,
        data_dir=s.data_dir or None,
        train_split=s.train_split,
        test_split=s.test_split,
        test_share=s.test_share,
        size=s.size,
        downsample=s.downsample,
        validation=s.validation,
    )


def check_fit(settings: Settings, dataset: Dataset) -> None:
    """Check what only the loaded dataset can tell.

    Raises:
      UserError: settings and dataset do not fit.
    """
    counts = np.bincount(dataset.train.labels, minlength=dataset.n_classes)
    check_against_data(settings, counts.tolist(), dataset.image_shape)


def load_problem(settings: Settings) -> Problem:
    """Load the dataset of the settings and build the pieces of a run.

    Raises:
      UserError: it is not there, or does not fit the settings.
    """
    dataset = load_data(settings)
    check_fit(settings, dataset)
    return make_problem(settings, dataset)


def finished_summary(workdir: Path) -> dict[str, Any] | None:
    """What a finished run wrote, or None where it is not finished.

    Raises:
      CannotRead: the file cannot be read now.
      UserError: it is damaged.
    """
    path = workdir / SUMMARY
    if not is_there(path):
        return None
    with expecting_ours(path):
        return {**read_json(path)}


def shown_again(
    workdir: Path, summary: dict[str, Any], report: Callable[[dict[str, Any]], str]
) -> str:
    """What a finished run prints when it is started again.

    Raises:
      UserError: the summary does not hold what ``report`` shows.
    """
    with expecting_ours(workdir / SUMMARY):
        return f"{report(summary)}\n\n{FINISHED}"


def failed(error: Exception) -> dict[str, Any]:
    """What a table holds of a cell that failed; raises the error where it ends all.

    Where nothing can be written any more it does. Of several processes one may be alone
    with an error, as with memory and files of its own, while the others wait for it in
    the cell: there only what all meet alike, such as a divergence, ends no more than
    that.
    """
    alike = hosts.alone() or isinstance(error, SameForAll | NonFiniteError)
    if isinstance(error, CannotWrite) or not alike:
        raise error
    return {"failure": str(error)}


@contextmanager
def accounted(
    log: RunLog, workdir: Path, content_hash: str, clock: PhaseClock
) -> Iterator[None]:
    """Close the log in the end, and say where the numbers come from.

    What a signal did is on record, too.

    Raises:
      UserError: that cannot be written, and nothing else had ended the run.
    """

    def write() -> None:
        log.close()
        details = manifest(content_hash, clock.seconds, clock.peaks()) | log.facts
        write_json(workdir / "manifest.json", details)

    try:
        yield
    except BaseException as error:
        with suppress(UserError):
            if isinstance(error, Interrupted):
                log.line(str(error))
            write()
        raise
    write()


@contextmanager
def recorded(
    problem: Problem,
    workdir: Path,
    clock: PhaseClock,
    units: int,
    after: LogPosition | None = None,
) -> Iterator[RunLog]:
    """Claim the folder and log ``units`` of work; in the end, whatever it is, say where
    the numbers come from. ``after`` is where the logs of an earlier process are
    continued.

    Raises:
      UserError: the folder cannot be written.
    """
    claim_workdir(workdir, problem.settings)
    log = RunLog(workdir, units, after=after)
    with accounted(log, workdir, problem.dataset.content_hash, clock):
        yield log


class Table:
    """Rows of evaluated sets, logged as they come."""

    def __init__(self, problem: Problem, log: RunLog):
        self.rows: list[dict[str, Any]] = []
        self._log = log
        # Bytes as they would be shipped: one per value.
        self._image_bytes = int(np.prod(problem.dataset.image_shape))
        self._n_classes = problem.dataset.n_classes

    def add(
        self,
        name: str,
        ipc: int,
        accuracy: Accuracy,
        *,
        stored: int | None = None,
        **more: Any,
    ) -> None:
        """Add a set of ``ipc`` stored images per class, ``stored`` in all."""
        stored = ipc * self._n_classes if stored is None else stored
        row = {
            "set": name,
            "ipc": ipc,
            "stored_bytes": stored * self._image_bytes,
            "mean": accuracy.mean,
            "std": accuracy.std,
            "networks": list(accuracy.networks),
            **more,
        }
        self.rows.append(row)
        self._log.metrics("evaluation", **row)
        self._log.advance(f"{name} {ipc}: {100 * accuracy.mean:.1f} %", True)


def percent(mean: float, std: float | None) -> str:
    """Accuracy in % as tables show it."""
    cell = f"{100 * mean:.1f}"
    return cell if std is None else f"{cell} ± {100 * std:.1f}"


def render_table(summary: dict[str, Any]) -> list[str]:
    """Lines of a table: a row per IPC, a column per kind of set.

    Where rows have them the last column is the matching FLOPs that a set took, of a
    prefix those of its segments.
    """
    lines = [
        f"{summary['dataset']}: {summary.get('split', 'test')} accuracy in %, mean ± "
        f"std of {summary['evaluation_networks']} networks, "
        f"{summary['evaluation_steps']} steps each",
        "",
    ]
    by_ipc: dict[int, dict[str, str]] = {}
    for row in summary["table"]:
        cells = by_ipc.setdefault(row["ipc"], {})
        cells[row["set"]] = percent(row["mean"], row["std"])
        if "matching_flops" in row:
            cells[FLOPS] = f"{row['matching_flops']:.3g}"
    names = list(dict.fromkeys(row["set"] for row in summary["table"]))
    names += [FLOPS] * any(FLOPS in cells for cells in by_ipc.values())
    lines.append("  ipc  " + "".join(f"{name:>14}" for name in names))
    for ipc, cells in by_ipc.items():
        label = "all" if "Full" in cells else str(ipc)
        row = "".join(f"{cells.get(name, ''):>14}" for name in names)
        lines.append(f"{label:>5}  {row}".rstrip())
    return lines


def written(workdir: Path, *names: str) -> str:
    """Say which files of ``workdir`` were written; ``run`` adds the report.

    Of a run that was finished before some may have been removed since.
    """
    shown = workdir
    with suppress(OSError, ValueError):  # it lies elsewhere, or this folder is gone
        shown = workdir.relative_to(Path.cwd())
    gone = [name for name in names if not (workdir / name).exists()]
    there = [name for name in (*names, REPORT) if name not in gone]
    lines = ["wrote " + "\n      ".join(str(shown / name) for name in there)]
    lines += ["not there any more: " + ", ".join(gone)] * bool(gone)
    return "\n".join(lines)
