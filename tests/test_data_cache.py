"""The cache of decoded arrays."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from dasm_jax.data import cache, load_dataset, validate
from dasm_jax.errors import UserError
from tests.data_cases import (
    ROOT,
    assert_equal,
    fails,
    meta_of,
    only,
    small,
)


def test_cache_hit_imports_no_tfds_and_needs_no_source(tiny, cache_dir):
    data = tiny.load()
    path = only(cache_dir)
    assert path.name.startswith("tfds-tiny-")
    assert path.name.endswith(f"-{data.content_hash[:16]}.npz")
    meta = meta_of(path)
    assert meta["source"] == "tfds"
    assert meta["name"] == "tiny"
    assert meta["class_names"] == ["cat", "dog"]
    assert meta["content_hash"] == data.content_hash

    # A new process, because this one has TFDS already.
    program = (
        "import sys\n"
        "from dasm_jax.data import load_dataset\n"
        "for folder in sys.argv[1:]:\n"
        "    data = load_dataset('tfds', 'tiny', data_dir=folder)\n"
        "    print(data.content_hash)\n"
        "slow = {'tensorflow_datasets', 'array_record', 'sklearn'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tiny.root), str(tiny.root / "nowhere")],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == [data.content_hash] * 2


def test_cache_keeps_splits_and_sources_apart(tiny, cache_dir):
    full = tiny.load()
    part = tiny.load(train_split="train[:4]")
    assert full.content_hash != part.content_hash
    prints = {meta_of(path)["fingerprint"] for path in cache_dir.iterdir()}
    assert len(prints) == 2
    tiny.load(train_split="train[:4]", downsample=2)
    assert len(list(cache_dir.iterdir())) == 2
    # What was never decoded cannot come from the cache.
    fails("neither prepared", "tfds", "tiny", train_split="train[:2]")
    fails("neither prepared", "tfds", "tiny:1.0.0")
    assert_equal(load_dataset("tfds", "tiny", train_split="train[:4]"), part)


def test_cache_follows_a_changed_source(tiny, cache_dir):
    before = tiny.load()
    old = only(cache_dir)
    labels = tiny.folder / "kind.labels.txt"
    labels.write_text("cat\nwolf\n")
    after = tiny.load()
    assert after.class_names == ("cat", "wolf")
    assert old.exists()
    assert len(list(cache_dir.iterdir())) == 2
    # Without the source: the newest.
    for age, path in enumerate([p for p in cache_dir.iterdir() if p != old] + [old]):
        os.utime(path, (1000 - age, 1000 - age))
    assert_equal(load_dataset("tfds", "tiny"), after)
    os.utime(old, (2000, 2000))
    assert_equal(load_dataset("tfds", "tiny"), before)


def test_cache_notices_a_shard_of_another_size(tiny):
    tiny.load()
    with open(tiny.shard("train"), "ab") as file:
        file.write(b"more")
    tiny.fails("cannot be read")


def test_damaged_cache_is_reported_and_rebuilt(tiny, cache_dir, caplog):
    data = tiny.load()
    path = only(cache_dir)
    whole = path.read_bytes()
    middle = whole.index(b"train_labels") - 60
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", b"no zip", whole[: len(whole) // 2], flipped):
        path.write_bytes(damaged)
        fails(f"cache file {path} is damaged.*delete", "tfds", "tiny")
        caplog.clear()
        assert_equal(tiny.load(), data)
        (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert str(path) in record.getMessage()
        assert "\n" not in record.getMessage()
        assert path.read_bytes() != damaged
    assert_equal(load_dataset("tfds", "tiny"), data)


def test_cache_content_is_verified_by_its_hash(tiny, cache_dir):
    """A well-formed archive whose pixels are not the ones that were hashed."""
    data = tiny.load()
    path = only(cache_dir)
    with np.load(path, allow_pickle=False) as archive:
        contents = dict(archive)
    contents["test_images"] = contents["test_images"] ^ 1
    np.savez(path, **contents)
    fails("does not have the hash", "tfds", "tiny")
    assert_equal(tiny.load(), data)


def test_any_flipped_byte_is_survived(tmp_path):
    data = validate.make_dataset("d", small(), small(4), ["a", "b"])
    key = cache.Key("folder", "d", ())
    whole = cache.save(key, "now", data, tmp_path).read_bytes()
    path = only(tmp_path)
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        assert_equal(cache.load_or_read(key, "now", lambda: data, tmp_path), data)


def test_cache_refuses_pickles(tmp_path):
    data = validate.make_dataset("d", small(), small(4), ["a", "b"])
    key = cache.Key("folder", "d", ())
    path = cache.save(key, "now", data, tmp_path)
    np.savez(path, meta=np.array([{"fingerprint": "now"}], dtype=object))
    with pytest.raises(UserError, match="never unpickled"):
        cache.find(key, None, tmp_path)


def test_unwritable_cache_is_a_warning(tiny, tmp_path, caplog):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    data = tiny.load(cache_dir=in_the_way / "cache")
    assert len(data.train.labels) == 6
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "cannot write the decoded cache" in record.getMessage()


def test_interrupted_write_leaves_nothing(tiny, cache_dir, monkeypatch):
    def full_disk(*_args, **_contents):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    assert len(tiny.load().train.labels) == 6
    assert list(cache_dir.iterdir()) == []


def test_what_a_killed_process_left_is_removed_one_day(tiny, cache_dir):
    cache_dir.mkdir(parents=True)
    old, new = (cache_dir / f".{name}.npz.1.unfinished" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    tiny.load()
    assert not old.exists()
    assert new.exists()  # who writes it may be at it
