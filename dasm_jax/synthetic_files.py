"""Sets from disk that are to be evaluated: ``synthetic.npz``, or a folder of images.

A file may come from anyone: what is wrong with it is one line.
"""

import hashlib
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dasm_jax.data import folder, images
from dasm_jax.errors import CannotRead, UserError
from dasm_jax.files import cannot_read, may_be_whole
from dasm_jax.host_memory import physical_memory
from dasm_jax.npz import DAMAGE, Header, NpzReader, open_npz
from dasm_jax.stored_counts import check_counts
from dasm_jax.types import ArrayDataset, Dataset, Normalization

FIELD = "config.evaluate.synthetic"
FILE = "synthetic.npz"

ROUNDING = 1e-4  # by which a decoded pixel may leave [0, 1], and statistics may differ


class SyntheticFile(NamedTuple):
    """A set as it lies on disk, checked against the dataset it is for."""

    path: Path
    decoded: ArrayDataset  # f32[M, H, W, C] in [0, 1] and i32[M], what networks see
    stored_counts: tuple[int, ...]  # stored images of each class
    stored_bytes: int  # of the stored images, one per value, whatever they decode to
    factor: int  # f; 1 where the file does not say
    content_hash: str  # sha256 of what networks see and of what is stored


def find_sets(text: str) -> list[Path]:
    """The files and folders that ``config.evaluate.synthetic`` names, in its order.

    The workdir of a run stands for its set; that of a table, as any folder of npz
    files, for all of them by name.

    Raises:
      UserError: one is not there, or is named twice.
    """
    paths = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        named = Path(os.path.abspath(os.path.expanduser(part)))
        if not named.exists():
            raise UserError(
                f"{FIELD}: there is no {named}; name a synthetic.npz, a workdir that "
                "holds one, or a folder of npz files or of images per class"
            )
        for path in _sets_at(named):
            if path in paths:
                raise UserError(f"{FIELD} names {path} twice; name every set once")
            paths.append(path)
    return paths


def _sets_at(path: Path) -> list[Path]:
    """The set of a run, all of a table or of a folder, or what was named itself."""
    if (path / FILE).is_file():
        return [path / FILE]
    for place in (path, path / "sets"):
        found = [each for each in place.glob("*.npz") if each.name[0] != "."]
        if found:
            return sorted(found)
    return [path]


def load_set(path: Path, dataset: Dataset, statistics: Normalization) -> SyntheticFile:
    """Read a set that is for ``dataset``.

    Args:
      path: an ``.npz`` file as ``export.save_synthetic`` writes it, or of ``images``
        (u8, or floating-point in [0, 1], [M, H, W, C]) and ``labels`` alone; or a
        folder that holds a folder of images per class.
      dataset: whose test images the set is evaluated on.
      statistics: under which its networks are trained.

    Raises:
      CannotRead: it cannot be read now, or does not fit in this machine's memory.
      UserError: it is not such a set, or of another dataset.
    """
    try:
        if path.is_dir():
            return _read_folder(path, dataset)
        # A NaN becomes an error of its own, and no warning.
        with open_npz(path) as reader, np.errstate(all="ignore"):
            return _read_file(path, reader, dataset, statistics)
    except UserError:
        raise
    except DAMAGE as error:
        if may_be_whole(error):
            raise cannot_read(path, error) from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{path} cannot be read ({reason}); make it again, or name another set"
        ) from error


def _read_folder(path: Path, dataset: Dataset) -> SyntheticFile:
    classes = folder.list_classes(path, FIELD)
    _check_links(path, [file for files in classes.values() for file in files])
    unknown = sorted(set(classes) - set(dataset.class_names))
    if unknown:
        raise _other_dataset(
            path, dataset, f"it has a folder {unknown[0]!r}, which is no class"
        )
    number = {name: label for label, name in enumerate(dataset.class_names)}
    files = [(file, number[name]) for name in classes for file in classes[name]]
    files.sort(key=lambda entry: entry[1])
    paths = [file for file, _ in files]
    height, width, channels = images.common_form(paths)
    if (channels, dataset.image_shape[2]) == (1, 3):
        channels = 3  # grey by chance
    shape = height, width, channels
    _check_image_shape(path, "images", shape, dataset)
    pixels = images.decode(paths, shape)
    labels = np.asarray([label for _, label in files], np.int32)
    return _make_set(path, dataset, ArrayDataset(pixels, labels), None, 1)


def _check_links(path: Path, files: list[Path]) -> None:
    """A folder of anyone's making holds its images, and does not point at others."""
    root = path.resolve()
    for file in files:
        if not file.resolve().is_relative_to(root):
            raise UserError(
                f"{file} is a link that leaves {path}; put a copy of the image in its "
                "place, or remove it"
            )


def _read_file(
    path: Path, reader: NpzReader, dataset: Dataset, statistics: Normalization
) -> SyntheticFile:
    _need(path, reader, "images", "labels")
    if reader.has("stored_pixels") or reader.has("factor"):
        _need(path, reader, "stored_pixels", "stored_labels", "factor")
    if reader.has("mean") or reader.has("std"):
        _need(path, reader, "mean", "std")
    # What is cheap to tell comes first, and all headers before any image.
    _check_names(path, reader, dataset)
    for name in ("images", "stored_pixels"):
        if reader.has(name):
            _check_images_header(path, name, reader.header(name), dataset)
    _check_statistics(path, reader, dataset, statistics)
    factor = _factor(path, reader) if reader.has("factor") else 1
    decoded = _read_images(path, reader, "images", "labels", dataset)
    stored = None
    if reader.has("stored_pixels"):
        stored = _read_images(path, reader, "stored_pixels", "stored_labels", dataset)
        if odd := set(decoded.labels.tolist()) ^ set(stored.labels.tolist()):
            raise UserError(
                f"{path}: class {min(odd)} is in only one of labels and stored_labels; "
                "make the file again"
            )
        check_counts(path, reader, decoded, stored, factor)
    return _make_set(path, dataset, decoded, stored, factor)


def _need(path: Path, reader: NpzReader, *names: str) -> None:
    missing = [name for name in names if not reader.has(name)]
    if missing:
        raise UserError(
            f"{path} has no field {', '.join(missing)}; a set needs images and labels, "
            "and what belongs together: stored_pixels, stored_labels and factor, mean "
            "and std"
        )


def _check_names(path: Path, reader: NpzReader, dataset: Dataset) -> None:
    if not reader.has("class_names"):
        return
    header = reader.header("class_names")
    if header.dtype.kind != "U" or header.shape != (dataset.n_classes,):
        raise _other_dataset(
            path, dataset, f"its class_names are {header.dtype}{list(header.shape)}"
        )
    names = tuple(reader.array("class_names").tolist())
    if names != dataset.class_names:
        theirs, ours = next(
            pair for pair in zip(names, dataset.class_names) if pair[0] != pair[1]
        )
        raise _other_dataset(path, dataset, f"it has a class {theirs!r} for {ours!r}")


def _check_images_header(
    path: Path, name: str, header: Header, dataset: Dataset
) -> None:
    if len(header.shape) != 4 or not header.shape[0]:
        raise UserError(
            f"{path}: {name} has shape {list(header.shape)}; it must be [M, H, W, C] "
            "with at least one image"
        )
    if header.dtype != np.uint8 and header.dtype.kind != "f":
        raise UserError(
            f"{path}: {name} is of type {header.dtype}; it must be uint8, or "
            "floating-point in [0, 1]"
        )
    _check_image_shape(path, name, header.shape[1:], dataset)
    # As they are, as float32, and in a buffer to train on.
    needed = math.prod(header.shape) * (header.dtype.itemsize + 8)
    if needed > physical_memory():
        raise CannotRead(
            f"{path}: {name} holds {header.shape[0]:,} images, which take {needed:,} "
            "bytes to evaluate, more than this machine's memory; save fewer images"
        )


def _check_image_shape(
    path: Path, name: str, shape: tuple[int, ...], dataset: Dataset
) -> None:
    if tuple(shape) == dataset.image_shape:
        return
    height, width, channels = dataset.image_shape
    if tuple(shape) == (channels, height, width):
        raise UserError(
            f"{path}: {name} has channels first; transpose it to [M, H, W, C]"
        )
    raise _other_dataset(
        path,
        dataset,
        f"its {name} are {'x'.join(map(str, shape))}, those of the dataset "
        f"{height}x{width}x{channels}",
    )


def _check_statistics(
    path: Path, reader: NpzReader, dataset: Dataset, statistics: Normalization
) -> None:
    if not reader.has("mean"):
        return
    for name, ours in (("mean", statistics.mean), ("std", statistics.std)):
        header = reader.header(name)
        if header.shape != (len(ours),) or header.dtype.kind != "f":
            raise _other_dataset(
                path, dataset, f"its {name} is {header.dtype}{list(header.shape)}"
            )
        theirs = reader.array(name).astype(np.float64)
        # NaN differs from everything.
        if not (np.abs(theirs - ours) <= ROUNDING).all():
            raise UserError(
                f"{path} was made for images normalised by {name} "
                f"{_numbers(theirs)}, here it is {_numbers(ours)}: another dataset's, "
                f"or set config.data.mean and config.data.std to those of the file"
            )
    whitened = [f"zca_{name}" for name in ("mean", "matrix", "inverse")]
    there = any(map(reader.has, whitened))
    if there != (statistics.whitening is not None):
        raise UserError(
            f"{path} was made for images that are {'' if there else 'not '}whitened; "
            f"set config.data.zca={there}"
        )
    if there:
        _need(path, reader, *whitened)


def _numbers(values) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _factor(path: Path, reader: NpzReader) -> int:
    header = reader.header("factor")
    if header.shape != () or header.dtype.kind not in "iu":
        raise UserError(
            f"{path}: factor is {header.dtype}{list(header.shape)}; it must be one "
            "whole number"
        )
    factor = int(reader.array("factor"))
    if not 1 <= factor <= 64:
        raise UserError(f"{path}: factor is {factor}; it must be in [1, 64]")
    return factor


def _read_images(
    path: Path, reader: NpzReader, name: str, labels_name: str, dataset: Dataset
) -> ArrayDataset:
    shape = reader.header(name).shape
    header = reader.header(labels_name)
    if header.shape != shape[:1] or header.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {labels_name} is {header.dtype}{list(header.shape)}; it must be "
            f"whole numbers [{shape[0]}], a class for each of {name}"
        )
    labels = reader.array(labels_name)
    if labels.min() < 0 or labels.max() >= dataset.n_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(
            f"{path}: {labels_name} holds {wrong}, outside 0 … "
            f"{dataset.n_classes - 1}; is it another dataset's?"
        )
    pixels = reader.array(name)
    if pixels.dtype != np.uint8:
        if not np.isfinite(pixels).all():
            raise UserError(
                f"{path}: {name} holds values that are not finite; make it again"
            )
        if pixels.min() < -ROUNDING or pixels.max() > 1 + ROUNDING:
            raise UserError(
                f"{path}: {name} range from {pixels.min():.3g} to {pixels.max():.3g}; "
                "undo their normalisation, so that they lie in [0, 1]"
            )
    return ArrayDataset(pixels, labels.astype(np.int32))


def _make_set(
    path: Path,
    dataset: Dataset,
    decoded: ArrayDataset,
    stored: ArrayDataset | None,
    factor: int,
) -> SyntheticFile:
    stored = stored or decoded
    digest = hashlib.sha256()
    for array in (*decoded, *stored):
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data.cast("B"))
    pixels = np.asarray(decoded.images)
    if pixels.dtype == np.uint8:
        pixels = pixels / np.float32(255)
    counts = np.bincount(stored.labels, minlength=dataset.n_classes)
    return SyntheticFile(
        path=path,
        decoded=ArrayDataset(pixels.astype(np.float32, copy=False), decoded.labels),
        stored_counts=tuple(counts.tolist()),
        stored_bytes=int(np.prod(stored.images.shape)),
        factor=factor,
        content_hash=digest.hexdigest(),
    )


def _other_dataset(path: Path, dataset: Dataset, why: str) -> UserError:
    return UserError(
        f"{path} is another dataset's, not {dataset.name}'s: {why}; set config.data to "
        "the one it was made from"
    )
