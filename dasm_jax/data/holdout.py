"""Training images held out, so that choices are made without the test split."""

import hashlib

import numpy as np

from dasm_jax import types
from dasm_jax.data import validate
from dasm_jax.errors import UserError


def hold_out(dataset: types.Dataset, share: float) -> types.Dataset:
    """Puts a share of each class's training images in the place of the test split.

    Which ones is fixed: those of a class whose index in the train split, as text after
    ``validation``, has the smallest md5; rounded half to even, at least one. The order
    of the others stays. The test split is dropped, and the content hash is of what is
    left, so no result of one division can be taken for one of another.

    Args:
        dataset: with its own test split.
        share: above 0.

    Raises:
        UserError: a class is left without training images.
    """
    labels = np.asarray(dataset.train.labels)
    held = np.zeros(len(labels), bool)
    for label, name in enumerate(dataset.class_names):
        members = np.flatnonzero(labels == label).tolist()
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise UserError(
                f"config.data.validation={share} leaves none of the {len(members)}"
                f" training image(s) of class {name!r} of {dataset.name}; lower it"
            )
        held[sorted(members, key=_rank)[:count]] = True
    rest, validation = (
        types.ArrayDataset(dataset.train.images[chosen], labels[chosen])
        for chosen in (~held, held)
    )
    return validate.make_dataset(dataset.name, rest, validation, dataset.class_names)


def _rank(index: int) -> bytes:
    return hashlib.md5(b"validation%d" % index, usedforsecurity=False).digest()
