"""An item on disk: what comes back, and what is refused."""

import errno
import logging
import os
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import checkpoint, stored_tree
from dasm_jax.errors import UserError
from dasm_jax.sampling import IndexTable
from tests.checkpoint_cases import data_file, empty_metadata, lose_a_file, one_line


def some_tree():
    rng = np.random.default_rng(0)
    return {
        "conv": {"kernel": jnp.asarray(rng.random((3, 40, 50), np.float32))},
        "table": IndexTable(np.arange(6, dtype=np.int32).reshape(2, 3), np.ones(2)),
        "list": [np.uint8(7), np.float32([[1.5]])],
    }


def saved(folder, tree=None, metadata=None):
    tree = some_tree() if tree is None else tree
    checkpoint.save(folder, "item", tree, {"a": 1} if metadata is None else metadata)
    return folder / "item"


def assert_equal_trees(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(a, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_trees_come_back_as_numpy_arrays(tmp_path):
    saved(tmp_path / "new" / "folder")
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), some_tree())
    for wanted in (some_tree(), like):
        loaded = checkpoint.load(tmp_path / "new" / "folder", "item", wanted)
        assert_equal_trees(loaded, some_tree())


def test_metadata_comes_back_as_json(tmp_path):
    assert checkpoint.read_metadata(tmp_path, "item") is None
    assert checkpoint.read_metadata(tmp_path / "nowhere", "item") is None
    saved(
        tmp_path, metadata={"lr": 0.1, "data": {"hash": "ü", "mean": (0.5,)}, "n": None}
    )
    expected = {"lr": 0.1, "data": {"hash": "ü", "mean": [0.5]}, "n": None}
    assert checkpoint.read_metadata(tmp_path, "item") == expected


def test_relative_folders_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path.relative_to(tmp_path))
    assert checkpoint.read_metadata(tmp_path, "item") == {"a": 1}


def test_a_later_item_takes_the_place_of_an_earlier_one(tmp_path):
    saved(tmp_path, metadata={"run": 1})
    later = {"w": np.arange(3.0)}
    saved(tmp_path, later, {"run": 2})
    assert checkpoint.read_metadata(tmp_path, "item") == {"run": 2}
    assert_equal_trees(checkpoint.load(tmp_path, "item", later), later)


def test_an_interrupted_item_is_none(tmp_path, monkeypatch):
    saved(tmp_path)

    def stop(path, write):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path)
    assert checkpoint.read_metadata(tmp_path, "item") is None
    saved(tmp_path)
    assert_equal_trees(checkpoint.load(tmp_path, "item", some_tree()), some_tree())


def flip_a_bit(item):
    content = bytearray(data_file(item).read_bytes())
    content[len(content) // 2] ^= 1
    data_file(item).write_bytes(content)


def cut_short(item):
    data_file(item).write_bytes(data_file(item).read_bytes()[:-1])


def foreign_metadata(item):
    (item / "metadata.json").write_text("[1]")


@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_short, lose_a_file, empty_metadata, foreign_metadata]
)
def test_damaged_items_are_refused(tmp_path, damage):
    item = saved(tmp_path)
    damage(item)
    with pytest.raises(UserError, match=r"damaged .* remove that folder") as caught:
        checkpoint.load(tmp_path, "item", some_tree())
    assert str(item) in one_line(caught)
    if "metadata" in damage.__name__:
        with pytest.raises(UserError, match=r"damaged .* remove that folder"):
            checkpoint.read_metadata(tmp_path, "item")


def test_a_missing_item_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match="item is damaged"):
        checkpoint.load(tmp_path, "item", some_tree())


def test_a_stranger_among_the_files_does_no_harm(tmp_path):
    item = saved(tmp_path)
    (item / "tree" / ".DS_Store").write_text("")
    assert_equal_trees(checkpoint.load(tmp_path, "item", some_tree()), some_tree())


@pytest.mark.parametrize(
    "like",
    [
        {"w": np.zeros(4, np.float32)},
        {"w": np.zeros(3, np.float64)},
        {"w": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)},
        {"b": np.zeros(3, np.float32)},
        {},
    ],
)
def test_other_arrays_than_expected_are_refused(tmp_path, like):
    item = saved(tmp_path, {"w": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="not what is expected") as caught:
        checkpoint.load(tmp_path, "item", like)
    assert str(item) in one_line(caught)


def test_what_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*item: Not a dir") as caught:
        saved(tmp_path / "file")
    one_line(caught)
    usage = namedtuple("usage", "free")(10)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"cannot write .*item: No space left"):
        saved(tmp_path)
    assert checkpoint.read_metadata(tmp_path, "item") is None


def test_tensorstore_errors_are_said_in_one_line(tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        logging.getLogger("absl").error("chatter")
        raise ValueError("OUT_OF_RANGE: Error writing\nmore") from OSError(errno.EIO)

    monkeypatch.setattr(stored_tree.ocp.Checkpointer, "save", fail)
    with pytest.raises(UserError, match=r"cannot write .*item: OUT_OF_RANGE") as caught:
        saved(tmp_path)
    one_line(caught)
    assert caplog.text == ""


def test_saving_and_loading_are_silent(tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO, "absl")
    saved(tmp_path)
    checkpoint.load(tmp_path, "item", some_tree())
    assert caplog.text == ""
    assert "".join(capfd.readouterr()) == ""
    assert logging.getLogger("absl").level == logging.INFO


def test_differences_are_dotted_names():
    ours = {"a": 1, "b": {"c": [1], "d": {"e": 2}}, "f": {"g": 1}}
    theirs = {"a": 2, "b": {"c": [1], "d": {"e": 3}}, "f": 1, "h": 0}
    assert checkpoint.differences(ours, theirs) == ["a", "b.d.e", "f", "h"]
    assert checkpoint.differences(ours, ours) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EOPNOTSUPP, None),
        (errno.EINVAL, None),
        (errno.EFBIG, "File too large"),
        (errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_file_system_need_not_tell_its_room(tmp_path, monkeypatch, code, said):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    if said is None:
        saved(tmp_path)
        assert checkpoint.read_metadata(tmp_path, "item") == {"a": 1}
    else:
        with pytest.raises(UserError, match=said):
            saved(tmp_path)


def test_of_a_folder_only_items_are_removed(tmp_path):
    saved(tmp_path / "items")
    (tmp_path / "items" / "mine").mkdir()
    (tmp_path / "items" / "mine" / "file").touch()
    assert checkpoint.remove_items(tmp_path / "items")
    assert [path.name for path in (tmp_path / "items").iterdir()] == ["mine"]
    saved(tmp_path / "whole")
    (tmp_path / "whole" / checkpoint.LOCK).touch()
    assert checkpoint.remove_items(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    assert checkpoint.remove_items(tmp_path / "nowhere")


def test_items_that_stay_are_said(tmp_path, monkeypatch):
    saved(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *a, **b: None)
    assert not checkpoint.remove_items(tmp_path)


def test_what_is_larger_than_expected_is_never_read(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "item", {"a": np.zeros(5)}, {})
    monkeypatch.setattr(
        stored_tree.ocp.Checkpointer, "restore", lambda *a: pytest.fail("was read")
    )
    with pytest.raises(UserError, match="damaged or not what is expected"):
        checkpoint.load(tmp_path, "item", {"a": np.zeros(4)})


def test_metadata_that_are_nested_without_end(tmp_path):
    checkpoint.save(tmp_path, "item", {"a": np.zeros(4)}, {})
    (tmp_path / "item" / checkpoint.METADATA).write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged or not what is expected"):
        checkpoint.read_metadata(tmp_path, "item")
