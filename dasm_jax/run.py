"""From settings to an experiment."""

from dasm_jax.experiments import (
    compare,
    coreset,
    curve,
    distill,
    evaluate,
    recover,
)
from dasm_jax.experiments.common import memory_explained
from dasm_jax.schema import Settings
from dasm_jax.workdir import open_workdir

EXPERIMENTS = {
    "distill": distill.run,
    "recover": recover.run,
    "compare": compare.run,
    "coreset": coreset.run,
    "curve": curve.run,
    "evaluate": evaluate.run,
}


def run(settings: Settings, workdir: str) -> str:
    """Run ``settings.experiment`` in ``workdir``; returns what to print at the end.

    Raises:
      UserError: a mistake the user can mend.
      NonFiniteError: the optimisation diverged; the last good set is in the workdir.
    """
    experiment = EXPERIMENTS[settings.experiment]
    with memory_explained(settings):
        return experiment(settings, open_workdir(workdir, settings))
