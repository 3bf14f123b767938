"""A folder of images per class, with its own train and test folders or without."""

import hashlib
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dasm_jax import types
from dasm_jax.data import cache, images, validate
from dasm_jax.errors import UserError

_log = logging.getLogger(__name__)
_Classes = dict[str, list[Path]]  # the image files of each class


class Listing(NamedTuple):
    """The image files and labels of each split, in their final order."""

    class_names: tuple[str, ...]
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]


def load(
    name: str,
    *,
    test_share: float = 0.2,
    size: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    **_unused: object,
) -> types.Dataset:
    """Loads images from ``root/<class>/`` or ``root/train/<class>/`` + ``root/test/…``.

    Classes and files are taken in sorted order. Images are grayscale when every one of
    them is, else RGB without transparency. Hidden files and files that are no images by
    name are left out; of an animation the first frame counts.

    Args:
        name: path of the root.
        test_share: share of each class that is kept for testing where the root has no
            ``train`` and ``test``; rounded half to even, at least one image. Names
            alone decide which images those are.
        size: side to which images are resized and cut (``images.fit``); 0: not at all.
        cache_dir: folder of the decoded cache.

    Returns:
        Images uint8[N, H, W, 1 or 3] and labels int32[N]; the name is the root's.

    Raises:
        UserError: naming the folder or file that cannot be used, and the remedy.
    """
    root = Path(os.path.abspath(os.path.expanduser(name)))
    if not 0 < test_share < 1:
        raise UserError(
            f"config.data.test_share is {test_share}; it must lie between 0 and 1"
        )
    listing = list_images(root, test_share) if root.exists() else None
    state = None if listing is None else _fingerprint(root, listing, test_share)

    def read() -> types.Dataset:
        if listing is None:
            raise UserError(
                f"config.data.name: there is no folder {root}; set it to a folder that"
                " holds one folder of images per class"
            )
        return _read(root.name, listing, size)

    choices = (f"test_share={test_share}", *([f"size={size}"] if size else []))
    key = cache.Key("folder", str(root), choices)
    return cache.load_or_read(key, state, read, cache_dir)


def list_images(root: Path, test_share: float) -> Listing:
    """Finds the image files and decides which of them are for testing.

    Raises:
        UserError: for a layout that cannot be used.
    """
    parts = {part: root / part for part in ("train", "test") if (root / part).is_dir()}
    if len(parts) == 1:
        (there,) = parts
        missing = "test" if there == "train" else "train"
        raise UserError(
            f"{root} has a folder {there} but no folder {missing}; add it, or move the"
            f" class folders out of {there} to let config.data.test_share split them"
        )
    if parts:
        train, test = list_classes(parts["train"]), list_classes(parts["test"])
    else:
        train, test = _split(root, list_classes(root), test_share)
    if train.keys() != test.keys():
        only = min(train.keys() ^ test.keys())
        raise UserError(
            f"the class folder {only} is in only one of {parts['train']} and"
            f" {parts['test']}; give both the same class folders"
        )
    return Listing(tuple(train), _labelled(train), _labelled(test))


def list_classes(root: Path, field: str = "config.data.name") -> _Classes:
    """Finds the image files of each class, in sorted order.

    Args:
        root: holds one folder per class.
        field: what the user is to mend.

    Raises:
        UserError: for a layout that cannot be used.
    """
    if not root.is_dir():
        raise UserError(
            f"{field}: {root} is a file; set it to the folder that holds"
            " one folder of images per class"
        )
    names = sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(names) < 2:
        raise UserError(
            f"{root} has {len(names)} class folder(s); put the images of each class in"
            " a folder of its own, at least two of them"
        )
    classes = {name: _list_files(root / name) for name in names}
    for name, files in classes.items():
        if not files:
            raise UserError(
                f"the class folder {root / name} holds no image"
                f" ({', '.join(images.SUFFIXES)}); add some or remove the folder"
            )
    return classes


def _list_files(folder: Path) -> list[Path]:
    return sorted(
        folder / entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(images.SUFFIXES)
        and not entry.name.startswith(".")
        and entry.is_file()
    )


def _split(root: Path, classes: _Classes, share: float) -> tuple[_Classes, _Classes]:
    """Splits each class by a hash of the file names, blind to their order."""

    def rank(file: Path) -> bytes:
        return hashlib.sha256(os.fsencode(file.relative_to(root).as_posix())).digest()

    train, test = {}, {}
    for name, files in classes.items():
        n_test = max(1, round(share * len(files)))
        if n_test >= len(files):
            raise UserError(
                f"the class folder {root / name} has {len(files)} image(s), of which"
                f" config.data.test_share={share} leaves none to train on; add"
                " images or lower config.data.test_share"
            )
        ranked = sorted(files, key=rank)
        train[name], test[name] = sorted(ranked[n_test:]), sorted(ranked[:n_test])
    return train, test


def _labelled(classes: _Classes) -> list[tuple[Path, int]]:
    return [
        (file, label) for label, files in enumerate(classes.values()) for file in files
    ]


def _fingerprint(root: Path, listing: Listing, test_share: float) -> str:
    files = sorted(file for file, _ in (*listing.train, *listing.test))
    facts = []
    for file in files:
        status = file.stat()
        name = file.relative_to(root).as_posix()
        facts.append([name, status.st_size, status.st_mtime_ns])
    return cache.fingerprint([facts, test_share])


def _read(name: str, listing: Listing, size: int) -> types.Dataset:
    # One form for both splits: they must agree on the channels.
    files = [file for file, _ in (*listing.train, *listing.test)]
    shape = images.common_form(files, size)
    _log.info("decoding %d images of %s", len(files), name)
    train, test = (
        types.ArrayDataset(
            images.decode([file for file, _ in split], shape),
            np.asarray([label for _, label in split], np.int32),
        )
        for split in (listing.train, listing.test)
    )
    return validate.make_dataset(name, train, test, listing.class_names)
