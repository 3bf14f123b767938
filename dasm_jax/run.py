"""From settings to an experiment."""

from dasm_jax.experiments import compare, distill, recover
from dasm_jax.experiments.common import memory_explained
from dasm_jax.schema import Settings
from dasm_jax.workdir import REPORT, open_workdir

EXPERIMENTS = {
    "distill": distill.run,
    "recover": recover.run,
    "compare": compare.run,
}


def run(settings: Settings, workdir: str) -> str:
    """Run ``settings.experiment`` in ``workdir``, and write its report.

    Returns what to print at the end. A finished run that is shown again keeps the
    report it has.

    Raises:
      UserError: a mistake the user can mend.
      NonFiniteError: the optimisation diverged; the last good set is in the workdir.
    """
    experiment = EXPERIMENTS[settings.experiment]
    folder = open_workdir(workdir, settings)
    finished = (folder / "summary.json").exists()
    with memory_explained(settings):
        text = experiment(settings, folder)
    if not finished or not (folder / REPORT).exists():
        from dasm_jax import report  # here, for matplotlib takes a while to import

        report.write_report(folder)
    return text
