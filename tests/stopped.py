"""What the tests of runs that stop share: how they stop, and what has to be equal.

python -m tests.stopped --workdir=…    # such a run as a process, to be killed
"""

import dataclasses
import json
import sys

import pytest

from dasm_jax import report, run
from dasm_jax.experiments import common, sets
from dasm_jax.experiments import distill as experiment
from dasm_jax.problem import make_problem
from dasm_jax.run_log import RunLog
from dasm_jax.schema import CheckpointSettings
from dasm_jax.settings import from_config
from tests.small import small_config, small_dataset
from tests.torture import ROOT

PROBLEMS = {}


def problem_of(settings):
    """Made once for all runs that differ only in what the problem does not see."""
    plain = dataclasses.replace(
        settings,
        seed=0,
        checkpoint=CheckpointSettings("auto", 0.0, 1),
        dasm=dataclasses.replace(settings.dasm, rescore_every=0),
    )
    if plain not in PROBLEMS:
        PROBLEMS[plain] = make_problem(settings, common.load_dataset())
    dataset = common.load_dataset()
    return PROBLEMS[plain]._replace(settings=settings, dataset=dataset)


def compile_once(patch):
    """Runs share their programs, or most of the time would be compiling."""
    patch.setattr(experiment, "load_problem", problem_of)
    patch.setattr(sets, "make_problem", lambda settings, data: problem_of(settings))
    patch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    patch.setattr(report, "write_report", lambda folder: None)


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch):
    compile_once(monkeypatch)


class Killed(BaseException):
    """Nothing catches it."""


def start(workdir, **changes):
    plain = {
        "network__depth": 1,
        "matcher__name": "dm",
        "dasm__networks": 1,
        "matcher__dm__loop__niter": 4,
        "evaluate__networks": 1,
        "measure__networks": 0,
        "checkpoint__minutes": 0.0,
    }
    return run.run(from_config(small_config(**plain | changes)), str(workdir))


def stop_after(monkeypatch, units, act):
    """Call ``act`` when so many units of work are logged."""
    advance, count = RunLog.advance, []

    def counted(self, text, log_it):
        advance(self, text, log_it)
        count.append(text)
        if len(count) == units:
            act()

    monkeypatch.setattr(RunLog, "advance", counted)
    return count


def kill():
    raise Killed


def killed(workdir, units, act=kill, expected=Killed, **changes):
    """A run that came so far."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, units, act)
        with pytest.raises(expected) as caught:
            start(workdir, **changes)
    return caught.value


def outcome(workdir):
    """All that has to be equal."""
    summary = json.loads((workdir / "summary.json").read_text())
    metrics = [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k}
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    synthetic = (workdir / "synthetic.npz").read_bytes()
    return synthetic, summary["table"], summary["measures"], metrics


CALM = []


def calm_run(tmp_path_factory):
    """A run that nobody stopped."""
    if not CALM:
        CALM.append(tmp_path_factory.mktemp("calm"))
        start(CALM[0])
    return CALM[0]


UNITS = 4 + 5  # outer iterations, and sets evaluated


def items(workdir):
    return sorted(p.name for p in (workdir / "checkpoints").glob("[0-9]*"))


FEWER = (
    "--config.matcher.name=dm",
    "--config.matcher.dm.loop.niter=9",
    "--config.matcher.dm.loop.inner=3",
    "--config.matcher.dm.real_batch=32",
    "--config.dasm.rescore_every=0",
    "--config.evaluate.baselines=False",
    "--config.evaluate.prefixes=False",
    "--config.measure.networks=0",
)
COMPILED = ROOT / ".cache" / "kills"


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        compile_once(patch)
        start(sys.argv[1].removeprefix("--workdir="))
