"""NumPy archives that may come from anyone.

Sizes and headers are looked at before anything is allocated, only the fields that are
asked for are read, and nothing is unpickled.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dasm_jax.errors import UserError

# What a file may unpack to: as many times its size on disk, or so many bytes. Images
# compress a few times, bombs a thousand times.
LARGEST_RATIO = 50
ALWAYS_ALLOWED = 2**28


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype


class NpzReader:
    """The arrays of an archive by name."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return f"{name}.npy" in self._archive.NameToInfo

    def header(self, name: str) -> Header:
        """Shape and dtype of a field, its size checked against what is there.

        Raises:
          UserError: it holds Python objects.
          ValueError: it is damaged; and whatever else ``zipfile`` raises.
        """
        with self._archive.open(f"{name}.npy") as file:
            return self._read_header(file, name)

    def array(self, name: str) -> np.ndarray:
        """A field; raises as ``header`` does."""
        with self._archive.open(f"{name}.npy") as file:
            self._read_header(file, name)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)

    def _read_header(self, file: Any, name: str) -> Header:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"{name} has a header of version {version}")
        if dtype.hasobject:
            raise UserError(
                f"{self._path}: {name} holds Python objects, which are never unpickled "
                "here; save it as an array of numbers"
            )
        there = self._archive.getinfo(f"{name}.npy").file_size - file.tell()
        if min(shape, default=0) < 0:
            raise ValueError(
                f"{name} has the shape {list(shape)}, with a negative size"
            )
        # Python's numbers, which do not overflow.
        expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if expected != there:
            raise ValueError(f"{name} should have {expected} bytes and has {there}")
        return Header(shape, dtype)


@contextmanager
def open_npz(path: Path) -> Iterator[NpzReader]:
    """Open an archive for reading.

    Raises:
      UserError: it is none, or would unpack to far more than it is.
      ValueError: it is damaged; and whatever else ``zipfile`` raises.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no .npz file; save it with np.savez")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("it holds a field twice")
        unpacked = sum(member.file_size for member in members)
        if unpacked > max(ALWAYS_ALLOWED, LARGEST_RATIO * path.stat().st_size):
            raise UserError(
                f"{path} would unpack to {unpacked:,} bytes, over {LARGEST_RATIO} "
                "times its size, which may be a decompression bomb; save it with "
                "np.savez"
            )
        yield NpzReader(path, archive)
