"""The digits that scikit-learn carries: 1,797 real 8x8 images, no download."""

import hashlib

import numpy as np

from dasm_jax import types
from dasm_jax.data import validate
from dasm_jax.errors import UserError

TEST_PER_CLASS = 30


def load(name: str = "digits", **_unused: object) -> types.Dataset:
    """Returns the embedded digits: images uint8[N, 8, 8, 1], 1,497 train and 300 test.

    The split is fixed, and both parts keep the order of scikit-learn. The source's
    values 0 … 16 become 0 … 255.

    Raises:
        UserError: for another name than ``'digits'``.
    """
    if name != "digits":
        raise UserError(
            f"config.data.name is {name!r}; with config.data.source='digits' it must"
            " be 'digits'"
        )
    # Imported here because scikit-learn takes a second.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # f64[N, 64], i64[N]
    images = np.rint(pixels * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[test_indices(labels)] = True
    train, test = (
        types.ArrayDataset(images[chosen], labels[chosen])
        for chosen in (~is_test, is_test)
    )
    return validate.make_dataset("digits", train, test, [str(n) for n in range(10)])


def test_indices(labels: np.ndarray) -> np.ndarray:
    """Picks the 30 images of each class whose index has the smallest md5.

    A hash instead of a random generator: the split can never move with a NumPy version.

    Args:
        labels: int[N].

    Returns:
        The sorted int64 indices of the test images.
    """

    def rank(index: int) -> bytes:
        return hashlib.md5(b"digits%d" % index, usedforsecurity=False).digest()

    chosen = [
        index
        for label in np.unique(labels)
        for index in sorted(np.flatnonzero(labels == label).tolist(), key=rank)[
            :TEST_PER_CLASS
        ]
    ]
    return np.sort(np.asarray(chosen, np.int64))
