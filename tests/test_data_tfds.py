"""Loading from TFDS: real prepared datasets, and a tiny one to break."""

import json
import sys

import numpy as np
import pytest

from dasm_jax.data import load_dataset
from tests.data_cases import (
    Tiny,
    assert_equal,
    fails,
    real,
)

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
