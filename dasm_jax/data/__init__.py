"""Real datasets as uint8 arrays: one call, three sources, a cache of decoded images."""

import os

import numpy as np

from dasm_jax import types
from dasm_jax.data import digits, folder, holdout, tfds_source, validate
from dasm_jax.errors import UserError

SOURCES = {
    "tfds": tfds_source.load,
    "folder": folder.load,
    "digits": digits.load,
}


def load_dataset(
    source: str,
    name: str,
    *,
    data_dir: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    test_share: float = 0.2,
    size: int = 0,
    downsample: int = 1,
    validation: float = 0.0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> types.Dataset:
    """Loads a labelled image dataset, decoded, with its identity.

    The images are uint8[N, H, W, C] in the order of the source, the labels int32[N].
    ``content_hash`` is of exactly these arrays and the class names.

    Args:
        source: ``'tfds'``, ``'folder'`` or ``'digits'``.
        name: the TFDS name (``'mnist'``, ``'imagenette/160px-v2'``), or the path of a
            folder with one folder of images per class, or ``'digits'``.
        data_dir: the folder that holds prepared TFDS datasets; by default the
            environment's ``TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
        train_split: the TFDS split to learn from, or a slice: ``'train[:1000]'``.
        test_split: the TFDS split to test on.
        test_share: the share of each class of a folder without its own ``train`` and
            ``test`` folders that is kept for testing, between 0 and 1.
        size: side in pixels to which images of any shape are brought: the shorter side
            resized, the centre cut out; 0: images must have one shape. Not of digits.
        downsample: side of the pixel blocks that are averaged into one pixel.
        validation: share of each class's training images that takes the place of the
            test split (``holdout.hold_out``); 0: the test split is what it is.
        cache_dir: the folder of the decoded cache; by default the environment's
            ``DASM_CACHE_DIR``, else ``~/.cache/dasm_jax``.

    Raises:
        UserError: when the data is missing, damaged or no image classification data.
    """
    if source not in SOURCES:
        raise UserError(
            f"config.data.source is {source!r}; it must be one of {', '.join(SOURCES)}"
        )
    if size and source == "digits":
        raise UserError(
            f"config.data.size is {size}, but the digits are 8x8 images; set it to 0"
        )
    if downsample < 1:
        raise UserError(
            f"config.data.downsample is {downsample!r}; it must be 1, 2, 3, …"
        )
    try:
        dataset = SOURCES[source](
            name,
            data_dir=data_dir,
            train_split=train_split,
            test_split=test_split,
            test_share=test_share,
            size=size,
            cache_dir=cache_dir,
        )
    except OSError as error:  # a folder without permission, a disk that fails
        where = error.filename or name
        raise UserError(f"cannot read {where}: {error.strerror or error}") from error
    # The cache holds full-size images: one file serves every block size.
    if downsample > 1:
        dataset = _shrink_dataset(dataset, downsample)
    return holdout.hold_out(dataset, validation) if validation else dataset


def shrink(images: np.ndarray, block: int) -> np.ndarray:
    """Averages blocks of pixels, rounding half to even.

    Args:
        images: uint8[N, H, W, C].
        block: side of the square block, in pixels; divides H and W.

    Returns:
        uint8[N, H // block, W // block, C].
    """
    n, height, width, channels = images.shape
    sums = np.zeros((n, height // block, width // block, channels), np.uint32)
    for row in range(block):
        for column in range(block):
            sums += images[:, row::block, column::block]
    return np.rint(sums / block**2).astype(np.uint8)


def _shrink_dataset(dataset: types.Dataset, block: int) -> types.Dataset:
    height, width, _ = dataset.image_shape
    if height % block or width % block:
        raise UserError(
            f"config.data.downsample is {block}, which does not divide the sides of"
            f" {dataset.name}'s {height}x{width} images; choose a divisor of both"
        )
    train, test = (
        types.ArrayDataset(shrink(np.asarray(split.images), block), split.labels)
        for split in (dataset.train, dataset.test)
    )
    return validate.make_dataset(dataset.name, train, test, dataset.class_names)
