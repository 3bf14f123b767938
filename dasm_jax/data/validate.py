"""What every dataset must satisfy, and the hash that identifies its content."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from dasm_jax import types
from dasm_jax.errors import UserError


def make_dataset(
    name: str,
    train: types.ArrayDataset,
    test: types.ArrayDataset,
    class_names: Sequence[str],
) -> types.Dataset:
    """Checks decoded splits and returns them with their content hash.

    Args:
        name: what reports call the dataset.
        train: images uint8[N, H, W, C] and labels int32[N].
        test: images uint8[M, H, W, C] and labels int32[M].
        class_names: the name of each label 0, 1, ….

    Raises:
        UserError: for fewer than two classes, an empty split, images that are not
            uint8[N, H, W, C], splits of different image shapes, a label out of range,
            or a class without a training image.
    """
    class_names = tuple(class_names)
    if len(class_names) < 2:
        raise UserError(
            f"{name} has {len(class_names)} class(es), which leaves nothing to"
            " classify; set config.data.name to a dataset of at least two"
        )
    for split_name, split in (("train", train), ("test", test)):
        _check_split(name, split_name, split, len(class_names))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"{name} has training images of shape {train.images.shape[1:]} and test"
            f" images of shape {test.images.shape[1:]}; bring them to one shape"
        )
    counts = np.bincount(np.asarray(train.labels), minlength=len(class_names))
    missing = [class_names[label] for label in np.flatnonzero(counts == 0)]
    if missing:
        raise UserError(
            f"{name} has no training image of {_shortened(missing)}; take a training"
            " split that holds every class"
        )
    return types.Dataset(
        name, train, test, class_names, content_hash(train, test, class_names)
    )


def content_hash(
    train: types.ArrayDataset, test: types.ArrayDataset, class_names: Sequence[str]
) -> str:
    """Returns the hexadecimal sha256 of both splits, in order, and the class names."""
    digest = hashlib.sha256()
    digest.update(json.dumps(list(class_names)).encode())
    for array in (train.images, train.labels, test.images, test.labels):
        # Without dtype and shape, other arrays with the same bytes would be equal.
        array = np.ascontiguousarray(array)
        digest.update(json.dumps([array.dtype.str, array.shape]).encode())
        digest.update(array.data.cast("B"))
    return digest.hexdigest()


def _check_split(
    name: str, split_name: str, split: types.ArrayDataset, n_classes: int
) -> None:
    images, labels = np.asarray(split.images), np.asarray(split.labels)
    if len(labels) == 0:
        raise UserError(
            f"the {split_name} split of {name} is empty; choose one with images"
        )
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or not images.size
        or labels.dtype.kind != "i"
        or labels.shape != images.shape[:1]
    ):
        raise UserError(
            f"the {split_name} split of {name} is {images.dtype}{list(images.shape)}"
            f" with {len(labels)} labels; it must be uint8[N, H, W, C] with N labels"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if outside.size:
        raise UserError(
            f"image {outside[0]} of the {split_name} split of {name} has label"
            f" {labels[outside[0]]}, outside 0 … {n_classes - 1}; choose a split whose"
            " images are all labelled"
        )


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    rest = len(names) - 5
    return f"class {shown}" + (f" and {rest} more" if rest > 0 else "")
