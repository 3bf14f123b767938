"""NumPy archives that may come from anyone.

Sizes and headers are looked at before anything is allocated, only the fields that are
asked for are read, and nothing is unpickled.
"""

import lzma
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dasm_jax.errors import CannotRead, UserError
from dasm_jax.files import open_regular
from dasm_jax.host_memory import physical_memory

# What zipfile and NumPy raise on a damaged file. MemoryError: a flipped bit in an
# array's header can ask for terabytes. SyntaxError, TokenError: it is a literal of
# Python, and is parsed. SystemError: text holds what is no character.
DAMAGE = (
    OSError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

# What a file may unpack to: as many times its size on disk, or so many bytes. Images
# compress a few times, bombs a thousand times.
LARGEST_RATIO = 50
ALWAYS_ALLOWED = 2**28
_END = 2**16 + 22  # bytes in which an archive says at its end where things are
# What np.savez and np.savez_compressed write. zipfile unpacks the others without a
# bound, whatever size the archive states: a kilobyte of bzip2 can hold gigabytes.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Numbers of up to eight bytes, and text.
KINDS, LONGEST_NUMBER, MOST_AXES = "biufU", 8, 8


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
          Exception: it is damaged, one of ``DAMAGE``.
        """
        with self._open(name) as file:
            return self._read_header(file, name)

    def array(self, name: str) -> np.ndarray:
        """A field; raises as ``header`` does."""
        with self._open(name) as file:
            self._read_header(file, name)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        with warnings.catch_warnings(), self._archive.open(f"{name}.npy") as file:
            # NumPy's on headers that Python 2 wrote, Python's on odd literals.
            warnings.simplefilter("ignore")
            yield file

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
        longest = LONGEST_NUMBER if dtype.kind != "U" else math.inf
        # Text without width has no bytes that could tell how much of it there is.
        if dtype.kind not in KINDS or not 0 < dtype.itemsize <= longest:
            raise ValueError(f"{name} holds neither numbers of up to 64 bits nor text")
        if len(shape) > MOST_AXES:
            raise ValueError(f"{name} has {len(shape)} axes")
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
      CannotRead: it would unpack to more than this machine's memory.
      UserError: it is none, packed by a method that NumPy does not use, or would
        unpack to far more than it is.
      Exception: it is damaged, one of ``DAMAGE``.
    """
    with open_regular(path) as file, _archive(path, file) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("it holds a field twice")
        if any(member.compress_type not in METHODS for member in members):
            raise UserError(
                f"{path} is packed by another method than NumPy's; save it with "
                "np.savez or np.savez_compressed"
            )
        unpacked = sum(max(m.file_size, m.compress_size) for m in members)
        size = os.fstat(file.fileno()).st_size
        if unpacked > max(ALWAYS_ALLOWED, LARGEST_RATIO * size):
            raise UserError(
                f"{path} would unpack to {unpacked:,} bytes, over {LARGEST_RATIO} "
                "times its size, which may be a decompression bomb; save it with "
                "np.savez"
            )
        if unpacked > physical_memory():
            raise CannotRead(
                f"{path} would unpack to {unpacked:,} bytes, more than this machine's "
                "memory; use a machine that has more, or save fewer images"
            )
        yield NpzReader(path, archive)


def _archive(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    # The end, where zipfile looks; it takes a disk that fails for another format.
    file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
    file.read()
    if not zipfile.is_zipfile(file):
        raise UserError(f"{path} is no .npz file; save it with np.savez")
    return zipfile.ZipFile(file)
