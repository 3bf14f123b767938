"""The moments at which ``make torture`` kills, without the runs."""

import signal
import subprocess
import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest

from dasm_jax import trainers
from tests import dying, torture
from tests.stopped import _compiled_once, start  # noqa: F401  (fixture)


class FakeRun(torture.Run):
    """A run that is finished by its fourth process, or by one that was not killed."""

    missed: tuple[str, ...] = ()  # moments that never come

    def __init__(self, workdir, programs, options=()):
        super().__init__(workdir, programs, options)
        self.killed, self.whole = [], False

    def kill(self, kind, rng, life):
        self.whole = kind in self.missed or len(self.killed) == 3
        self.killed += [kind] * (not self.whole)
        return not self.whole

    def may_come(self, kind):
        return kind != "loading" or bool(self.killed)

    @property
    def finished(self):
        return self.whole

    def finish(self):
        return ""

    def result(self):
        return "digest", (), []

    def where(self):
        return "here"


def tortured(tmp_path, monkeypatch, kills, missed=()):
    said = []
    monkeypatch.setattr(torture, "Run", FakeRun)
    monkeypatch.setattr(FakeRun, "missed", missed)
    chosen = ("loading", "scoring", "removing")
    assert torture.torture(tmp_path, tmp_path, kills, 0, (), said.append, chosen)
    return said


def test_every_other_kill_is_chosen_and_all_moments_come(tmp_path, monkeypatch):
    said = tortured(tmp_path, monkeypatch, 12)
    kinds = [line.split(", ")[1].split(":")[0] for line in said if "kill " in line]
    assert kinds[::2] == ["random"] * 6
    assert Counter(kinds[1::2]) == {"loading": 2, "scoring": 2, "removing": 2}
    assert said[-2].startswith("kills survived: 12 ({'random': 6, 'loading': 2")
    assert said[-1] == "bytes equal: True, sha256 digest"


def test_a_moment_that_never_comes_is_said(tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match=r"only 3 of 9 kills.*scoring, does not"):
        tortured(tmp_path, monkeypatch, 9, ("scoring",))


def test_all_moments_are_known():
    for _, chosen in torture.MATCHERS.values():
        for kind in chosen:
            assert kind in torture.FROM_INSIDE or hasattr(torture.Run, kind)


def test_programs_find_out_how_long_a_process_lives(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(FakeRun, "finish", lambda run: order.append(run.workdir.name))
    tortured(tmp_path, monkeypatch, 1)
    assert order == ["compiling", "calm", "killed_0"]


def test_random_moments_are_of_the_whole_life(tmp_path, monkeypatch):
    run, drawn = torture.Run(tmp_path, tmp_path), []
    monkeypatch.setattr(torture, "after", drawn.append)
    monkeypatch.setattr(run, "kill_at", lambda moment: True)
    rng = np.random.default_rng(0)
    for _ in range(100):
        run.kill("random", rng, 50.0)
    assert 0 < min(drawn) < 5
    assert 45 < max(drawn) < 50


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Make a moment that notes its steps, in a folder with two checkpoints."""
    for name in ("000001", "000002"):
        (tmp_path / "checkpoints" / name / "tree").mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "tree" / "a").touch()
    (tmp_path / "checkpoints" / "000001" / "metadata.json").touch()
    monkeypatch.setattr(dying.os, "kill", lambda *_: None)

    def make(kind):
        return dying.Moment(kind, 100, tmp_path), tmp_path / "checkpoints"

    return make


def test_only_whole_checkpoints_are_loaded(steps):
    moment, folder = steps("loading")
    moment("open", (folder / "000002" / "tree" / "a", "rb", 0))
    moment("open", (3, "rb", 0))
    moment("open", (str(folder.parent / "log.txt"), "a", 0))
    assert moment._left == 100
    moment("open", (str(folder / "000001" / "tree" / "a"), "rb", 0))
    moment("open", (folder / "000001" / "metadata.json", "r", 0))
    assert moment._left == 98


def test_checkpoints_are_completed_by_their_last_name(steps):
    moment, folder = steps("completing")
    item = folder / "000002"
    moment("open", (item / "tree" / "a", "wb", 0))
    moment("os.rename", (item / "b", item / "tree" / "metadata.json"))
    moment("os.rename", (item / "b", folder / "evaluation_000" / "metadata.json"))
    moment("os.rename", (item / "b", folder.parent / "synthetic.npz"))
    assert moment._left == 100
    moment("os.rename", (item / "b", str(item / "metadata.json"), -1, -1))
    assert moment._left == 99


@pytest.mark.parametrize(
    ("kind", "finished", "removed", "counts"),
    [
        ("removing", False, "000001", True),
        ("removing", False, "", False),
        ("discarding", False, "", False),
        ("discarding", True, "", True),
        ("discarding", True, "000001", False),
    ],
)
def test_what_is_removed(steps, kind, finished, removed, counts):
    moment, folder = steps(kind)
    if finished:
        (folder.parent / "summary.json").touch()
    moment("os.remove", ("metadata.json",))
    moment("shutil.rmtree", (folder / removed,))
    assert moment._left == 100
    moment("os.remove", ("a",))
    assert moment._left == 100 - counts


@pytest.mark.slow
def test_the_networks_of_a_moment_are_told_apart(tmp_path, monkeypatch):
    counts: Counter[str] = Counter()
    for kind, (maker, user) in dying.CALLS.items():
        # Put there once more, to be taken back in the end.
        monkeypatch.setattr(trainers, maker, getattr(trainers, maker))
        step = partial(counts.update, [kind])
        dying.watch(trainers, maker, user, step)
    for make in (trainers.make_trainer, trainers.make_predictor):
        make.cache_clear()  # none of what was made before is watched
    steps = {"dasm__score_steps": 7, "evaluate__steps": 6, "measure__networks": 1}
    start(tmp_path, **steps, measure__steps=7)
    # One network scores, five sets are evaluated; the one that measures does not count.
    assert counts == {"training": 7, "scoring": 1, "evaluating": 5 * 6}


def test_the_step_ends_the_process(tmp_path):
    item = tmp_path / "checkpoints" / "000001"
    item.mkdir(parents=True)
    (item / "metadata.json").touch()
    script = tmp_path / "script.py"
    script.write_text(f"for n in '12':\n    open({str(item / 'metadata.json')!r})\n")
    for steps, code in [(2, -signal.SIGKILL), (3, 0)]:
        command = ("-m", "tests.dying", "loading", str(steps), str(script))
        done = subprocess.run(
            [sys.executable, *command, f"--workdir={tmp_path}"], cwd=torture.ROOT
        )
        assert done.returncode == code
