"""A run that stopped goes on, and ends with the bits it would have had anyway."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from dasm_jax import checkpoint, evaluate, measures
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import UserError
from dasm_jax.experiments import common, keeper, kept, sets
from dasm_jax.plan import plan_segments
from dasm_jax.settings import from_config
from dasm_jax.snapshots import arrays_like, from_arrays, to_arrays
from tests.small import (
    changes_to_defaults,
    slow_but,
    small_config,
    small_dataset,
    small_problem,
)
from tests.stopped import (  # noqa: F401  (fixtures)
    COMPILED,
    FEWER,
    UNITS,
    Killed,
    _compiled_once,
    items,
    kill,
    killed,
    outcome,
    start,
    stop_after,
)
from tests.torture import PATIENCE, ROOT, torture, unfinished

# --- the loop -------------------------------------------------------------------------


def through_json(problem, plans, snapshot):
    """A snapshot as another process sees it."""
    arrays, layout = to_arrays(snapshot)
    layout = json.loads(json.dumps(layout))
    for array, like in zip(arrays, arrays_like(layout), strict=True):
        assert (array.shape, array.dtype) == (like.shape, like.dtype)
    found = from_arrays(problem, plans, [np.array(a) for a in arrays], layout)
    kept._check_snapshot(problem, plans, found)
    return found


def without_seconds(results):
    return [
        result._replace(seconds=None, pool=result.pool._replace(seconds=0.0))
        for result in results
    ]


def assert_same(ours, theirs):
    ours, theirs = without_seconds(ours), without_seconds(theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


STOPS = {
    "idc": {"ipc": 3, "dasm__segments": 3, "matcher__idc__loop__niter": 6},
    "rescoring": {
        "dasm__rescore_every": 2,
        "matcher__idc__loop__niter": 8,
        "matcher__idc__trajectory__start": "segments",
        "matcher__idc__trajectory__data": "pool",
    },
    "cumulative": {"dasm__context": "cumulative"},
    "defaults": {
        **changes_to_defaults(),
        "ipc": 3,
        "dasm__segments": 3,
        "matcher__idc__loop__niter": 8,
    },
    "dsa": {"matcher__name": "dsa"},
    "real": {
        "matcher__name": "dm",
        "dasm__scored_by": "real",
        "dasm__pool": "disjoint",
    },
    "mtt": {"matcher__name": "mtt"},
    "cosine": {"matcher__name": "dm", "matcher__dm__image__schedule": "cosine"},
    "kmeans": {
        "matcher__name": "dm",
        "matcher__dm__batches": "kmeans",
        "matcher__dm__loop__niter": 6,
        "dasm__rescore_every": 2,
    },
    "polish": {
        "dasm__polish": 0.5,
        "matcher__idc__loop__niter": 8,
        "matcher__idc__trajectory__start": "segments",
    },
    "nested": {
        "ipc": 3,
        "dasm__segments": 3,
        "dasm__schedule": "coverage",
        "dasm__high": 1.0,
        "dasm__ceiling": "learnable",
        "dasm__polish": 0.8,
        "dasm__polish_rate": 1.0,
        "dasm__polish_target": "pool",
        "dasm__rescore_every": 2,
        "dasm__polish_nested": 0.5,
        "synthetic__init": "uncovered",
        "matcher__name": "dm",
        "matcher__dm__loop__niter": 8,
    },
    "bank": {
        "matcher__name": "dm",
        "matcher__dm__trajectory__bank": 2,
        "matcher__dm__trajectory__bank_epochs": 1,
        "matcher__dm__trajectory__perturb": 0.1,
    },
}


@pytest.mark.parametrize("name", slow_but(STOPS, "cosine", "nested", "defaults"))
def test_every_outer_iteration_is_a_place_to_stop(name, tmp_path):
    changes = STOPS[name]
    problem = small_problem(**{"network__depth": 1, **changes})
    plans = plan_segments(problem)
    experts = tmp_path / "experts"
    stops = []
    results = run_dasm(
        problem,
        plans,
        experts_folder=experts,
        on_outer=lambda progress: stops.append(progress.snapshot()),
    )
    assert len(stops) == sum(plan.outer_iterations for plan in plans)
    for stop in stops:
        again = run_dasm(
            problem,
            plans,
            resume=through_json(problem, plans, stop),
            experts_folder=experts,
        )
        assert_same(again, results)
        assert all(a.seconds.matching > 0 for a in again)


@pytest.mark.slow
def test_what_real_images_look_like_is_scored_once(monkeypatch):
    problem = small_problem(
        network__depth=1,
        matcher__name="dm",
        dasm__scored_by="real",
        dasm__pool="disjoint",
    )
    plans, stops, trained = plan_segments(problem), [], []
    results = run_dasm(
        problem,
        plans,
        on_network=lambda: trained.append(1),
        on_outer=lambda progress: stops.append(progress.snapshot()),
    )
    assert len(trained) == 2
    again = run_dasm(
        problem, plans, resume=stops[0], on_network=lambda: trained.append(1)
    )
    assert len(trained) == 2
    assert_same(again, results)


# --- a run ----------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 3, 4, 6, UNITS])
def test_a_killed_run_goes_on(calm, tmp_path, monkeypatch, units):
    killed(tmp_path, units)
    done = stop_after(monkeypatch, 0, kill)
    start(tmp_path)
    assert outcome(tmp_path) == outcome(calm)
    # An iteration is kept after it is shown; rows are read and shown again.
    again = 1 if units <= 4 else units - 4
    assert len(done) == UNITS - units + again
    assert not (tmp_path / "checkpoints").exists()
    log = (tmp_path / "log.txt").read_text()
    assert ("goes on from " in log) == (units > 1)


@pytest.mark.slow
def test_the_ruler_is_made_once(tmp_path, monkeypatch):
    start(tmp_path / "calm", measure__networks=1)
    killed(tmp_path / "run", 5, measure__networks=1)
    monkeypatch.setattr(measures, "make_reference", None)  # calling it would fail
    start(tmp_path / "run", measure__networks=1)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")


def test_sets_are_evaluated_once(tmp_path, monkeypatch):
    killed(tmp_path, 6)
    make, evaluated = evaluate.make_evaluator, []

    def counted(*arguments, **options):
        evaluator = make(*arguments, **options)
        return lambda *data: evaluated.append(1) or evaluator(*data)

    monkeypatch.setattr(evaluate, "make_evaluator", counted)
    start(tmp_path)
    assert len(evaluated) == 3


def test_a_finished_run_leaves_no_checkpoints(calm):
    assert not (calm / "checkpoints").exists()
    (calm / "checkpoints" / "000009").mkdir(parents=True)  # of a kill at the very end
    assert "finished before" in start(calm)
    assert not (calm / "checkpoints").exists()


def damage(item, how):
    path = max((item / "tree").rglob("?" * 32), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:-1] if how == "cut" else content)


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(calm, tmp_path, caplog, how):
    killed(tmp_path, 4)
    before, newest = items(tmp_path)
    damage(tmp_path / "checkpoints" / newest, how)
    start(tmp_path)
    lines = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert len(lines) == 1
    assert f"{newest} is damaged; {before} is used instead" in lines[0]
    assert outcome(tmp_path) == outcome(calm)


def test_with_every_checkpoint_damaged_a_run_begins_anew(calm, tmp_path, caplog):
    killed(tmp_path, 4)
    for item in items(tmp_path):
        damage(tmp_path / "checkpoints" / item, "cut")
    start(tmp_path)
    assert "no whole one before it" in caplog.text
    assert outcome(tmp_path) == outcome(calm)


def test_a_damaged_evaluation_is_made_again(calm, tmp_path, caplog):
    killed(tmp_path, 6)
    damage(tmp_path / "checkpoints" / "evaluation_000", "flipped")
    start(tmp_path)
    assert "evaluation_000 is damaged; it is made again" in caplog.text
    assert outcome(tmp_path) == outcome(calm)


def test_other_pixels_are_evaluated_anew(tmp_path):
    problem = small_problem(network__depth=1, matcher__name="dm")
    count, images = problem.settings.evaluate.networks, len(problem.dataset.test.labels)
    values = iter((0.25, 0.5))

    def accuracy(made_from):
        with keeper.Keeper(problem, plan_segments(problem), tmp_path) as own:
            return own.accuracy("evaluation_000", made, made_from).mean

    def made():
        value = next(values)
        correct = np.full(images, value, np.float32)
        return evaluate.Accuracy((value,) * count, (value,) * count, correct)

    found = [accuracy(digest) for digest in ("a", "a", "b", "b")]
    assert found == [0.25, 0.25, 0.5, 0.5]


def test_a_run_says_which_pixels_it_evaluates(tmp_path, monkeypatch):
    seen, accuracy = [], keeper.Keeper.accuracy

    def noted(self, name, evaluate, made_from=""):
        seen.append(made_from)
        return accuracy(self, name, evaluate, made_from)

    monkeypatch.setattr(keeper.Keeper, "accuracy", noted)
    for seed in (0, 1):
        start(tmp_path / str(seed), seed=seed)
    # The prefix of one segment, Random, the whole set, Random and Full.
    first, second = seen[:5], seen[5:]
    alike = [a == b for a, b in zip(first, second, strict=True)]
    assert alike == [False, True, False, True, True]
    assert len({*first, *second}) == 5  # four sets, and those that need no digest


def test_checkpoints_of_another_run_are_refused(calm, tmp_path, monkeypatch):
    killed(tmp_path, 3)
    (tmp_path / "config.json").unlink()  # which is looked at first
    other = small_dataset(2)._replace(content_hash="other")
    with monkeypatch.context() as patch:
        patch.setattr(common, "load_dataset", lambda *a, **k: other)
        patch.setattr(keeper, "__version__", "0")
        patch.setattr(keeper, "RESULTS", 0)
        with pytest.raises(UserError) as caught:
            start(tmp_path, seed=1)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        "they differ in config.seed, data_hash, results, version; use another"
        in message
    )
    assert "config.checkpoint.resume='never'" in message
    assert len(items(tmp_path)) == 2  # nothing is lost
    start(tmp_path)
    assert outcome(tmp_path) == outcome(calm)


def test_never_and_must(calm, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"resume='must', and .* no whole checkpoint"):
        start(tmp_path, checkpoint__resume="must")
    killed(tmp_path, 3)
    with monkeypatch.context() as patch:
        done = stop_after(patch, 2, kill)
        with pytest.raises(Killed):
            start(tmp_path, checkpoint__resume="must")
        assert ["segment 2" in text for text in done] == [True, True]
    done = stop_after(monkeypatch, 0, kill)
    start(tmp_path, checkpoint__resume="never")
    assert len(done) == UNITS
    assert outcome(tmp_path) == outcome(calm)
    with pytest.raises(UserError, match=r"checkpoint\.resume='must' is for"):
        from_config(small_config(checkpoint__resume="must", experiment="compare"))


def test_how_often_and_how_many(tmp_path):
    killed(tmp_path / "rarely", 3, checkpoint__minutes=5.0)
    assert items(tmp_path / "rarely") == ["000001"]  # the end of segment 1
    for keep, expected in [(1, ["000003"]), (3, ["000001", "000002", "000003"])]:
        killed(tmp_path / f"{keep}", 4, checkpoint__keep=keep)
        assert items(tmp_path / f"{keep}") == expected


def test_what_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    def full(*arguments):
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(UserError, match="No space left"):
        start(tmp_path)


def test_distilled_sets_of_tables_go_on(tmp_path):
    changes = {"matcher__name": "dm", "measure__networks": 0, "network__depth": 1}
    settings = from_config(small_config(**changes))
    parts, _ = sets.distil(settings, small_dataset(2), tmp_path / "calm")
    with pytest.MonkeyPatch.context() as patch:
        wait = keeper.Checkpoints.wait

        def wait_and_die(self):
            wait(self)
            if list((tmp_path / "killed").rglob("metadata.json")):
                raise Killed

        patch.setattr(keeper.Checkpoints, "wait", wait_and_die)
        with pytest.raises(Killed):
            sets.distil(settings, small_dataset(2), tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        made = []
        patch.setattr(
            keeper, "run_dasm", lambda *a, **k: made.append(k) or run_dasm(*a, **k)
        )
        again, _ = sets.distil(settings, small_dataset(2), tmp_path / "killed")
    assert len(made[0]["resume"].finished) == 1
    for a, b in zip(again, parts, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
    keeper.discard(tmp_path / "killed")
    assert not (tmp_path / "killed" / "checkpoints").exists()


# --- processes ------------------------------------------------------------------------


def test_a_kill_while_a_checkpoint_is_written(calm, tmp_path):
    programs = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    command = ["tests.dying", "completing", "4", "tests/stopped.py"]
    done = subprocess.run(
        [sys.executable, "-m", *command, f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | programs,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [tmp_path / "checkpoints" / f"00000{number}" for number in (3, 4)]
    assert [unfinished(item) for item in left] == [False, True]
    assert left[-1].is_dir()
    start(tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("goes on from segment 2, outer iteration 1") == 1
    assert "the last bits may differ" not in log
    assert outcome(tmp_path) == outcome(calm)


@pytest.mark.slow
def test_kills_change_no_byte(tmp_path):
    said = []
    assert torture(tmp_path, COMPILED, 3, 1, FEWER, said.append), "\n".join(said)
    assert "kills survived: 3" in said[-2]
