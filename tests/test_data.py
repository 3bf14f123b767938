"""Loading: the embedded digits, TFDS, folders of images, and the decoded cache."""

import dataclasses
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dasm_jax import types
from dasm_jax.data import cache, digits, load_dataset, shrink, validate
from dasm_jax.errors import UserError

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "tfds"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """No test sees the user's cache or TFDS folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DASM_CACHE_DIR", str(folder))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_tfds"))
    return folder


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"needs {name} prepared in ../shared/tfds beside the repository")
    return str(REAL)


def fails(match, source, name, **options):
    """Expects one line of UserError and returns it."""
    with pytest.raises(UserError, match=match) as caught:
        load_dataset(source, str(name), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_equal(a: types.Dataset, b: types.Dataset):
    for split_a, split_b in zip((a.train, a.test), (b.train, b.test)):
        for x, y in zip(split_a, split_b):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
    assert a.class_names == b.class_names
    assert a.name == b.name
    assert a.content_hash == b.content_hash


# --- digits ---------------------------------------------------------------------------


def test_digits_have_the_published_split():
    from sklearn.datasets import load_digits

    data = load_dataset("digits", "digits")
    assert data.train.images.shape == (1497, 8, 8, 1)
    assert data.test.images.shape == (300, 8, 8, 1)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int32
    assert data.class_names == tuple("0123456789")
    np.testing.assert_array_equal(np.bincount(data.test.labels), 30)

    pixels, labels = load_digits(return_X_y=True)
    chosen = digits.test_indices(labels)
    digest = hashlib.md5(chosen.astype("<i8").tobytes()).hexdigest()
    assert digest == "22067ad3dc957e365fa921dc1d83291b"
    np.testing.assert_array_equal(data.test.labels, labels[chosen])
    back = data.test.images.reshape(300, 64) / 255 * 16
    np.testing.assert_allclose(back, pixels[chosen], atol=0.5 / 255 * 16)
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    left = np.setdiff1d(np.arange(1797), chosen)
    np.testing.assert_array_equal(data.train.labels, labels[left])


def test_digits_are_not_cached(cache_dir):
    load_dataset("digits", "digits")
    assert not cache_dir.exists()


def test_wrong_source_and_name():
    fails("data.source is 'torch'.* tfds, folder, digits", "torch", "mnist")
    fails("data.name is 'mnist'.*'digits'", "digits", "mnist")


# --- downsampling ---------------------------------------------------------------------


def test_shrink_averages_blocks_and_rounds_half_to_even():
    blocks = np.array([[0, 0, 1, 1], [1, 1, 2, 2], [255, 255, 3, 3], [255, 255, 3, 5]])
    image = blocks.astype(np.uint8)[None, :, :, None]
    # 0.5 → 0, 1.5 → 2, 255 does not overflow, 3.5 → 4
    np.testing.assert_array_equal(shrink(image, 2)[0, ..., 0], [[0, 2], [255, 4]])

    images = np.random.default_rng(0).integers(0, 256, (5, 6, 9, 3), np.uint8)
    expected = np.rint(images.reshape(5, 2, 3, 3, 3, 3).mean((2, 4))).astype(np.uint8)
    np.testing.assert_array_equal(shrink(images, 3), expected)


def test_downsample_changes_images_and_hash():
    full = load_dataset("digits", "digits")
    half = load_dataset("digits", "digits", downsample=2)
    assert half.image_shape == (4, 4, 1)
    assert half.train.images.dtype == np.uint8
    assert half.content_hash != full.content_hash
    assert half.content_hash == validate.content_hash(
        half.train, half.test, half.class_names
    )
    fails("data.downsample is 3.* 8x8", "digits", "digits", downsample=3)
    fails("data.downsample is 0", "digits", "digits", downsample=0)


# --- identity and validation ----------------------------------------------------------


def small(n=6, shape=(2, 2, 1)):
    images = np.arange(n * np.prod(shape)).reshape(n, *shape).astype(np.uint8)
    return types.ArrayDataset(images, np.arange(n, dtype=np.int32) % 2)


def test_content_hash_sees_order_dtype_shape_and_names():
    train, test = small(), small(4)
    swapped = types.ArrayDataset(train.images[::-1], train.labels[::-1])
    variants = [
        (train, test, ("a", "b")),
        (train, test, ("b", "a")),
        (train, test, ("a", "b", "c")),
        (swapped, test, ("a", "b")),
        (test, train, ("a", "b")),
        (train._replace(images=train.images.reshape(6, 4, 1, 1)), test, ("a", "b")),
        (train._replace(images=train.images.view(np.int8)), test, ("a", "b")),
        (train._replace(labels=train.labels.view(np.uint32)), test, ("a", "b")),
    ]
    hashes = [validate.content_hash(*variant) for variant in variants]
    assert len(set(hashes)) == len(variants)
    assert hashes[0] == validate.content_hash(small(), small(4), ["a", "b"])
    assert len(hashes[0]) == 64


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({}, ["a"], "has 1 class"),
        ({"train": small(0)}, ["a", "b"], "train split of d is empty"),
        ({"test": small(0)}, ["a", "b"], "test split of d is empty"),
        ({}, ["a", "b", "c"], "no training image of class 'c'"),
        ({"test": small(4, (2, 3, 1))}, ["a", "b"], r"\(2, 2, 1\).*\(2, 3, 1\)"),
        (
            {"test": small()._replace(labels=np.array([0, 1, 0, -1, 0, 1], np.int32))},
            ["a", "b"],
            "image 3 of the test split of d has label -1",
        ),
        (
            {"train": small()._replace(labels=np.arange(6, dtype=np.int32))},
            ["a", "b"],
            "image 2 of the train split of d has label 2",
        ),
        (
            {"train": small()._replace(images=np.zeros((6, 2, 2, 1)))},
            ["a", "b"],
            "float64",
        ),
    ],
)
def test_unusable_datasets_are_refused(change, names, message):
    splits = {"train": small(), "test": small(4), **change}
    with pytest.raises(UserError, match=message):
        validate.make_dataset("d", splits["train"], splits["test"], names)


# --- TFDS: real data ------------------------------------------------------------------


def test_cifar10_slices_have_the_real_pixels(cache_dir):
    data_dir = real("cifar10")
    options = {"train_split": "train[:500]", "test_split": "test[:200]"}
    data = load_dataset("tfds", "cifar10", data_dir=data_dir, **options)
    assert data.train.images.shape == (500, 32, 32, 3)
    assert data.test.images.shape == (200, 32, 32, 3)
    assert data.train.labels.dtype == np.int32
    assert data.class_names[0] == "airplane"
    assert data.class_names[9] == "truck"
    mean = data.train.images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.02)

    import tensorflow_datasets as tfds

    assert "tensorflow" not in sys.modules
    source = tfds.data_source(
        "cifar10", split="train[:500]", data_dir=data_dir, download=False
    )
    for index in (0, 499):
        np.testing.assert_array_equal(data.train.images[index], source[index]["image"])
        assert data.train.labels[index] == source[index]["label"]

    assert_equal(load_dataset("tfds", "cifar10", data_dir=data_dir, **options), data)
    assert len(list(cache_dir.iterdir())) == 1


def test_fashion_mnist_through_the_environment(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", real("fashion_mnist"))
    data = load_dataset(
        "tfds",
        "fashion_mnist",
        train_split="train[:500]",
        test_split="train[-100:]+test[:100]",
        downsample=2,
    )
    assert data.image_shape == (14, 14, 1)
    assert len(data.test.labels) == 200
    assert data.class_names[9] == "Ankle boot"
    np.testing.assert_allclose(data.train.images.mean() / 255, 0.2860, atol=0.02)


# --- TFDS: a tiny dataset written here, without any code in TFDS ----------------------


@dataclasses.dataclass
class Tiny:
    """A prepared TFDS dataset of a few images, and the way to break it."""

    root: Path
    sizes: tuple[int, ...] = (4,) * 6  # heights of the training images
    names: tuple[str, ...] = ("cat", "dog")
    extra: bool = False  # a second image feature
    dtype: type = np.uint8

    @property
    def folder(self):
        return self.root / "tiny" / "1.0.0"

    def shard(self, split):
        return self.folder / f"tiny-{split}.array_record-00000-of-00001"

    def write(self):
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.proto import tf_example_pb2

        self.folder.mkdir(parents=True)
        image = tfds.features.Image(shape=(None, None, 3), dtype=self.dtype)
        features = {"photo": image, "kind": tfds.features.ClassLabel(names=self.names)}
        if self.extra:
            features["mask"] = tfds.features.Image(shape=(None, None, 3))
        described = tfds.features.FeaturesDict(features)
        described.save_config(self.folder)
        described.save_metadata(self.folder)
        splits = []
        for split, sizes in (("train", self.sizes), ("test", (4, 4))):
            writer = ArrayRecordWriter(str(self.shard(split)), "group_size:1")
            for index, height in enumerate(sizes):
                example = tf_example_pb2.Example()
                fields = example.features.feature
                pixels = np.full((height, 4, 3), 10 * index, np.uint8)
                fields["photo"].bytes_list.value.append(png_bytes(pixels))
                if self.extra:
                    fields["mask"].bytes_list.value.append(png_bytes(255 - pixels))
                fields["kind"].int64_list.value.append(index % 2)
                writer.write(example.SerializeToString())
            writer.close()
            splits.append({"name": split, "shardLengths": [str(len(sizes))]})
        info = {
            "name": "tiny",
            "version": "1.0.0",
            "fileFormat": "array_record",
            "splits": splits,
        }
        self.write_info(info)
        return self

    def write_info(self, info):
        (self.folder / "dataset_info.json").write_text(json.dumps(info))

    def load(self, name="tiny", **options):
        return load_dataset("tfds", name, data_dir=str(self.root), **options)

    def fails(self, match, name="tiny", **options):
        return fails(match, "tfds", name, data_dir=str(self.root), **options)


def png_bytes(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tiny(tmp_path):
    return Tiny(tmp_path / "tfds").write()


def test_tfds_reads_any_image_classification_dataset_in_order(tiny):
    data = tiny.load()
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0], np.arange(6) * 10)
    np.testing.assert_array_equal(data.train.labels, [0, 1] * 3)
    assert data.class_names == ("cat", "dog")
    assert data.name == "tiny"
    assert_equal(tiny.load("tiny:1.0.0")._replace(name="tiny"), data)


def test_tfds_believes_in_the_supervised_keys(tmp_path):
    tiny = Tiny(tmp_path / "tfds", extra=True).write()
    keys = [{"featureKey": "photo"}, {"featureKey": "kind"}]
    info = json.loads((tiny.folder / "dataset_info.json").read_text())
    tiny.write_info({**info, "supervisedKeys": {"tuple": {"items": keys}}})
    images = tiny.load().train.images
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(6) * 10)


def test_tfds_not_prepared_says_what_to_run(tmp_path, monkeypatch):
    message = fails("mnist is neither prepared", "tfds", "mnist", data_dir="/a b")
    assert (
        "`python -m pip install tensorflow-cpu && tfds build mnist"
        " --file_format=array_record --data_dir='/a b'`"
    ) in message
    assert "TFDS_DATA_DIR" in message
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    default = tmp_path / "tensorflow_datasets"
    fails(f"prepared in {default} nor", "tfds", "mnist")
    fails("data.name is 'a b'; a TFDS dataset is written", "tfds", "a b")


def test_tfds_versions_and_configs(tiny):
    tiny.fails("tiny:2.0.0 is neither prepared", "tiny:2.0.0")
    (tiny.root / "many" / "small" / "1.0.0").mkdir(parents=True)
    (tiny.root / "many" / "small" / "1.0.0" / "dataset_info.json").write_text("{}")
    tiny.fails("holds the configs small; name one, such as 'many/small'", "many")
    unfinished = tiny.root / "tiny" / "incomplete.2.0.0"
    unfinished.mkdir()
    (unfinished / "dataset_info.json").write_text("{}")
    assert len(tiny.load().train.labels) == 6


def test_tfds_missing_shard_is_named(tiny):
    tiny.load()
    tiny.shard("test").unlink()
    # The cache holds this dataset, but the user believes in what is on disk.
    message = tiny.fails(f"{tiny.shard('test')} is missing")
    assert "tfds build tiny" in message
    assert len(tiny.load(test_split="train[:2]").test.labels) == 2


def test_tfds_damaged_files(tiny):
    whole = tiny.shard("train").read_bytes()
    for cut in (0, len(whole) // 2, len(whole) - 10):
        tiny.shard("train").write_bytes(whole[:cut])
        tiny.fails("image 0 of tiny:1.0.0 train cannot be read")
    (tiny.folder / "dataset_info.json").write_text("{")
    tiny.fails("dataset_info.json is damaged")


def test_tfds_other_file_format(tiny):
    info = json.loads((tiny.folder / "dataset_info.json").read_text())
    tiny.write_info({**info, "fileFormat": "tfrecord"})
    tiny.fails("holds tfrecord files.*--file_format=array_record")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "val",
            r"data.train_split is 'val', but tiny:1.0.0 has the splits train, test",
        ),
        ("train[abc]", "data.train_split is 'train.abc.'.*cannot read"),
        ("train[:99]", "data.train_split is 'train.:99.'.*cannot read"),
        ("train[:0]", "data.train_split is 'train.:0.'.*cannot read"),
        ("train[:1]", "no training image of class 'dog'"),
    ],
)
def test_tfds_wrong_splits(tiny, cache_dir, split, message):
    tiny.fails(message, train_split=split)
    assert not cache_dir.exists()


def test_tfds_unknown_test_split_names_its_field(tiny):
    tiny.fails("data.test_split is 'validation'", test_split="validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (4, 4, 5, 4)}, r"\(4, 4, 3\) \(image 0\).*\(5, 4, 3\) \(image 2\)"),
        ({"extra": True}, r"image features \['mask', 'photo'\]"),
        ({"dtype": np.uint16}, "are .*uint16"),
        ({"names": ("cat", "dog", "elk")}, "no training image of class 'elk'"),
    ],
)
def test_tfds_unfit_datasets(tmp_path, change, message):
    Tiny(tmp_path / "tfds", **change).write().fails(message)


# --- the decoded cache ----------------------------------------------------------------


def only(folder):
    (path,) = folder.iterdir()
    return path


def meta_of(path):
    with np.load(path, allow_pickle=False) as archive:
        return json.loads(archive["meta"].item())


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
    with pytest.raises(UserError, match="allow_pickle=False"):
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


# --- folders --------------------------------------------------------------------------


def write_images(folder, n, *, mode="L", size=(4, 6), suffix=".png", start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + n):
        image = Image.new("L", size, 10 * index).convert(mode)
        image.save(folder / f"{index:02d}{suffix}")


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    write_images(root / "cat", 10)
    write_images(root / "dog", 5)
    return root


def test_folder_is_split_by_class(photos):
    (photos / ".hidden").mkdir()
    (photos / "readme.txt").write_text("not a class")
    (photos / "cat" / "notes.txt").write_text("not an image")
    (photos / "cat" / ".00.png").write_bytes(b"not an image")
    (photos / "cat" / "more.png").mkdir()
    data = load_dataset("folder", str(photos), test_share=0.3)
    assert data.name == "photos"
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (6, 4, 1)
    np.testing.assert_array_equal(np.bincount(data.train.labels), [7, 3])
    np.testing.assert_array_equal(np.bincount(data.test.labels), [3, 2])

    # The rule, written out once more: the smallest hashes of the path are for testing.
    paths = [f"cat/{index:02d}.png" for index in range(10)]
    by_hash = sorted(paths, key=lambda p: hashlib.sha256(p.encode()).digest())
    expected = [10 * int(path[4:6]) for path in sorted(by_hash[:3])]
    np.testing.assert_array_equal(data.test.images[:3, 0, 0, 0], expected)
    expected = [10 * int(path[4:6]) for path in sorted(by_hash[3:])]
    np.testing.assert_array_equal(data.train.images[:7, 0, 0, 0], expected)


def test_folder_split_depends_on_names_only(photos, tmp_path):
    data = load_dataset("folder", str(photos))
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    photos.rename(moved)
    assert_equal(load_dataset("folder", str(moved)), data)
    assert len(load_dataset("folder", str(moved), test_share=0.01).test.labels) == 2


def test_folder_with_its_own_split(tmp_path):
    root = tmp_path / "photos"
    for part, n in (("train", 3), ("test", 2)):
        write_images(root / part / "cat", n, suffix=".JPG")
        write_images(root / part / "dog", n, suffix=".bmp", start=5)
    data = load_dataset("folder", str(root))
    np.testing.assert_array_equal(data.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.test.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.train.images[3:, 0, 0, 0], [50, 60, 70])

    write_images(root / "test" / "elk", 1)
    fails("class folder elk is in only one of", "folder", root)
    (root / "test").rename(root / "val")
    fails("has a folder train but no folder test", "folder", root)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "CMYK"])
def test_folder_is_gray_only_when_every_image_is(photos, mode):
    write_images(photos / "cat", 1, mode="1")
    assert load_dataset("folder", str(photos)).image_shape == (6, 4, 1)
    suffix = ".jpg" if mode == "CMYK" else ".png"
    write_images(photos / "cat", 1, mode=mode, start=20, suffix=suffix)
    data = load_dataset("folder", str(photos))
    assert data.image_shape == (6, 4, 3)
    gray = data.train.images[data.train.labels == 1]
    np.testing.assert_array_equal(gray[..., 0], gray[..., 2])


def test_folder_palette_with_transparency(photos):
    image = Image.new("P", (4, 6), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    for split in ("cat", "dog"):
        image.save(photos / split / "x.png", transparency=bytes([0, 128]))
    data = load_dataset("folder", str(photos), test_share=0.2)
    colors = np.concatenate([data.train.images, data.test.images])[:, 0, 0]
    assert (colors == [200, 100, 50]).all(-1).sum() == 2


def test_folder_cache_follows_files(photos, cache_dir, monkeypatch):
    data = load_dataset("folder", str(photos))
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", None)  # a hit decodes nothing
        assert_equal(load_dataset("folder", str(photos)), data)
    write_images(photos / "cat", 1, start=20)
    assert len(load_dataset("folder", str(photos)).train.labels) == 13
    (photos / "cat" / "20.png").unlink()
    assert_equal(load_dataset("folder", str(photos)), data)
    (photos / "dog" / "00.png").touch()
    assert_equal(load_dataset("folder", str(photos)), data)

    gone = photos.rename(photos.with_name("gone"))
    assert_equal(load_dataset("folder", str(photos)), data)
    assert len(load_dataset("folder", str(gone)).train.labels) == 12
    fails("there is no folder", "folder", photos, test_share=0.5)


def test_folder_layout_errors(photos, tmp_path):
    fails(f"there is no folder {tmp_path / 'nowhere'};", "folder", tmp_path / "nowhere")
    fails("00.png is a file", "folder", photos / "cat" / "00.png")
    fails("has 0 class folder", "folder", photos / "cat")
    fails("data.test_share is 0", "folder", photos, test_share=0.0)
    fails("data.test_share is 1.0", "folder", photos, test_share=1.0)
    fails("leaves none to train on", "folder", photos, test_share=0.99)
    (photos / "elk").mkdir()
    fails(f"class folder {photos / 'elk'} holds no image", "folder", photos)
    write_images(photos / "elk", 1)
    fails(f"{photos / 'elk'} has 1 image", "folder", photos)
    write_images(tmp_path / "single" / "cat", 3)
    fails("has 1 class folder", "folder", tmp_path / "single")


def test_folder_different_sizes(photos):
    write_images(photos / "dog", 1, size=(5, 6), start=7)
    fails("cat/.*png is 4x6 pixels but .*/dog/07.png is 5x6; resize", "folder", photos)


def test_folder_sixteen_bits(photos):
    Image.fromarray(np.full((6, 4), 1000, np.uint16)).save(photos / "cat" / "x.png")
    fails("cat/x.png has more than 8 bits", "folder", photos)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp"])
def test_folder_damaged_images(photos, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (6, 4), np.uint8)
    path = photos / "dog" / f"x{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"no image", whole[: len(whole) * 3 // 4], whole[:20]):
        path.write_bytes(damaged)
        fails(f"dog/x{suffix} cannot be decoded.*replace or remove", "folder", photos)


def test_folder_broken_png_chunk(photos):
    # The second of two data chunks has no name: only decoding meets it.
    path = photos / "dog" / "00.png"
    whole = path.read_bytes()
    end = whole.index(b"IDAT") + 4 + 2  # two bytes of data are enough for the first
    data = whole[end - 6 : end]
    first = (2).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
    path.write_bytes(whole[: end - 10] + first + bytes(50))
    fails("dog/00.png cannot be decoded .SyntaxError", "folder", photos)


def test_folder_decompression_bombs(photos, monkeypatch):
    # Pillow warns above the limit and raises above twice the limit.
    for limit in (20, 5):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        fails(f"cat/.*png claims more than {limit} pixels", "folder", photos)
