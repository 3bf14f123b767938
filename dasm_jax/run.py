"""From settings to an experiment."""

from pathlib import Path

from dasm_jax import hosts
from dasm_jax.checkpoint import remove_all, remove_items
from dasm_jax.errors import UserError
from dasm_jax.experiments import (
    analyse,
    compare,
    coreset,
    curve,
    distill,
    evaluate,
    recover,
    study,
)
from dasm_jax.experiments.common import SUMMARY
from dasm_jax.experiments.memory import memory_explained
from dasm_jax.experiments.sets import DISTILLED
from dasm_jax.schema import Settings
from dasm_jax.supply import expert_folders
from dasm_jax.workdir import REPORT, open_workdir

EXPERIMENTS = {
    "distill": distill.run,
    "recover": recover.run,
    "compare": compare.run,
    "coreset": coreset.run,
    "curve": curve.run,
    "evaluate": evaluate.run,
    "study": study.run,
    "analyse": analyse.run,
}
# The others are tables, which grow cell by cell.
BEGUN_ANEW = ("distill", "recover", "coreset")


def run(settings: Settings, workdir: str) -> str:
    """Run ``settings.experiment`` in ``workdir``, and write its report.

    Of several processes the first writes there, the others into a copy that is removed.
    Returns what to print at the end. A finished run that is shown again keeps the
    report it has; a table that has grown gets a new one.

    Raises:
      UserError: a mistake the user can mend.
      NonFiniteError: the optimisation diverged; the last good set is in the workdir.
    """
    hosts.check(settings)  # before anything is opened
    with hosts.folder(open_workdir(workdir, settings)) as folder:
        return _run_in(folder, settings, workdir)


def _run_in(folder: Path, settings: Settings, workdir: str) -> str:
    experiment = EXPERIMENTS[settings.experiment]
    if settings.checkpoint.resume == "never" and settings.experiment in BEGUN_ANEW:
        _remove_result(folder)
    with memory_explained(settings):
        text = experiment(settings, folder)
    if hosts.is_first() and not _is_newer(folder / REPORT, folder / "summary.json"):
        from dasm_jax import report  # here, for matplotlib takes a while to import

        try:
            report.write_report(folder)
        except UserError as error:
            raise UserError(
                f"the run is finished, and kept in {workdir}, but not its report: "
                f"{error}"
            ) from None
    return text


def _remove_result(folder: Path) -> None:
    """Remove what makes a run a finished one, and what it would use again."""
    try:
        for name in (SUMMARY, REPORT, "synthetic.npz"):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"config.checkpoint.resume='never', and {folder / name} cannot be removed: "
            f"{error.strerror}"
        ) from None
    # Those of a table's runs too; a link to another disk stays.
    kept = [folder / "experts", *(folder / "runs" / name for name in DISTILLED)]
    for experts in kept:
        for items in expert_folders(experts):
            if not remove_items(items):
                raise UserError(
                    f"config.checkpoint.resume='never', and {items} cannot be removed; "
                    "remove it, or use another --workdir"
                )
    remove_all(folder / "experts")


def _is_newer(one: Path, other: Path) -> bool:
    if not one.exists():
        return False
    return not other.exists() or one.stat().st_mtime_ns >= other.stat().st_mtime_ns
