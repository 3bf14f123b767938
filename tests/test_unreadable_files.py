"""Files of a run that cannot be read now, told apart from damaged ones."""

import errno
import io
import os
from functools import partial

import numpy as np
import pytest

from dasm_jax import npz, report, synthetic_files
from dasm_jax.errors import CannotRead, UserError
from dasm_jax.experiments import analysis_rows, common, sets
from dasm_jax.files import is_there, read_json, read_record, write_json
from dasm_jax.settings import from_config
from dasm_jax.workdir import claim_workdir, open_workdir
from tests.checkpoint_cases import content
from tests.small import small_config, small_dataset, small_problem
from tests.test_curve import start
from tests.unreadable import unreadable


class Failing(io.FileIO):
    """A file on a disk that fails when it is read."""

    def read(self, size=-1):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


PASSING = [errno.EACCES, errno.ESTALE, errno.EMFILE, errno.EIO]


@pytest.mark.parametrize("code", PASSING)
def test_a_summary_that_cannot_be_read_now_is_not_to_be_removed(tmp_path, code):
    write_json(tmp_path / "summary.json", {"table": []})
    with (
        unreadable(tmp_path / "summary.json", code),
        pytest.raises(CannotRead, match=os.strerror(code)) as caught,
    ):
        common.finished_summary(tmp_path)
    assert "nothing has to be removed: start again" in str(caught.value)
    assert "; remove" not in str(caught.value)
    assert common.finished_summary(tmp_path) == {"table": []}


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "synthetic.npz"])
def test_a_report_says_so_as_well(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with (
        unreadable(tmp_path / name, errno.EIO),
        pytest.raises(CannotRead, match=f"^.*{name} cannot be read now: Input/output"),
    ):
        report.write_report(tmp_path)


def test_the_owner_of_a_workdir_that_cannot_be_read_now(tmp_path):
    settings = from_config(small_config())
    claim_workdir(tmp_path, settings)
    with (
        unreadable(tmp_path / "config.json", errno.EIO),
        pytest.raises(CannotRead, match="nothing has to be removed"),
        open_workdir(str(tmp_path), settings),
    ):
        pass


def test_whether_a_file_is_there_is_not_always_known(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert is_there(tmp_path / "file")
    assert not is_there(tmp_path / "none")
    assert not is_there(tmp_path / "file" / "none")

    def stat(*arguments, **options):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(CannotRead, match="Stale file handle"):
        is_there(tmp_path / "file")


def test_a_damaged_file_is_named_alone(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="damaged; remove it to make") as caught:
        common.finished_summary(tmp_path)
    assert str(tmp_path / "summary.json") in str(caught.value)
    assert f"remove {tmp_path}" not in str(caught.value)
    with pytest.raises(UserError, match="missing"):
        read_json(tmp_path / "none.json")


def test_a_manifest_is_made_again_without_the_summary(tmp_path):
    write_json(tmp_path / "config.json", {})
    write_json(tmp_path / "summary.json", {})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(
        UserError, match=r"manifest\.json .* remove .*/summary\.json to"
    ):
        analysis_rows._read(tmp_path)


# --- what a table has kept ------------------------------------------------------------


def test_a_record_that_cannot_be_read_now_is_not_an_empty_one(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with unreadable(tmp_path, errno.EIO), pytest.raises(CannotRead):
        read_record(tmp_path / "x.json")
    assert read_record(tmp_path / "x.json") == {"a": 1}


def test_a_set_that_does_not_fit_now_is_not_a_damaged_one(tmp_path, monkeypatch):
    problem, path = small_problem(), tmp_path / "set.npz"
    parts = [sets.Part(np.zeros((2, 3, 8, 8, 1), np.float32), 0.0, 0.0)]
    sets.save(path, problem, parts, sets.formation_for(problem, "random"))
    for module in (npz, synthetic_files):
        with monkeypatch.context() as patch:
            patch.setattr(module, "physical_memory", lambda: 1000)
            with pytest.raises(CannotRead, match="more than this machine's memory"):
                sets.load_decoded(path, problem, 6)
    with unreadable(path, errno.EIO), pytest.raises(CannotRead, match="Input/output"):
        sets.load_decoded(path, problem, 6)
    with monkeypatch.context() as patch:  # it opens, and no more
        patch.setattr(npz, "open_regular", Failing)
        with pytest.raises(CannotRead, match="Input/output"):
            sets.load_decoded(path, problem, 6)
    assert sets.load_decoded(path, problem, 6) is not None


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A curve whose set of Random is to be evaluated again, and what starts it."""
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    begin = partial(start, tmp_path, curve__methods=("random",), curve__ipcs=(2,))
    begin()
    (tmp_path / "cells" / "random_ipc2_seed0.json").unlink()
    return tmp_path, begin


@pytest.mark.parametrize("name", ["random_ipc2_seed0.json", "random_ipc2_seed0.npz"])
def test_a_table_makes_no_set_anew_that_cannot_be_read_now(made, name):
    workdir, begin = made
    before = content(workdir / "sets")
    with unreadable(workdir / "sets" / name, errno.EIO):
        said = begin()
    assert f"{name} cannot be read now: Input/output error" in " ".join(said.split())
    assert content(workdir / "sets") == before
    assert "cannot be read" not in begin()


def test_nor_does_another_cell_of_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    begin = partial(start, tmp_path, curve__methods=("dasm",), curve__ipcs=(2, 4))
    begin()
    facts = sorted((tmp_path / "sets").glob("dasm*.json"))
    assert len(facts) == 2
    for damaged, other in (facts, facts[::-1]):
        (tmp_path / "cells" / damaged.name).unlink()
        damaged.unlink()
        kept = other.with_suffix(".npz")
        before = kept.stat().st_mtime_ns
        with unreadable(kept, errno.EIO):
            said = begin()
        assert f"{kept.name} cannot be read now" in " ".join(said.split())
        assert kept.stat().st_mtime_ns == before
        assert not damaged.exists()
        assert "cannot be read" not in begin()


def test_a_table_ends_where_an_accuracy_cannot_be_read_now(made):
    workdir, begin = made
    begin()
    before = content(workdir / "cells")
    with (
        unreadable(workdir / "cells" / "random_ipc2_seed0.json", errno.EIO),
        pytest.raises(CannotRead, match="Input/output error"),
    ):
        begin()
    assert content(workdir / "cells") == before
