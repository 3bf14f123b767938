"""A run that stopped goes on, and ends with the bits it would have had anyway."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress

import jax
import numpy as np
import pytest

from dasm_jax import (
    checkpoint,
    evaluate,
    files,
    measures,
    report,
    run,
    signals,
    workdir,
)
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import Interrupted, UserError
from dasm_jax.experiments import common, keeper, kept, sets
from dasm_jax.experiments import distill as experiment
from dasm_jax.experiments.rollback import Rollback, undo
from dasm_jax.plan import plan_segments
from dasm_jax.problem import make_problem
from dasm_jax.progress import Progress, Snapshot
from dasm_jax.run_log import LogPosition, RunLog
from dasm_jax.schema import CheckpointSettings
from dasm_jax.settings import from_config
from dasm_jax.snapshots import arrays_like, from_arrays, to_arrays
from dasm_jax.workdir import open_workdir
from tests.small import slow_but, small_config, small_dataset, small_problem
from tests.torture import ROOT, Run, torture

# --- the loop -------------------------------------------------------------------------


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


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch):
    """Runs share their programs, or most of the time would be compiling."""
    monkeypatch.setattr(experiment, "load_problem", problem_of)
    monkeypatch.setattr(
        sets, "make_problem", lambda settings, data: problem_of(settings)
    )
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    monkeypatch.setattr(report, "write_report", lambda folder: None)


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
    "bank": {
        "matcher__name": "dm",
        "matcher__dm__trajectory__bank": 2,
        "matcher__dm__trajectory__bank_epochs": 1,
        "matcher__dm__trajectory__perturb": 0.1,
    },
}


@pytest.mark.parametrize("name", slow_but(STOPS, "idc", "rescoring"))
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


@pytest.fixture
def calm(tmp_path_factory):
    """A run that nobody stopped."""
    if not CALM:
        CALM.append(tmp_path_factory.mktemp("calm"))
        start(CALM[0])
    return CALM[0]


UNITS = 4 + 5  # outer iterations, and sets evaluated


def items(workdir):
    return sorted(p.name for p in (workdir / "checkpoints").glob("[0-9]*"))


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


def test_checkpoints_of_another_run_are_refused(calm, tmp_path, monkeypatch):
    killed(tmp_path, 3)
    (tmp_path / "config.json").unlink()  # which is looked at first
    other = small_dataset(2)._replace(content_hash="other")
    with monkeypatch.context() as patch:
        patch.setattr(common, "load_dataset", lambda *a, **k: other)
        patch.setattr(keeper, "__version__", "0")
        with pytest.raises(UserError) as caught:
            start(tmp_path, seed=1)
    message = str(caught.value)
    assert "\n" not in message
    assert "they differ in config.seed, data_hash, version; use another" in message
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


# --- signals --------------------------------------------------------------------------


def raise_signal(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "units"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_ends_the_outer_iteration(calm, tmp_path, number, units):
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    error = killed(
        tmp_path,
        units,
        raise_signal(number),
        Interrupted,
        checkpoint__minutes=5.0,
    )
    assert error.signal == number
    assert "\n" not in str(error)
    where = f"segment 1, outer iteration {units}"
    assert f"by {number.name}; the same command goes on from {where}" in str(error)
    assert items(tmp_path) == ["000001"]
    assert str(error) in (tmp_path / "log.txt").read_text()
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before
    start(tmp_path)
    assert outcome(tmp_path) == outcome(calm)


def test_a_signal_while_networks_score(tmp_path, monkeypatch):
    changes = {"dasm__rescore_every": 1, "checkpoint__minutes": 5.0}
    start(tmp_path / "calm", **changes)
    trained = []
    init = keeper.run_dasm

    def watched(*arguments, on_network, **options):
        def after_network():
            trained.append(1)
            if len(trained) == 2:  # the pool of segment 2 is made anew
                os.kill(os.getpid(), signal.SIGTERM)
            on_network()

        return init(*arguments, on_network=after_network, **options)

    with monkeypatch.context() as patch:
        patch.setattr(keeper, "run_dasm", watched)
        with pytest.raises(Interrupted, match="segment 2, outer iteration 1"):
            start(tmp_path / "run", **changes)
    assert len(trained) == 2
    start(tmp_path / "run", **changes)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")


def test_the_second_signal_is_left_to_the_system(capfd):
    with suppress(KeyboardInterrupt), signals.noted() as found:
        assert found.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert found.signal == signal.SIGINT
        for each in (signal.SIGTERM, signal.SIGINT):
            assert signal.getsignal(each) is signal.SIG_DFL
    assert capfd.readouterr().err.startswith("SIGINT: stopping at")


def test_a_terminal_that_closes_says_so_more_than_once(capfd):
    with signals.noted() as found:
        os.kill(os.getpid(), signal.SIGHUP)
        assert found.signal == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    error = capfd.readouterr().err
    assert error == "SIGHUP: stopping at the next checkpoint; SIGTERM stops at once\n"


def test_a_signal_is_noted_where_nobody_reads_of_it(monkeypatch):
    def gone(handle, text):
        raise BrokenPipeError

    with signals.noted() as found:
        monkeypatch.setattr(os, "write", gone)
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.undo()
        assert found.signal == signal.SIGINT


def test_a_signal_that_nobody_looked_at_is_raised_again(tmp_path, monkeypatch):
    wait = keeper.Checkpoints.wait

    def asked_after_the_last_look(self):
        wait(self)
        if items(tmp_path) == ["000003", "000004"]:
            agree = keeper.hosts.agree
            monkeypatch.setattr(
                keeper.hosts,
                "agree",
                lambda number: (
                    agree(number) or os.kill(os.getpid(), signal.SIGINT) or 0
                ),
            )

    monkeypatch.setattr(keeper.Checkpoints, "wait", asked_after_the_last_look)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path)


def test_a_stop_before_anything_is_kept(tmp_path, monkeypatch):
    whole = keeper.run_dasm

    def asked_at_once(*arguments, on_network, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        on_network()
        return whole(*arguments, on_network=on_network, **options)

    monkeypatch.setattr(keeper, "run_dasm", asked_at_once)
    with pytest.raises(Interrupted) as caught:
        start(tmp_path)
    assert str(caught.value) == (
        "stopped by SIGTERM; the same command starts from the beginning"
    )


def test_a_stop_crosses_processes():
    error = pickle.loads(pickle.dumps(Interrupted(15, "stopped")))
    assert (error.signal, str(error)) == (15, "stopped")


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.noted() as found:
            os.kill(os.getpid(), signal.SIGTERM)
            assert found.signal is None
    finally:
        signal.signal(signal.SIGTERM, before)


# --- workdir and logs -----------------------------------------------------------------


def test_a_workdir_has_one_run_at_a_time(tmp_path):
    settings = from_config(small_config())
    with open_workdir(str(tmp_path), settings):
        with pytest.raises(UserError, match="in use by another run; wait for it, or"):
            start(tmp_path)
        code = "from dasm_jax.files import locked\nfrom pathlib import Path\n"
        code += f"with locked(Path({str(tmp_path / '.lock')!r})) as ours: print(ours)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout == "False\n", done.stderr
    with open_workdir(str(tmp_path), settings) as folder:
        assert folder == tmp_path


def test_what_a_kill_left_of_a_file_is_removed(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "unlink", lambda path: None)  # as if killed before it
        for path in (tmp_path / "synthetic.npz", tmp_path / "images" / "a.png"):
            with pytest.raises(Killed):
                files.write_atomically(path, lambda file: kill())
    assert len(list(tmp_path.rglob(".*.unfinished"))) == 2
    with open_workdir(str(tmp_path), from_config(small_config())):
        assert not list(tmp_path.rglob(".*.unfinished"))


def test_logs_are_continued_at_whole_lines(tmp_path):
    log = RunLog(tmp_path, 3)
    log.metrics("a")
    log.advance("one", True)
    position = log.position
    log.metrics("b")
    log.close()
    for name in ("metrics.jsonl", "log.txt"):
        with (tmp_path / name).open("a") as file:
            file.write("torn")
    log = RunLog(tmp_path, 3, after=position)
    log.metrics("c")
    log.advance("two", True)
    assert log.position.done == 2
    assert log.position.seconds > position.seconds
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["a", "c"]
    text = (tmp_path / "log.txt").read_text()
    assert "torn" not in text
    assert ["1/3 one" in text, "2/3 two" in text] == [True, True]
    RunLog(tmp_path, 3, after=LogPosition()).close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    RunLog(tmp_path, 3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_metrics_that_a_power_loss_took_are_said(tmp_path, caplog):
    log = RunLog(tmp_path, 3)
    log.metrics("a")
    position = log.position
    log.close()
    (tmp_path / "metrics.jsonl").write_bytes(b"\0" * position.metrics_bytes)
    RunLog(tmp_path, 3, after=position).close()
    said = f"metrics.jsonl holds 0 bytes of the {position.metrics_bytes} it had"
    assert said in caplog.text
    assert said in (tmp_path / "log.txt").read_text()


def test_what_a_rollback_has_cut_is_not_lost(tmp_path, caplog):
    log = RunLog(tmp_path, 3)
    log.metrics("a")
    earlier = log.position
    log.metrics("b", text="some more bytes than a rollback has " * 9)
    later = log.position
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('no JSON\n[1]\n{"kind": "rollback"}\n{"halvings": 1}\n')
    back = Rollback("a pixel is not finite", "the beginning", 1, earlier)
    undo(log, back)
    undo(log, back._replace(halvings=2))
    log.close()  # killed before there is a checkpoint of it
    RunLog(tmp_path, 3, after=later).close()
    assert "lost" not in caplog.text + (tmp_path / "log.txt").read_text()
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [(r["kind"], r.get("halvings")) for r in lines] == [
        ("a", None),
        ("rollback", 1),
        ("rollback", 2),
    ]


def test_metrics_that_vanish_are_said_in_one_line(tmp_path):
    log = RunLog(tmp_path, 3)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No such"):
        log.go_back(LogPosition(), lambda record: True)
    log.close()


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt"])
def test_logs_that_lead_elsewhere_are_left_alone(tmp_path, name):
    (tmp_path / "precious").write_text("no whole line")
    (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=f"{name} is a link, and .* remove it"):
        RunLog(tmp_path, 3, after=LogPosition())
    assert (tmp_path / "precious").read_text() == "no whole line"


def synced(monkeypatch):
    """Names of what is synced from now on, in order."""
    done, fsync = [], os.fsync

    def noted(handle):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    return done


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc")
def test_what_is_written_outlasts_a_power_loss(tmp_path, monkeypatch):
    done = synced(monkeypatch)
    files.write_json(tmp_path / "a.json", {})
    assert done[-1] == tmp_path.name
    log = RunLog(tmp_path, 3)
    log.metrics("a")
    _ = log.position
    assert done[-1] == "metrics.jsonl"
    log.close()
    done.clear()
    checkpoint.save(tmp_path / "items", "item", [np.ones(3)], {})
    names = {path.name for path in (tmp_path / "items" / "item" / "tree").rglob("*")}
    metadata = next(i for i, name in enumerate(done) if name.startswith(".metadata"))
    assert {*names, "tree"} <= {*done[:metadata]}
    assert done[metadata + 1 :] == ["item", "items"]


def test_the_first_error_of_a_file_is_told(tmp_path, monkeypatch):
    def gone(path):
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr(files.os, "unlink", gone)
    with pytest.raises(UserError, match=r"a\.json: the first"):
        files.write_atomically(tmp_path / "a.json", fail)


def fail(file):
    raise OSError("the first")


@pytest.mark.parametrize("name", [".lock", "config.json"])
def test_pipes_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    reader = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(UserError, match=r"is no file; remove it|cannot be read"):
            start(tmp_path)
    finally:
        os.close(reader)
    with pytest.raises(UserError):
        start(tmp_path)


def test_logs_are_no_pipes(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    reader = os.open(tmp_path / "log.txt", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UserError, match=r"log\.txt is no file; remove it"):
        RunLog(tmp_path, 3, after=LogPosition())
    os.close(reader)


def test_a_pipe_in_the_place_of_a_summary(tmp_path):
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(UserError, match=r"summary\.json cannot be read; remove"):
        start(tmp_path)


def test_a_folder_that_is_named_like_an_unfinished_file(tmp_path):
    (tmp_path / ".mine.unfinished").mkdir()
    with open_workdir(str(tmp_path), from_config(small_config())):
        assert (tmp_path / ".mine.unfinished").is_dir()


def test_files_of_a_run_inside_are_left_alone(tmp_path):
    (tmp_path / "inner").mkdir()
    being_written = tmp_path / "inner" / ".summary.json.x.unfinished"
    being_written.touch()
    with open_workdir(str(tmp_path), from_config(small_config())):
        assert being_written.exists()


# --- elsewhere ------------------------------------------------------------------------


def test_never_follows_a_link_to_checkpoints(calm, tmp_path, monkeypatch):
    killed(tmp_path / "run", 3)
    folder = tmp_path / "run" / "checkpoints"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "remove_all", lambda folder: None)
        with pytest.raises(UserError, match=r"resume='never', and .* cannot be"):
            start(tmp_path / "run", checkpoint__resume="never")
    done = stop_after(monkeypatch, 0, kill)
    start(tmp_path / "run", checkpoint__resume="never")
    assert len(done) == UNITS
    assert outcome(tmp_path / "run") == outcome(calm)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_never_begins_a_finished_run_anew(calm, tmp_path, monkeypatch):
    start(tmp_path)
    (tmp_path / "experts" / "of_another_time").mkdir(parents=True)
    (tmp_path / "mine.txt").touch()
    done = stop_after(monkeypatch, 0, kill)
    start(tmp_path, checkpoint__resume="never")
    assert len(done) == UNITS
    assert outcome(tmp_path) == outcome(calm)
    assert not (tmp_path / "experts").exists()
    assert (tmp_path / "mine.txt").exists()


def test_never_removes_experts_behind_links_and_of_tables(tmp_path, monkeypatch):
    def item(*names):
        path = tmp_path.joinpath(*names)
        checkpoint.save(path.parent, path.name, [np.ones(1)], {})
        return path

    removed = [
        item("elsewhere", "segment_01", "segment1_expert0"),
        item("elsewhere", "bank", "segment0_expert0"),
        item("runs", "dasm", "segment_02", "segment2_expert0"),
        item("runs", "idc", "bank", "segment0_expert0"),
    ]
    stay = [item("elsewhere", "mine", "item"), item("runs", "mine", "bank", "item")]
    (tmp_path / "elsewhere" / "segment_01" / "notes.txt").touch()
    (tmp_path / "experts").symlink_to(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(run, "remove_items", lambda folder: False)
        with pytest.raises(UserError, match=r"'never', and .*segment_01 cannot be rem"):
            run._remove_result(tmp_path)
    run._remove_result(tmp_path)
    assert not any(path.exists() for path in removed)
    assert all(path.exists() for path in stay)
    assert (tmp_path / "elsewhere" / "segment_01" / "notes.txt").exists()
    assert (tmp_path / "experts").is_symlink()


def test_distances_whose_sum_float32_cannot_hold(tmp_path, monkeypatch):
    problem = small_problem(network__depth=1, matcher__name="dm")
    plans = plan_segments(problem)
    distances = np.full((2, 2), 3e38, np.float32)

    def distil(self, *, on_outer, **rest):
        on_outer(Progress(plans[0], 1, distances, 0.0, lambda: Snapshot([])))
        return []

    monkeypatch.setattr(keeper.Keeper, "distil", distil)
    log = RunLog(tmp_path, 9)
    with keeper.Keeper(problem, plans, tmp_path) as own:
        experiment._distill(problem, own, tmp_path, log)
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["distance"] == pytest.approx(3e38)
    assert line["distance_per_class"] == pytest.approx([3e38, 3e38])


def test_time_and_memory_of_all_processes_are_counted(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir, "peak_memory", lambda: {"process": 10**15, "gpu": None})
        killed(tmp_path, 6)
    path = tmp_path / "checkpoints" / "accounts.json"
    spent = json.loads(path.read_text())
    seconds = spent["wall_seconds"]
    assert {*seconds} == {"data", "plan", "distill", "measure", "evaluate"}
    assert all(0 < value < 600 for value in seconds.values())
    more = {name: value + 1000 for name, value in seconds.items()}
    path.write_text(json.dumps(spent | {"wall_seconds": more | {"distill": "x"}}))
    start(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert 1000 < summary["seconds_evaluating"] < 1600
    assert 1000 < manifest["wall_seconds"]["evaluate"] < 1600
    assert 1000 <= manifest["wall_seconds"]["data"] < 1600
    assert manifest["wall_seconds"]["distill"] < 600
    assert manifest["peak_memory_bytes"]["process"] == 10**15
    assert workdir.highest_peak(manifest["peak_memory_bytes"]) == 10**15


def test_devices_that_are_used_are_counted():
    assert kept.machine(small_problem())["devices"] == 1
    assert kept.machine(small_problem(devices=2))["devices"] == 2


def test_another_machine_is_said(calm, tmp_path, caplog):
    killed(tmp_path, 3)
    with pytest.MonkeyPatch.context() as patch:
        here = kept.machine(small_problem())
        there = here | {"devices": 2, "jax": "0.0.1"}
        patch.setattr(keeper.kept, "machine", lambda problem: there)
        killed(tmp_path, 1)
    said = (
        f"goes on with devices 2 where it was 1, jax 0.0.1 where it was {here['jax']}"
    )
    said += ": the last bits will differ"
    assert said in caplog.text
    assert said in (tmp_path / "log.txt").read_text()
    caplog.clear()
    killed(tmp_path / "same", 3)
    start(tmp_path / "same")
    assert "goes on with" not in caplog.text


def test_what_the_last_bits_follow(monkeypatch):
    here = kept.machine(small_problem())
    assert {"cpu", "cores", "numpy", "optax", "flax", "jax", "jaxlib"} <= {*here}
    assert here["cores"] >= 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    there = kept.machine(small_problem())
    assert checkpoint.differences(here, there) == ["XLA_FLAGS"]
    assert "--xla_cpu_enable_fast_math=true where it was" in kept.moved(here, there)


# --- processes ------------------------------------------------------------------------

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


@pytest.mark.slow
def test_two_kills_change_no_byte(tmp_path):
    said = []
    assert torture(tmp_path, COMPILED, 2, 1, FEWER, said.append), "\n".join(said)
    assert "kills survived: 2" in said[-2]


def test_exit_codes_of_signals(tmp_path):
    run = Run(tmp_path / "run", COMPILED, (*FEWER, "--config.checkpoint.minutes=9"))
    begun, process = run.begun(), run.start()
    while not begun():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    first, second = errors.splitlines()
    assert first.startswith("SIGTERM: stopping at the next checkpoint")
    assert second.startswith("stopped by SIGTERM; the same command goes on from seg")


@pytest.mark.slow
def test_exit_code_of_a_signal_where_nobody_reads(tmp_path):
    run = Run(tmp_path / "run", COMPILED, (*FEWER, "--config.checkpoint.minutes=9"))
    begun, process = run.begun(), run.start()
    while not begun():
        assert process.poll() is None, process.communicate()
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 129
    assert (run.workdir / "checkpoints" / "000001" / "metadata.json").exists()


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_table(tmp_path):
    table = (
        "--config.experiment=compare",
        "--config.compare.matchers=('dm',)",
        "--config.compare.ipcs=(3,)",
        "--config.compare.seeds=(0,)",
        "--config.checkpoint.minutes=9",
        "--config.matcher.dm.loop.niter=2000",
    )
    run = Run(tmp_path / "run", COMPILED, (*FEWER, *table))
    cell = run.workdir / "cells" / "dm_one-segment_ipc3_seed0"
    process = run.start(own_group=True)
    while not (log := cell / "log.txt").exists() or "outer" not in log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    first, second = errors.splitlines()
    assert first.startswith("SIGTERM: stopping at the next checkpoint")
    assert second.startswith("stopped by SIGTERM; the same command goes on from seg")
    assert second in (run.workdir / "log.txt").read_text()
    assert (cell / "checkpoints" / "000001" / "metadata.json").exists()
