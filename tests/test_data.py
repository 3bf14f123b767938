"""Loading: the embedded digits, averaging, identity and validation."""

import hashlib

import numpy as np
import pytest

from dasm_jax import types
from dasm_jax.data import digits, load_dataset, shrink, validate
from dasm_jax.errors import UserError
from tests.data_cases import (
    fails,
    small,
)

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
