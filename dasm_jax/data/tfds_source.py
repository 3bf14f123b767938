"""TFDS image-classification datasets, decoded without TensorFlow."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dasm_jax import types
from dasm_jax.data import cache, tfds_files, validate
from dasm_jax.data.images import fit
from dasm_jax.errors import UserError

_log = logging.getLogger(__name__)


def load(
    name: str,
    *,
    data_dir: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    size: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    **_unused: object,
) -> types.Dataset:
    """Loads a prepared TFDS dataset, from the decoded cache where that is possible.

    Args:
        name: ``name``, ``name/config``, ``name:version`` or ``name/config:version``.
        data_dir: where prepared datasets lie; by default ``$TFDS_DATA_DIR``, else
            ``~/tensorflow_datasets``.
        train_split: a TFDS split, slices such as ``'train[:1000]'`` too.
        test_split: a TFDS split.
        size: side to which images are resized and cut (``images.fit``); 0: not at all.
        cache_dir: folder of the decoded cache.

    Returns:
        Images uint8[N, H, W, C] and labels int32[N], in the order of the files.

    Raises:
        UserError: when the dataset is neither prepared nor cached, a shard is missing
            or damaged, a split is unknown, or it is no image classification dataset.
    """
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(os.path.expanduser(folder))
    prepared = tfds_files.find_prepared(name, root)
    splits = {
        "config.data.train_split": train_split,
        "config.data.test_split": test_split,
    }
    state = None if prepared is None else tfds_files.fingerprint(prepared, splits)

    def read() -> types.Dataset:
        if prepared is None:
            command = tfds_files.prepare_command(name, root)
            raise UserError(
                f"config.data.name: {name} is neither prepared in {root} nor in the"
                f" decoded cache; prepare it once with `{command}`, or set"
                " TFDS_DATA_DIR (or config.data.data_dir) to the folder that has it"
            )
        return _read(name, prepared, splits, size)

    choices = (train_split, test_split, *([f"size={size}"] if size else []))
    key = cache.Key("tfds", name, choices)
    return cache.load_or_read(key, state, read, cache_dir)


def _read(
    name: str, prepared: tfds_files.Prepared, splits: dict[str, str], size: int
) -> types.Dataset:
    sources = [_open(prepared, field, split) for field, split in splits.items()]
    info = sources[0].dataset_info
    image_key, label_key = _image_and_label_keys(name, info)
    train, test = (
        _decode(source, split, image_key, label_key, prepared, size)
        for source, split in zip(sources, splits.values())
    )
    return validate.make_dataset(name, train, test, info.features[label_key].names)


def _open(prepared: tfds_files.Prepared, field: str, split: str) -> Any:
    # Imported here because it is slow, and a start from the cache does not need it.
    import tensorflow_datasets as tfds

    try:
        # The version pins TFDS to the folder whose shards were checked.
        return tfds.data_source(
            prepared.full_name,
            split=split,
            data_dir=str(prepared.data_dir),
            download=False,
        )
    except ValueError as error:
        # The slice is malformed, longer than the split, or empty.
        reason = " ".join(str(error).split())
        raise UserError(
            f"{field} is {split!r}, which TFDS cannot read from {prepared.full_name}"
            f" ({reason}); choose a slice such as 'train[:1000]'"
        ) from error


def _image_and_label_keys(name: str, info: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    features = info.features
    items = features.items() if isinstance(features, tfds.features.FeaturesDict) else ()
    images = sorted(k for k, f in items if isinstance(f, tfds.features.Image))
    labels = sorted(k for k, f in items if isinstance(f, tfds.features.ClassLabel))
    image, label, *_ = *(info.supervised_keys or ()), None, None
    if image not in images or label not in labels:
        if len(images) != 1 or len(labels) != 1:
            raise UserError(
                f"config.data.name: {name} has the image features {images} and the"
                f" class label features {labels}; choose a dataset with one of each"
            )
        (image,), (label,) = images, labels
    if features[image].np_dtype != np.uint8:
        raise UserError(
            f"config.data.name: the images of {name} are {features[image].np_dtype};"
            " choose a dataset of uint8 images"
        )
    return image, label


def _decode(
    source: Any,
    split: str,
    image_key: str,
    label_key: str,
    prepared: tfds_files.Prepared,
    size: int,
) -> types.ArrayDataset:
    _log.info("decoding %d images of %s %s", len(source), prepared.full_name, split)
    labels = np.empty(len(source), np.int32)
    images = np.empty((0,), np.uint8)
    for index, example in enumerate(_examples(source, split, prepared)):
        try:
            image = _fitted(example[image_key], size)
        except ValueError as error:
            raise UserError(
                f"image {index} of {prepared.full_name} {split} cannot be resized"
                f" ({error}); set config.data.size to 0 or choose another dataset"
            ) from error
        if index == 0:
            images = np.empty((len(source), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise UserError(
                f"config.data.name: {prepared.full_name} {split} has images of shapes"
                f" {images.shape[1:]} (image 0) and {image.shape} (image {index});"
                " choose a dataset whose images have one size, or set config.data.size"
            )
        images[index] = image
        labels[index] = example[label_key]
    return types.ArrayDataset(images, labels)


def _fitted(image: np.ndarray, size: int) -> np.ndarray:
    """u8[h, w, c] → u8[size, size, c]; as it is where the size is 0."""
    if not size:
        return image
    channels = [
        np.asarray(fit(Image.fromarray(channel), size, size))
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def _examples(
    source: Any, split: str, prepared: tfds_files.Prepared
) -> Iterator[dict[str, Any]]:
    # In order, once: random access gets slower with the number of records in a file.
    for index in range(len(source)):
        try:
            example = source[index]
        except Exception as error:
            # array_record, protobuf and the PNG decoder have their own errors, down to
            # a TypeError for a file cut short; all mean that the files are damaged.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(
                f"image {index} of {prepared.full_name} {split} cannot be read from"
                f" {prepared.folder} ({reason}); copy the shards again, or"
                f" {tfds_files.repair_hint(prepared)}"
            ) from error
        yield example
