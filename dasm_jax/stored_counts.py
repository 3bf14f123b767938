"""How many images the stored ones of a set's file give.

Sets are compared by what they store: a file must not claim fewer than it was made of.
"""

from pathlib import Path

import numpy as np

from dasm_jax.errors import UserError
from dasm_jax.npz import NpzReader
from dasm_jax.parameterization import BOUND, FORMATIONS, decoded_count
from dasm_jax.types import ArrayDataset


def check_counts(
    path: Path,
    reader: NpzReader,
    decoded: ArrayDataset,
    stored: ArrayDataset,
    factor: int,
) -> None:
    """Check that the stored images of a file give as many as networks see.

    Every class of every segment is decoded by itself. Where the file does not say how,
    or 'bound' does not say in which segments, there is a largest number only.

    Raises:
      UserError: they give other counts, or how they were decoded cannot be told.
    """
    formation = _formation(path, reader)
    segments = _segments(path, reader, decoded, stored)
    counts: dict[tuple[int, int | None], list[int]] = {}
    for place, labels in enumerate((decoded.labels, stored.labels)):
        of = segments[place].tolist() if segments else [None] * len(labels)
        for key in zip(labels.tolist(), of):
            counts.setdefault(key, [0, 0])[place] += 1
    for (label, segment), (seen, count) in counts.items():
        if formation is None:
            most, exact = count * factor**2, False
        elif formation == "bound" and segments is None:
            most, exact = min(count * factor**2, max(count, BOUND)), False
        else:
            most, exact = decoded_count(formation, factor, count), True
        if seen > most or (exact and seen < most):
            where = "" if segment is None else f" of segment {segment}"
            how = "" if formation is None else f" and formation {formation!r}"
            raise UserError(
                f"{path}: class {label}{where} has {seen} decoded and {count} stored "
                f"images, which with factor {factor}{how} give "
                f"{'' if exact else 'at most '}{most}; make the file again"
            )


def _formation(path: Path, reader: NpzReader) -> str | None:
    if not reader.has("formation"):
        return None
    header = reader.header("formation")
    if header.shape != () or header.dtype.kind != "U":
        raise UserError(
            f"{path}: formation is {header.dtype}{list(header.shape)}; it must be one "
            f"of {', '.join(FORMATIONS)}"
        )
    formation = str(reader.array("formation"))
    if formation not in FORMATIONS:
        raise UserError(
            f"{path}: formation is {formation[:40]!r}; it must be one of "
            f"{', '.join(FORMATIONS)}"
        )
    return formation


def _segments(
    path: Path, reader: NpzReader, decoded: ArrayDataset, stored: ArrayDataset
) -> tuple[np.ndarray, np.ndarray] | None:
    """The segment of each decoded and of each stored image, where the file says."""
    names = "segments", "stored_segments"
    if not any(map(reader.has, names)):
        return None
    if not all(map(reader.has, names)):
        raise UserError(f"{path} has only one of the fields {' and '.join(names)}")
    for name, count in zip(names, (len(decoded.labels), len(stored.labels))):
        header = reader.header(name)
        if header.shape != (count,) or header.dtype.kind not in "iu":
            raise UserError(
                f"{path}: {name} is {header.dtype}{list(header.shape)}; it must be "
                f"whole numbers [{count}]"
            )
    return reader.array(names[0]), reader.array(names[1])
