"""Checkpoints that cannot be read now, are damaged, or are links."""

import errno
import gc
import os
import resource
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from dasm_jax import checkpoint, stored_tree
from dasm_jax.errors import UserError
from dasm_jax.experiments import keeper
from dasm_jax.numbered import Checkpoints
from tests.checkpoint_cases import LIKE, content, names, record_of, write_record
from tests.small import slow_but


def written(folder, count=2):
    items = Checkpoints(folder, count)
    for value in range(count):
        items.save([np.full(3, value, np.float32), np.int64(value)], {"value": value})
    items.wait()
    items.close()
    return folder


def newest(folder, careful=False):
    items = Checkpoints(folder, 2, careful)
    try:
        found = items.newest(lambda metadata: LIKE)
    finally:
        items.close()
    return found[0].metadata["value"] if found else None


# --- not now --------------------------------------------------------------------------


def stale(patch, folder):
    whole = checkpoint.read_regular

    def read(path, most):
        if path.parent.name == "000002":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return whole(path, most)

    patch.setattr(checkpoint, "read_regular", read)
    return "Stale file handle"


def broken_disk(patch, folder):
    def digest(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch.setattr(stored_tree.hashlib, "file_digest", digest)
    return "Input/output error"


def other_orbax(patch, folder):
    def refuse(*arguments, **options):
        raise RuntimeError("format 3 is not supported\nmore")

    record = record_of(folder / "000002")
    assert record["orbax"] == stored_tree.VERSION
    write_record(folder / "000002", record | {"orbax": "9.8.7"})
    patch.setattr(stored_tree.ocp.Checkpointer, "restore", refuse)
    return f"with Orbax {stored_tree.VERSION}, where Orbax 9.8.7 wrote it: format 3 is"


@pytest.mark.parametrize("trouble", [stale, broken_disk, other_orbax])
def test_what_cannot_be_read_now_is_not_removed(tmp_path, monkeypatch, trouble):
    written(tmp_path)
    with monkeypatch.context() as patch:
        said = trouble(patch, tmp_path)
        before = content(tmp_path)
        with pytest.raises(UserError, match=said) as caught:
            newest(tmp_path)
    assert "\n" not in str(caught.value)
    assert "000002 cannot be read" in str(caught.value)
    assert content(tmp_path) == before
    assert newest(tmp_path) == 1


@contextmanager
def handles_left(count):
    """No more than so many files can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    with ExitStack() as stack:
        for handle in iter(lambda: os.open(os.devnull, os.O_RDONLY), used):
            stack.callback(os.close, handle)  # there are gaps below
        stack.callback(os.close, used)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + count, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("count", slow_but(range(4), 0))
def test_too_few_file_handles_remove_nothing(tmp_path, count):
    written(tmp_path)
    newest(tmp_path)  # whatever is opened once
    before = content(tmp_path)
    with (
        handles_left(count),
        pytest.raises(UserError, match="Too many open files; nothing is removed"),
    ):
        newest(tmp_path)
    gc.collect()  # whoever was left half made complains now
    assert content(tmp_path) == before
    assert newest(tmp_path) == 1


# --- damaged --------------------------------------------------------------------------


def test_the_damaged_are_set_aside_until_a_newer_one_is_whole(tmp_path):
    written(tmp_path)
    (tmp_path / "000002" / "metadata.json").write_text("{")
    assert newest(tmp_path) == 0
    assert names(tmp_path) == ["000001", "000002.damaged"]
    (tmp_path / "000001" / "metadata.json").write_text("{")
    assert newest(tmp_path) is None
    assert names(tmp_path) == ["000001.damaged", "000002.damaged"]
    items = Checkpoints(tmp_path, 2)
    items.save(LIKE, {"value": 7})
    items.close()
    assert names(tmp_path) == ["000003"]


def test_the_careful_remove_nothing(tmp_path):
    written(tmp_path)
    for name in ("000001", "000002"):
        (tmp_path / name / "metadata.json").write_text("{")
    before = content(tmp_path)
    assert newest(tmp_path, careful=True) is None
    assert content(tmp_path) == before


def test_what_was_left_in_a_folder_goes_with_the_old_item(tmp_path):
    left = tmp_path / "item" / "tree.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "big").touch()
    checkpoint.save(tmp_path, "item", LIKE, {})
    assert names(tmp_path / "item") == ["metadata.json", "tree"]


# --- links ----------------------------------------------------------------------------


def test_numbers_may_outgrow_their_places(tmp_path):
    (tmp_path / "999999").mkdir()
    written(tmp_path)
    assert {*names(tmp_path)} == {"1000000", "1000001"}
    assert newest(tmp_path) == 1


def test_a_link_or_another_name_is_no_item(tmp_path):
    folder, outside = written(tmp_path / "items"), tmp_path / "outside"
    outside.mkdir()
    (outside / "metadata.json").write_text("precious")
    (folder / "000009").symlink_to(outside)
    for name in ("٠٠٠٠٠٧", "7", "0000007"):
        (folder / name).mkdir()
    assert newest(folder) == 1
    written(folder)
    assert (outside / "metadata.json").read_text() == "precious"
    assert {"٠٠٠٠٠٧", "7", "0000007", "000009"} <= {*names(folder)}


def test_of_a_linked_folder_the_items_are_removed(tmp_path):
    elsewhere = written(tmp_path / "elsewhere")
    (elsewhere / "evaluation_000" / "tree.orbax-checkpoint-tmp").mkdir(parents=True)
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "file").touch()
    (tmp_path / "checkpoints").symlink_to(elsewhere)
    keeper.discard(tmp_path)
    assert names(elsewhere) == ["mine"]
