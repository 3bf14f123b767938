"""Signals: a run ends at the next checkpoint, and its exit code says why."""

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

import main
from dasm_jax import signals
from dasm_jax.errors import Interrupted
from dasm_jax.experiments import keeper
from tests.stopped import (  # noqa: F401  (fixtures)
    COMPILED,
    FEWER,
    _compiled_once,
    items,
    killed,
    outcome,
    start,
)
from tests.torture import ROOT, Run


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
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert capfd.readouterr().err.startswith("SIGINT: stopping at")


@pytest.mark.parametrize("after", [0.0, signals.TOGETHER])
def test_a_signal_of_another_kind_is_the_second_one_later(monkeypatch, after):
    raised, now = [], [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.noted() as found:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += after + 0.1
        monkeypatch.setattr(signals.signal, "raise_signal", raised.append)
        os.kill(os.getpid(), signal.SIGTERM)
        assert found.signal == signal.SIGINT
        assert raised == [signal.SIGTERM] * bool(after)
        left = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert left is bool(after)
        monkeypatch.undo()


def test_signals_that_come_together_are_one_request(capfd):
    # Python sees both after one call into C, and calls handlers by their numbers.
    with signals.noted() as found:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)  # to this thread: another one has no mask
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
        assert found.signal == signal.SIGTERM
    error = capfd.readouterr().err
    assert error == "SIGHUP: stopping at the next checkpoint; SIGTERM stops at once\n"


def test_a_terminal_that_closes_says_so_more_than_once(capfd):
    with signals.noted() as found:
        os.kill(os.getpid(), signal.SIGHUP)
        assert found.signal == signal.SIGHUP
        os.kill(os.getpid(), signal.SIGHUP)
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


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_exit_codes(number, code, capfd):
    assert main.tell(Interrupted(number, "stopped; the same command goes on")) == code
    assert capfd.readouterr().err == "stopped; the same command goes on\n"


# --- processes ------------------------------------------------------------------------


@pytest.mark.slow
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


def test_an_interrupt_while_modules_are_imported_ends_the_process(tmp_path):
    """Python's exception could be lost there, in a callback of XLA's."""
    code = """if True:
        import builtins, os, runpy, signal, sys
        whole = builtins.__import__
        def imported(name, *rest, **options):
            if name == "jax":
                os.kill(os.getpid(), signal.SIGINT)
            return whole(name, *rest, **options)
        builtins.__import__ = imported
        sys.argv = ["main.py", "--config=configs/digits.py", "--workdir=" + sys.argv[1]]
        runpy.run_path("main.py", run_name="__main__")
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGINT
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
