"""The report on which outputs have the same bits."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import determinism
from tests.determinism import compare, report

ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ONES, "same bits"),
        (ONES + np.float32([0, 0, 0.25]), "2.5e-01"),
        (ONES.astype(np.float64), "others"),
        (ONES[:2], "others"),
        (-ONES * 0, "1.0e+00"),
    ],
)
def test_what_is_said_of_two_arrays(other, said):
    assert compare(ONES, other) == said


def test_bits_are_compared_not_values():
    assert compare(np.float32([0.0]), np.float32([-0.0])) == "0.0e+00"
    assert compare(np.array(["ab"]), np.array(["ac"])) == "others"


@pytest.mark.parametrize("differs", ["", "a", "b"])
def test_every_second_run_decides(differs, monkeypatch, tmp_path):
    seen = []

    def run(folder, which, options):
        seen.append((folder, which.python, which.devices))
        changed = which.title == "again" and which.python == differs
        return {"pixels": ONES * (which.devices + changed + (which.python == "b"))}

    monkeypatch.setattr(determinism, "run", run)
    monkeypatch.setattr(determinism, "_versions", lambda python: f"jax of {python[0]}")
    text, same = report(tmp_path, ["a", "b", "another with the jax of a"])
    assert same == (not differs)
    assert [each[1:] for each in seen] == [
        (python, devices) for python in "ab" for devices in (1, 1, 4)
    ]
    assert len({folder for folder, *_ in seen}) == 6
    again = ["1.0e+00" if python == differs else "same bits" for python in "ab"]
    assert text.splitlines() == [
        "| compared with one device, jax of a | again | 4 devices |",
        "| --- | --- | --- |",
        f"| pixels | {again[0]} | 3.0e+00 |",
        "",
        "| compared with one device, jax of b | again | 4 devices | jax of a |",
        "| --- | --- | --- | --- |",
        f"| pixels | {again[1]} | 3.0e+00 | 1.0e+00 |",
    ]


def test_every_run_compiles_for_itself(monkeypatch, tmp_path):
    caches = []

    def started(command, env, **_):
        caches.append(Path(env["JAX_COMPILATION_CACHE_DIR"]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(determinism.subprocess, "run", started)
    monkeypatch.setattr(determinism, "outputs", lambda folder: {"pixels": ONES})
    monkeypatch.setattr(determinism, "_versions", lambda python: f"jax of {python}")
    assert report(tmp_path, ["a", "b"])[1]
    assert len({*caches}) == 6
    assert all(tmp_path in cache.parents and not cache.exists() for cache in caches)


@pytest.mark.parametrize("there", [(), determinism.OTHERS[:1], determinism.OTHERS])
def test_what_is_not_installed_is_said(there, monkeypatch, tmp_path, capsys):
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    given = []
    monkeypatch.setattr(determinism, "ROOT", tmp_path)
    monkeypatch.setattr(
        determinism, "report", lambda folder, all_: given.extend(all_) or ("|", True)
    )
    monkeypatch.setattr(sys, "argv", ["determinism", "--python", "mine"])
    with pytest.raises(SystemExit):
        determinism.main()
    assert given == [sys.executable, *(str(tmp_path / name) for name in there), "mine"]
    missing = [name for name in determinism.OTHERS if name not in there]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + bool(missing)
    assert all(name in lines[0] and "run `make matrix`" in lines[0] for name in missing)
