"""Items with numbers: the newest whole one, and what could not be written."""

import time
from collections import namedtuple

import numpy as np
import pytest

from dasm_jax import checkpoint
from dasm_jax.errors import UserError
from dasm_jax.numbered import Checkpoints
from tests.checkpoint_cases import empty_metadata, lose_a_file, one_line


def numbered(folder, *values, keep=2):
    """Items that hold one number each."""
    items = Checkpoints(folder, keep)
    for value in values:
        items.save([np.float32(value)], {"value": value})
    items.wait()
    items.close()
    return sorted(path.name for path in folder.iterdir())


def newest(folder):
    items = Checkpoints(folder, 2)
    found = items.newest(lambda metadata: [np.float32(0)])
    items.close()
    if not found:
        return None
    (((value,), metadata, number),) = found
    assert value == metadata["value"]
    return f"{number:06d}", metadata["value"]


def test_the_newest_items_are_kept(tmp_path):
    assert newest(tmp_path / "nothing") is None
    assert numbered(tmp_path, 5, 6, 7) == ["000002", "000003"]
    assert newest(tmp_path) == ("000003", 7)
    assert numbered(tmp_path, 8, keep=1) == ["000004"]


def test_half_an_item_is_ignored_and_removed(tmp_path, caplog):
    numbered(tmp_path, 5, 6)
    (tmp_path / "000002" / "metadata.json").unlink()
    (tmp_path / "000003" / "tree.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "evaluation_000").mkdir()  # of others
    assert newest(tmp_path) == ("000001", 5)
    assert caplog.text == ""
    assert numbered(tmp_path, 7) == ["000001", "000002", "evaluation_000"]


def test_damaged_items_give_way_to_older_ones(tmp_path, caplog):
    numbered(tmp_path, 5, 6, 7, keep=3)
    empty_metadata(tmp_path / "000003")
    lose_a_file(tmp_path / "000002")
    assert newest(tmp_path) == ("000001", 5)
    assert len(caplog.records) == 2
    assert "000003 is damaged; 000001 is used instead" in caplog.text
    lose_a_file(tmp_path / "000001")
    assert newest(tmp_path) is None
    assert "000001 is damaged, and there is no whole one before it" in caplog.text


def test_an_item_that_is_refused_is_left_alone(tmp_path):
    numbered(tmp_path, 5)

    def refuse(metadata):
        raise UserError(f"not {metadata['value']}")

    with pytest.raises(UserError, match="not 5"):
        Checkpoints(tmp_path, 2).newest(refuse)
    assert newest(tmp_path) == ("000001", 5)


def test_what_the_background_could_not_write_is_said(tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "free")(0)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    items = Checkpoints(tmp_path, 2)
    items.save([np.float32(1)], {})
    with pytest.raises(UserError, match="No space left"):
        items.save([np.float32(2)], {})
    items.save([np.float32(3)], {})
    items.close()  # another error is on its way
    assert "No space left" in caplog.text


def test_where_there_is_room_again_the_newer_one_is_written(tmp_path, caplog):
    items = Checkpoints(tmp_path, 2)
    with pytest.MonkeyPatch.context() as patch:
        usage = namedtuple("usage", "free")(0)
        patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
        items.save([np.float32(1)], {"value": 1})
        until = time.monotonic() + 60
        while not items.failed and time.monotonic() < until:
            time.sleep(0.01)
    items.save([np.float32(2)], {"value": 2})
    assert not items.failed
    assert newest(tmp_path) == ("000002", 2)
    assert "No space left" in caplog.text
    assert "000002 is whole instead" in caplog.text
    items.close()


def test_what_an_item_stands_for_is_not_forgotten_with_it(tmp_path):
    items = Checkpoints(tmp_path, 3)
    items.save([np.float32(1)], {"value": 1})
    with pytest.MonkeyPatch.context() as patch:
        usage = namedtuple("usage", "free")(0)
        items.wait()
        patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
        items.save([np.float32(2)], {"value": 2}, instead_of=[1])
        items._writer.submit(lambda: None).result()  # it is done with that
    items.save([np.float32(3)], {"value": 3})
    items.close()
    assert [p.name for p in tmp_path.iterdir()] == ["000003"]


def test_what_cannot_be_removed_is_said_in_one_line(tmp_path, caplog):
    items = Checkpoints(tmp_path, 1)
    items.save([np.float32(1)], {})
    items.wait()
    metadata = tmp_path / "000001" / "metadata.json"
    metadata.unlink()
    (metadata / "inside").mkdir(parents=True)
    items.save([np.float32(2)], {})
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: Is a dir") as caught:
        items.wait()
    one_line(caught)
    items.save([np.float32(3)], {})
    items.close()  # another error is on its way
    assert f"cannot write {tmp_path}" in caplog.text
