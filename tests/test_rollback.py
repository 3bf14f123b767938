"""A number that is not finite: back to a checkpoint, with a smaller image step."""

import json
from functools import partial

import numpy as np
import pytest

from dasm_jax import divergence, hosts
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import NonFiniteError, UserError
from dasm_jax.experiments import cells, keeper, sets
from dasm_jax.plan import plan_segments
from dasm_jax.settings import from_config
from tests.small import small_config, small_dataset, small_problem
from tests.stopped import (  # noqa: F401  (fixtures)
    Killed,
    _compiled_once,
    outcome,
    start,
)

# Without a norm the distance grows with the fourth power of the rate: f32 overflows in
# the second outer iteration, until the rate is a few times smaller.
DIVERGES = {
    "on_nonfinite": "rollback",
    "network__norm": "none",
    "matcher__dm__image__lr": 5e11,
    "evaluate__recipe__lr": 1e-30,
    "evaluate__baselines": False,
}
RUNS = {}


def once(tmp_path_factory, name, make):
    """A run that several tests look at."""
    if name not in RUNS:
        RUNS[name] = tmp_path_factory.mktemp(name)
        make(RUNS[name])
    return RUNS[name]


@pytest.fixture
def diverged(tmp_path_factory):
    return once(tmp_path_factory, "diverged", lambda path: start(path, **DIVERGES))


def metrics(workdir, kind):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_a_real_divergence_is_left_behind(diverged):
    summary = json.loads((diverged / "summary.json").read_text())
    count = summary["halvings"]
    assert 1 < count < keeper.MOST_HALVINGS
    with np.load(diverged / "synthetic.npz") as file:
        assert np.isfinite(file["images"]).all()
    rollbacks = metrics(diverged, "rollback")
    assert [line["halvings"] for line in rollbacks] == [*range(1, count + 1)]
    for line in rollbacks:
        assert "is not finite in segment 1, outer iteration 2, inner" in line["trouble"]
        assert line["back_to"] == "segment 1, outer iteration 1"
    rates = [r["learning_rate"] for r in metrics(diverged, "segment")]
    assert rates == [5e11 / 2**count] * 2
    done = [(r["segment"], r["outer"]) for r in metrics(diverged, "outer")]
    assert done == [(1, 1), (1, 2), (2, 1), (2, 2)]
    log = (diverged / "log.txt").read_text()
    assert "with the image rate halved once from there on" in log
    assert "with the image rate halved 2 times from there on" in log


def killed_after(patch, count):
    """Die when the checkpoint of so many rollbacks is on disk."""
    keep, seen = keeper.Keeper._keep, []

    def keep_and_die(self, snapshot, log, instead_of=None):
        keep(self, snapshot, log, instead_of)
        seen.extend([1] * (instead_of is not None))
        if len(seen) == count:
            self._items.wait()
            raise Killed

    patch.setattr(keeper.Keeper, "_keep", keep_and_die)


@pytest.mark.parametrize("count", [1, 2])
def test_a_kill_after_a_rollback_changes_no_byte(diverged, tmp_path, count):
    with pytest.MonkeyPatch.context() as patch:
        killed_after(patch, count)
        with pytest.raises(Killed):
            start(tmp_path, **DIVERGES)
    start(tmp_path, **DIVERGES)
    assert outcome(tmp_path) == outcome(diverged)


def test_it_may_be_asked_for_when_a_run_has_stopped(diverged, tmp_path):
    stops = DIVERGES | {"on_nonfinite": "stop"}
    with pytest.raises(NonFiniteError, match="or set config"):
        start(tmp_path, **stops)
    start(tmp_path, **DIVERGES)
    assert outcome(tmp_path) == outcome(diverged)


def test_it_ends_where_halving_does_not_help(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "MOST_HALVINGS", 1)
    with pytest.raises(
        NonFiniteError, match=r"image rate there is 2\.5e\+11"
    ) as caught:
        start(tmp_path, **DIVERGES)
    assert "on_nonfinite" not in str(caught.value)
    assert len(metrics(tmp_path, "rollback")) == 1
    with np.load(tmp_path / "synthetic.npz") as file:
        assert np.isfinite(file["images"]).all()


def test_a_run_that_never_diverges_is_the_same(calm, tmp_path):
    start(tmp_path, on_nonfinite="rollback")
    assert outcome(tmp_path) == outcome(calm)


def test_a_learned_step_size_is_looked_at():
    p = small_problem(matcher__name="mtt")
    (plan, *_), distances = plan_segments(p), np.zeros((2, 1), np.float32)
    trouble = partial(divergence.trouble, p, plan, 0, distances, np.zeros((3, 1)))
    assert trouble(np.float32(0.1)) is None
    said = "the learned step size is not finite in segment 1, outer iteration 1"
    assert trouble(np.float32(np.inf)) == said


@pytest.mark.slow
def test_a_step_size_that_runs_away_stops_the_run():
    changes = {"loop__niter": 1, "loop__inner": 1, "step_size_lr": 1e38}
    mtt = {f"matcher__mtt__{name}": value for name, value in changes.items()}
    with pytest.raises(NonFiniteError, match="the learned step size is not finite"):
        run_dasm(small_problem(matcher__name="mtt", **mtt))


# --- further back ---------------------------------------------------------------------


@pytest.fixture
def fragile(monkeypatch):
    """Segment 2 diverges at once, until the rate was halved twice."""
    whole = divergence.trouble

    def trouble(problem, plan, outer, *arrays):
        if plan.segment == 2 and plan.halvings < 2:
            return "a pixel is not finite"
        return whole(problem, plan, outer, *arrays)

    monkeypatch.setattr(divergence, "trouble", trouble)


@pytest.fixture
def gone_back(tmp_path_factory, fragile):
    make = lambda path: start(path, on_nonfinite="rollback")  # noqa: E731
    return once(tmp_path_factory, "gone_back", make)


def test_the_second_time_it_goes_one_checkpoint_further_back(gone_back):
    assert [
        (line["halvings"], line["back_to"]) for line in metrics(gone_back, "rollback")
    ] == [(1, "the end of segment 1"), (2, "segment 1, outer iteration 1")]
    done = [(r["segment"], r["outer"]) for r in metrics(gone_back, "outer")]
    assert done == [(1, 1), (1, 2), (2, 1), (2, 2)]
    rates = [r["learning_rate"] for r in metrics(gone_back, "segment")]
    assert rates[0] == rates[1]  # segment 1 was ended at the new rate as well


@pytest.mark.parametrize("count", [1, 2])
def test_a_kill_before_and_after_that_changes_no_byte(gone_back, tmp_path, count):
    with pytest.MonkeyPatch.context() as patch:
        killed_after(patch, count)
        with pytest.raises(Killed):
            start(tmp_path, on_nonfinite="rollback")
    start(tmp_path, on_nonfinite="rollback")
    assert outcome(tmp_path) == outcome(gone_back)


def test_without_a_checkpoint_it_begins_anew(tmp_path, monkeypatch):
    first = divergence.trouble
    monkeypatch.setattr(
        divergence,
        "trouble",
        lambda problem, plan, *rest: (
            None if plan.halvings else first(problem, plan, *rest) or "a pixel is NaN"
        ),
    )
    start(tmp_path, on_nonfinite="rollback")
    (line,) = metrics(tmp_path, "rollback")
    assert (line["halvings"], line["back_to"]) == (1, "the beginning")


@pytest.mark.slow
def test_rollbacks_of_the_polish_are_counted(tmp_path, monkeypatch):
    whole = divergence.trouble

    def trouble(problem, plan, outer, *arrays):
        if plan.covers and not plan.halvings:
            return "a pixel is not finite"
        return whole(problem, plan, outer, *arrays)

    monkeypatch.setattr(divergence, "trouble", trouble)
    said = start(tmp_path, on_nonfinite="rollback", dasm__polish=0.5)
    assert "rollbacks, each with the image rate halved: 1" in said
    assert json.loads((tmp_path / "summary.json").read_text())["halvings"] == 1


@pytest.mark.slow
def test_sets_of_tables_go_back_too(tmp_path, fragile):
    settings = from_config(
        small_config(
            on_nonfinite="rollback",
            matcher__name="dm",
            network__depth=1,
            measure__networks=0,
        )
    )
    told = []
    parts, _ = sets.distil(
        settings, small_dataset(2), tmp_path, on_rollback=told.append
    )
    assert len(parts) == 2
    assert [rollback.halvings for rollback in told] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"matcher__name": "mtt"}, "config.matcher.name='mtt'"),
        (
            {"matcher__name": "dm", "matcher__dm__trajectory__bank": 2},
            "config.matcher.dm.trajectory.bank=2",
        ),
    ],
)
def test_several_processes_do_not_share_experts(tmp_path, monkeypatch, changes, named):
    monkeypatch.setattr(hosts, "alone", lambda: False)
    hosts.check(from_config(small_config(on_nonfinite="rollback")))
    hosts.check(from_config(small_config(**changes)))
    settings = from_config(small_config(on_nonfinite="rollback", **changes))
    # Also where a table makes the settings: the run itself refuses.
    for refuse in (
        lambda: hosts.check(settings),
        lambda: sets.distil(settings, small_dataset(2), tmp_path / "run"),
        lambda: cells.check_sources(
            settings,
            [cells.Source(settings, (cells.Cell("x", 4, 0, 4),))],
            small_dataset(2),
        ),
    ):
        with pytest.raises(UserError, match="rollback' does not go with.*" + named):
            refuse()
    assert not (tmp_path / "run").exists()
