"""The table of matchers: which cells it has, how they fail, and what signals do."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from configs import default
from dasm_jax import files, run, signals
from dasm_jax.errors import Interrupted, UserError
from dasm_jax.experiments import common, compare
from dasm_jax.experiments.compare import cell_settings, cells_of, run_cell
from dasm_jax.plan import is_polished
from dasm_jax.settings import from_config
from tests.small import small_dataset
from tests.test_compare_runs import tiny_table
from tests.test_compare_table import settings_with
from tests.torture import ROOT

MATCHERS = ("idc", "dc", "dsa", "dm", "cafe", "mtt")


# --- cells ----------------------------------------------------------------------------


def kinds(cells):
    return [(cell.row, cell.column, cell.ipc, cell.seed) for cell in cells]


def test_every_matcher_alone_and_under_dasm_and_what_stands_beside():
    s = settings_with(compare__ipcs=(6, 4), compare__seeds=(3, 1))
    expected = [
        (row, column, ipc, seed)
        for seed in (3, 1)
        for ipc in (4, 6)  # the cheap ones first
        for row, column in [
            ("Random", ""),
            *(
                (name.upper(), column)
                for name in MATCHERS
                for column in ("one segment", "DASM")
            ),
            ("SeqMatch", "DASM"),
            ("SRe2L", "one segment"),
        ]
    ]
    cells = cells_of(s)
    assert kinds(cells) == expected
    assert len({cell.folder for cell in cells}) == len(expected)
    assert all(re.fullmatch(r"[a-z0-9_-]+", cell.folder) for cell in cells)
    experiments = {cell.row: cell.experiment for cell in cells}
    assert experiments.pop("Random") == "baselines"
    assert experiments.pop("SRe2L") == "recover"
    assert set(experiments.values()) == {"distill"}


def test_only_the_matchers_asked_for():
    s = settings_with(
        compare__matchers=("mtt", "dm"), compare__ipcs=(4,), compare__seeds=(0,)
    )
    rows = [row for row, *_ in kinds(cells_of(s))]
    assert rows == ["Random", "MTT", "MTT", "DM", "DM", "SeqMatch", "SRe2L"]


def test_settings_of_the_cells():
    s = settings_with(
        dasm__segments=3,
        matcher__name="cafe",
        dasm__pool="static_filter",
        compare__ipcs=(4, 6),
        compare__seeds=(0, 7),
    )
    for cell in cells_of(s):
        of_cell = cell_settings(s, cell)
        assert (of_cell.ipc, of_cell.seed) == (cell.ipc, cell.seed)
        experiment = "recover" if cell.row == "SRe2L" else "distill"
        assert of_cell.experiment == experiment
        if cell.experiment == "distill":
            segments = 1 if cell.column == "one segment" else 3
            assert of_cell.dasm.segments == segments
            name = "idc" if cell.row == "SeqMatch" else cell.row.lower()
            assert of_cell.matcher.name == name
        if cell.row not in ("SeqMatch", "SRe2L", "Random"):
            assert of_cell.dasm.pool == "static_filter"
            assert of_cell.dasm.context == "active"
            assert of_cell.matcher.dm == s.matcher.dm
            assert of_cell.matcher.idc == s.matcher.idc
            assert not of_cell.matcher.active.needs_segment_networks


def test_seqmatch_has_segments_but_no_difficulty():
    s = settings_with(dasm__segments=2, matcher__name="dm")
    cell = next(cell for cell in cells_of(s) if cell.row == "SeqMatch")
    of_default = cell_settings(from_config(default.get_config()), cell)
    assert not is_polished(of_default)
    assert (of_default.synthetic.init, of_default.dasm.budget) == ("mix", "flops")
    of_cell = cell_settings(s, cell)
    assert of_cell.dasm.segments == 2
    assert of_cell.dasm.pool == "full"
    assert of_cell.dasm.context == "cumulative"
    assert of_cell.matcher.name == "idc"
    assert of_cell.matcher.idc.trajectory.start == "segments"
    assert of_cell.matcher.active.needs_segment_networks
    # Otherwise it is IDC as it stands.
    assert of_cell.matcher.idc.image == s.matcher.idc.image
    assert of_cell.matcher.idc.loop == s.matcher.idc.loop


def test_all_cells_are_evaluated_alike():
    s = settings_with(compare__ipcs=(4, 6), compare__seeds=(5, 7), evaluate__seed=9)
    evaluations = {}
    for cell in cells_of(s):
        of_cell = cell_settings(s, cell)
        evaluations.setdefault(cell.seed, set()).add(of_cell.evaluate)
        assert of_cell.evaluate.seed == cell.seed
        assert not of_cell.evaluate.prefixes
        assert not of_cell.evaluate.baselines
        assert of_cell.evaluate.recipe == s.evaluate.recipe
        assert of_cell.evaluate.steps == s.evaluate.steps
        assert (of_cell.data, of_cell.network) == (s.data, s.network)
    assert {seed: len(found) for seed, found in evaluations.items()} == {5: 1, 7: 1}


def test_a_table_that_does_not_hold_together_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "ProcessPoolExecutor", None)  # calling it would fail
    # SeqMatch takes networks from the segments, and cannot take them from a bank.
    with pytest.raises(UserError, match=r"trajectory\.bank=2"):
        run.run(settings_with(matcher__idc__trajectory__bank=2), str(tmp_path))
    assert not (tmp_path / "config.json").exists()


def test_no_cell_has_more_segments_than_images():
    s = settings_with(compare__ipcs=(1, 3, 8), dasm__segments=5)
    for cell in cells_of(s):
        alone = cell.column == "one segment" and cell.row != "SRe2L"  # which has none
        expected = 1 if alone else min(5, cell.ipc)
        assert cell_settings(s, cell).dasm.segments == expected


# --- one cell -------------------------------------------------------------------------


def test_a_cell_that_fails_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    s = settings_with(matcher__idc__image__lr=1e38)
    cell = next(cell for cell in cells_of(s) if cell.row == "IDC")
    of_cell = cell_settings(s, cell)
    outcome = run_cell(cell.experiment, of_cell, str(tmp_path / "idc"))
    assert list(outcome) == ["failure"]
    assert "not finite" in outcome["failure"]
    (tmp_path / "file").touch()
    outcome = run_cell(cell.experiment, of_cell, str(tmp_path / "file" / "idc"))
    assert "cannot write" in outcome["failure"]


def test_a_bug_is_no_result(tmp_path, monkeypatch):
    def broken(*arguments, **keywords):
        raise RuntimeError("a bug")

    monkeypatch.setattr(common, "load_dataset", broken)
    s = settings_with()
    cell = next(cell for cell in cells_of(s) if cell.row == "DM")
    with pytest.raises(RuntimeError, match="a bug"):
        run_cell(cell.experiment, cell_settings(s, cell), str(tmp_path / "dm"))


def test_a_document_that_cannot_be_written_is_refused_ahead(tmp_path):
    (tmp_path / "file").touch()
    for document in (tmp_path / "none" / "results.md", tmp_path / "file" / "x.md"):
        s = tiny_table(document)
        with pytest.raises(UserError, match=r"config\.compare\.document"):
            compare.run(s, tmp_path)
    assert not (tmp_path / "cells").exists()


def die(*_):
    os._exit(9)


def test_a_killed_cell_does_not_end_the_table(monkeypatch):
    monkeypatch.setattr(compare, "run_cell", die)
    failure = compare._in_a_process("distill", settings_with(), "nowhere")
    assert "killed" in failure["failure"]


# --- signals --------------------------------------------------------------------------


def tell_masks(experiment, settings, folder):
    """Whether Ctrl-C is held back before a cell runs, and in it."""

    def held():
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    before = held()

    def tell(settings, workdir):
        raise UserError(f"{before} {held()} {signal.getsignal(signal.SIGINT).name}")

    compare.distill.run = tell
    return run_cell(experiment, settings, folder)


def test_ctrl_c_waits_while_a_cell_imports(tmp_path, monkeypatch):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    monkeypatch.setattr(compare, "run_cell", tell_masks)
    s = settings_with(experiment="distill")
    result = compare._in_a_process("distill", s, str(tmp_path))
    assert result == {"failure": "True False SIG_DFL"}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def stop_when_asked(experiment, settings, folder):
    """A cell that keeps what it has, and gets every signal more than once."""
    with signals.noted() as found:
        (Path(folder) / "begun").touch()
        while found.signal is None:
            time.sleep(0.01)
        os.kill(os.getpid(), found.signal)
    os.kill(os.getpid(), found.signal)
    time.sleep(2 * compare.LOOK)
    raise Interrupted(found.signal, "all is kept")


def linger(experiment, settings, folder):
    """A cell that has nothing to keep."""
    (Path(folder) / "begun").touch()
    time.sleep(60)


def signalled(monkeypatch, folder, cell, number):
    """What a cell ends with when this process gets a signal in the middle of it."""

    def send():
        while not (folder / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(compare, "run_cell", cell)
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(Interrupted) as caught:
        compare._in_a_process("distill", settings_with(), str(folder))
    thread.join()
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before
    assert caught.value.signal == number
    return str(caught.value)


@pytest.mark.slow
def test_a_cell_is_waited_for_when_a_signal_comes(tmp_path, monkeypatch, capfd):
    text = signalled(monkeypatch, tmp_path, stop_when_asked, signal.SIGTERM)
    assert text == "all is kept"
    lines = capfd.readouterr().err.splitlines()
    assert [line[:20] for line in lines] == ["SIGTERM: stopping at"]  # said once


def test_a_cell_that_keeps_nothing_ends_at_once(tmp_path, monkeypatch):
    began = time.monotonic()
    text = signalled(monkeypatch, tmp_path, linger, signal.SIGTERM)
    assert (
        f"stopped by SIGTERM; the same command goes on with the cell {tmp_path.name}"
        == text
    )
    assert time.monotonic() - began < 40


def never_done(settings, workdir):
    with signals.noted():
        (workdir / "begun").touch()
        time.sleep(60)


def stubborn(experiment, settings, folder):
    """A cell whose outer iterations are long; it has its process to itself."""
    compare.distill.run = never_done
    return run_cell(experiment, settings, folder)


def test_a_second_signal_ends_both_processes(tmp_path):
    code = (
        "from tests import test_compare as tests\n"
        "tests.compare.run_cell = tests.stubborn\n"
        "settings = tests.settings_with(experiment='distill')\n"
        f"tests.compare._in_a_process('distill', settings, {str(tmp_path)!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert "a second one stops at once" in process.stderr.readline()
    time.sleep(2 * compare.LOOK)
    with files.locked(tmp_path / ".lock") as ended:
        assert not ended
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM
    until, ended = time.monotonic() + 10, False
    while not ended and time.monotonic() < until:
        with files.locked(tmp_path / ".lock") as ended:
            time.sleep(0.01)
    assert ended
