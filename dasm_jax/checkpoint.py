"""Trees of arrays on disk, whole or not at all.

An item is a folder: ``tree/`` (``stored_tree``), and ``metadata.json``, which is
written last and makes the item valid. It holds the caller's metadata, the digests of
the files in ``tree/``, the version of Orbax that wrote them, and a digest of all that.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dasm_jax import stored_tree
from dasm_jax.errors import CannotWrite, UserError
from dasm_jax.files import (
    NO_ROOM,
    UNFINISHED,
    cannot_write,
    read_regular,
    sync_folder,
    write_atomically,
)
from dasm_jax.stored_tree import TREE, Damaged, Unreadable

METADATA = "metadata.json"
LOCK = ".lock"  # of a folder of items that several runs share
SEAL = "sha256"
OVERHEAD = 2**14  # bytes that Orbax writes about an item, more or less
MOST_METADATA = 2**26  # bytes


def save(folder: Path, name: str, tree: Any, metadata: dict[str, Any]) -> None:
    """Store a tree of arrays, none of them empty, with metadata that is plain JSON.

    An older item of that name gives way; the folder is made where it is missing.

    Raises:
      CannotWrite: permissions, a full disk; what there was of it is removed.
    """
    if jax.process_index() != 0:
        return  # the first of several processes writes
    path = folder.absolute() / name
    arrays = jax.tree.map(np.asarray, tree)
    try:
        remove(path)
        path.mkdir(parents=True, exist_ok=True)
        _take_room(path, stored_tree.room(arrays))
        files = stored_tree.write(path, arrays)
        record = {"metadata": metadata, "files": files, "orbax": stored_tree.VERSION}
        text = json.dumps(sealed(record), indent=2) + "\n"
        write_atomically(path / METADATA, lambda file: file.write(text.encode()))
        sync_folder(folder)
    except (OSError, ValueError) as error:  # TensorStore's write errors are ValueErrors
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, CannotWrite):
            raise
        raise cannot_write(path, _as_os_error(error)) from error


def load(folder: Path, name: str, like: Any) -> Any:
    """Read an item as NumPy arrays, of the structure, shapes and dtypes of ``like``.

    Raises:
      Damaged: the item is missing, damaged, or not like ``like``.
      Unreadable: it may be whole, and cannot be read.
    """
    path = folder.absolute() / name
    record = _read_record(path)
    if record is None:
        raise Damaged(path)
    return stored_tree.read(path, record.files, like, record.orbax)


def read_metadata(folder: Path, name: str) -> dict[str, Any] | None:
    """Metadata of an item, or None where there is none, or only a part of one.

    Raises:
      Damaged: the item's metadata are.
      Unreadable: they cannot be read.
    """
    record = _read_record(folder.absolute() / name)
    return None if record is None else record.metadata


def remove(path: Path) -> None:
    """Remove an item, or as much of its arrays as can be; of a link, the link alone.

    Raises:
      OSError: it is still whole.
    """
    if path.is_symlink():
        path.unlink()
        return
    # First, so that what is left after a kill is no whole item.
    (path / METADATA).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def remove_all(folder: Path) -> None:
    """Remove a folder of items; where it is a link, the items that it leads to.

    What cannot be removed stays.
    """
    if folder.is_symlink():
        remove_items(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def remove_items(folder: Path) -> bool:
    """Remove the items in a folder, and the folder where it holds nothing else.

    Returns:
      whether no item is left.
    """
    try:
        items = [path for path in folder.iterdir() if _is_item(path)]
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    for path in items:
        with suppress(OSError):
            remove(path)
    with suppress(OSError):  # not of a link
        if [*folder.iterdir()] == [folder / LOCK]:
            (folder / LOCK).unlink()
        folder.rmdir()
    return not any(path.exists() for path in items)


def _is_item(path: Path) -> bool:
    """Whether a folder holds what ``save`` writes, or a part of it, and no more."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(
        entry.name == METADATA
        or entry.name.startswith(TREE)
        or entry.name.endswith(UNFINISHED)
        for entry in path.iterdir()
    )


def differences(
    ours: dict[str, Any], theirs: dict[str, Any], prefix: str = ""
) -> list[str]:
    """Dotted names of the fields in which two nested dicts differ."""
    names = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names


class _Record(NamedTuple):
    """What ``metadata.json`` holds."""

    metadata: dict[str, Any]
    files: dict[str, str]
    orbax: str  # the version that wrote them


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """What ``metadata.json`` holds, with the digest of it under ``SEAL``."""
    content = {name: value for name, value in record.items() if name != SEAL}
    text = json.dumps(content, sort_keys=True)
    return {**content, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def _read_record(path: Path) -> _Record | None:
    try:
        record = json.loads(read_regular(path / METADATA, MOST_METADATA))
        if {*record} == {*_Record._fields}:
            raise Unreadable(path, ValueError("it was written by an older version"))
        if sealed(record) != record:
            raise Damaged(path)
        del record[SEAL]
        read = _Record(**record)
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unreadable(path, error) from error
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise Damaged(path) from error
    whole = isinstance(read.metadata, dict) and isinstance(read.files, dict)
    whole = whole and isinstance(read.orbax, str)
    if not whole or not all(isinstance(text, str) for text in read.files.values()):
        raise Damaged(path)
    return read


def _take_room(folder: Path, size: int) -> None:
    """Raise an OSError where so many bytes cannot be written.

    Orbax meets that with pages of tracebacks.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):  # a limit on files, or on what a user may have
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size + OVERHEAD)
            except OSError as error:  # not every file system can tell
                if error.errno in NO_ROOM:
                    raise


def _as_os_error(error: Exception) -> OSError:
    """What TensorStore says, in a line and with a code, as Python says it."""
    if isinstance(error, OSError):
        return error
    text = str(error).splitlines()[0]
    if code := re.search(r"os_error_code='(\d+)'", text):
        return OSError(int(code[1]), os.strerror(int(code[1])))
    return OSError(None, text)
