"""Several processes: the folder that the others are sent, and how all of them end."""

import os
import tarfile
from contextlib import nullcontext, suppress

import numpy as np
import pytest

from dasm_jax import hosts
from dasm_jax.errors import (
    CannotWrite,
    Interrupted,
    NonFiniteError,
    SameForAll,
    UserError,
)
from dasm_jax.experiments.common import failed


def packed(workdir, copy):
    """Names that another process finds."""
    with hosts._pack(workdir) as file:
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(copy, filter="data")
    return {path.relative_to(copy).as_posix() for path in copy.rglob("*")}


def test_only_what_a_run_reads_is_sent(tmp_path):
    workdir, other = tmp_path / "run", tmp_path / "other"
    for folder in (workdir / "cells", workdir / "another_run", other / "000001"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("content")
    os.link(workdir / "cells" / "file", workdir / "cells" / "same")
    (workdir / "checkpoints").symlink_to(other)
    (workdir / "secret").symlink_to("/etc/hostname")
    (workdir / "datasets").symlink_to(other)
    assert packed(workdir, tmp_path / "copy") == {
        "cells",
        "cells/file",
        "cells/same",
        "checkpoints",
        "checkpoints/000001",
        "checkpoints/000001/file",
    }


@pytest.mark.parametrize("name", ["cells", "summary.json", "checkpoints/000001"])
def test_what_only_the_first_process_would_follow_is_refused(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"^{name} in --workdir is a link, or neither"):
        hosts._pack(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(UserError, match=f"^{name} in --workdir is a link, or neither"):
        hosts._pack(tmp_path / "run")


@pytest.fixture
def sent(monkeypatch):
    """Play both processes: the first one's words, which the other one hears."""
    words = []

    def broadcast(word):
        words.append(np.array(word))
        return word

    def heard(like):
        word = words.pop(0)
        assert word.shape == like.shape
        return word

    def take(number):
        monkeypatch.setattr(hosts, "alone", lambda: False)
        monkeypatch.setattr(hosts, "is_first", lambda: number == 0)
        monkeypatch.setattr(hosts, "agree", lambda number: number)
        monkeypatch.setattr(
            hosts.multihost_utils, "broadcast_one_to_all", (broadcast, heard)[number]
        )

    return take


def test_the_others_find_what_the_first_one_finds(tmp_path, sent, monkeypatch):
    monkeypatch.setattr(hosts, "CHUNK", 1000)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "file").write_text("content")
    sent(0)
    with hosts.folder(nullcontext(tmp_path)) as workdir:
        assert workdir == tmp_path
    sent(1)
    with hosts.folder(nullcontext()) as workdir:
        assert (workdir / "cells" / "file").read_text() == "content"
        assert [path.name for path in workdir.iterdir()] == ["cells"]
    assert not workdir.exists()


def test_the_others_end_where_the_first_one_finds_nothing(tmp_path, sent):
    (tmp_path / "cells").symlink_to("nowhere")
    sent(0)
    with pytest.raises(UserError), hosts.folder(nullcontext(tmp_path)):
        raise AssertionError
    sent(1)
    with (
        pytest.raises(UserError, match="the first process could not open --workdir"),
        hosts.folder(nullcontext()),
    ):
        raise AssertionError


def test_no_room_for_the_copy_is_one_line(tmp_path, sent, monkeypatch):
    sent(0)
    with hosts.folder(nullcontext(tmp_path)):
        pass
    sent(1)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with (
        pytest.raises(
            UserError, match=r"no copy of --workdir can be stored .*No space"
        ),
        hosts.folder(nullcontext()),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (None, True),
        (Interrupted(15, "stopped"), True),
        (NonFiniteError("a pixel", None), True),
        (SameForAll("a network"), True),
        (UserError("of this process alone"), False),
    ],
)
def test_nobody_leaves_before_all_are_done(tmp_path, sent, monkeypatch, error, waits):
    sent(0)
    agreed = []
    monkeypatch.setattr(hosts, "agree", agreed.append)
    with suppress(Exception), hosts.folder(nullcontext(tmp_path)):
        if error is not None:
            raise error
    assert agreed == [0] * waits


def test_an_error_of_one_process_ends_the_table_of_all(monkeypatch):
    user, write = UserError("no memory"), CannotWrite("full")
    diverged, alike = NonFiniteError("a pixel", None), SameForAll("a network")

    def ending():
        """Which of them end a table."""
        for error in (user, write, diverged, alike):
            try:
                assert failed(error) == {"failure": str(error)}
            except type(error):
                yield error

    assert list(ending()) == [write]
    monkeypatch.setattr(hosts, "alone", lambda: False)
    assert list(ending()) == [user, write]
