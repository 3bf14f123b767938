"""Trees of arrays on disk, whole or not at all. Orbax stops at this module.

An item is a folder: Orbax's ``tree/``, and ``metadata.json``, which is written last and
makes the item valid. It holds the caller's metadata and the digests of the files in
``tree/``, because Orbax reads an array with a flipped bit without a word.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dasm_jax.errors import CannotWrite, UserError
from dasm_jax.files import cannot_write, write_atomically

TREE = "tree"
METADATA = "metadata.json"
INSTEAD_OF = "instead_of"
OVERHEAD = 2**14  # bytes that Orbax writes about an item, more or less

_log = logging.getLogger(__name__)
_quiet = threading.Lock()


class Damaged(UserError):
    """An item is there, and cannot be used."""


class Item(NamedTuple):
    """One of several, as it is found."""

    tree: Any
    metadata: dict[str, Any]
    number: int


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
    size = _bytes(arrays)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / METADATA).unlink(missing_ok=True)
        _take_room(path, size)
        with _quiet_checkpointer() as checkpointer:
            checkpointer.save(path / TREE, ocp.args.PyTreeSave(arrays), force=True)
        record = {"metadata": metadata, "files": _digests(path / TREE)}
        text = json.dumps(record, indent=2) + "\n"
        write_atomically(path / METADATA, lambda file: file.write(text.encode()))
    except (OSError, ValueError) as error:  # TensorStore's write errors are ValueErrors
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, CannotWrite):
            raise
        raise cannot_write(path, _as_os_error(error)) from error


def load(folder: Path, name: str, like: Any) -> Any:
    """Read an item as NumPy arrays, of the structure, shapes and dtypes of ``like``.

    Raises:
      Damaged: the item is missing, damaged, or not like ``like``.
    """
    path = folder.absolute() / name
    record = _read_record(path)
    if record is None or not record["files"].items() <= _digests(path / TREE).items():
        raise _unusable(path)
    expected = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    try:
        with _quiet_checkpointer() as checkpointer:
            if _bytes_stated(checkpointer, path / TREE) > _bytes(expected):
                raise _unusable(path)  # Orbax allocates what the files state
            tree = checkpointer.restore(path / TREE, ocp.args.PyTreeRestore(expected))
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(path) from error
    for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(expected)):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise _unusable(path)
    return tree


def read_metadata(folder: Path, name: str) -> dict[str, Any] | None:
    """Metadata of an item, or None where there is none, or only a part of one.

    Raises:
      Damaged: the item's metadata are.
    """
    record = _read_record(folder.absolute() / name)
    return None if record is None else record["metadata"]


class Checkpoints:
    """The newest items of a folder, numbered, written in the background.

    Only whole ones count. What a process that was killed left of others is removed, so
    a folder belongs to one process at a time.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder, self._keep = folder.absolute(), keep
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._next = 1 + max(self._numbers(), default=0)

    def newest(
        self, read: Callable[[dict[str, Any]], Any], most: int = 1
    ) -> list[Item]:
        """The newest items that are not damaged, the newest one first.

        Those that a newer one stands for are none of them, and are removed. Damaged
        ones are said in one line each.

        Args:
          read: gets the metadata of an item, and says what ``load`` needs to know.
          most: how many are looked for.
        """
        found: list[Item] = []
        damaged, replaced = [], set()
        for number in sorted(self._numbers(), reverse=True):
            if len(found) == most:
                break
            name = _name(number)
            try:
                metadata = read_metadata(self._folder, name)
                if metadata is not None and number not in replaced:
                    tree = load(self._folder, name, read(metadata))
                    found.append(Item(tree, metadata, number))
                    replaced |= {*metadata.get(INSTEAD_OF, ())}
                    for path in damaged:
                        _log.warning("%s is damaged; %s is used instead", path, name)
                    damaged = []
                    continue
            except Damaged:
                damaged.append(self._folder / name)
            self._remove(number)
        for path in damaged:
            _log.warning("%s is damaged, and there is no whole one before it", path)
        return found

    def save(
        self,
        tree: Any,
        metadata: dict[str, Any],
        instead_of: Sequence[int] | None = None,
    ) -> int:
        """Begin to write an item, once the one before it is written.

        Nothing may change the arrays any more.

        Args:
          tree: arrays.
          metadata: plain JSON; ``INSTEAD_OF`` is added where that is given.
          instead_of: numbers of older items, which are removed once it is whole.

        Returns:
          its number.

        Raises:
          UserError: the one before it could not be written.
        """
        self.wait()
        number, self._next = self._next, self._next + 1
        if instead_of is not None:
            metadata = {**metadata, INSTEAD_OF: list(instead_of)}
        self._pending = self._writer.submit(self._write, number, tree, metadata)
        return number

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
          UserError: it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let go of the thread, once it is done.

        For a caller that has met an error of its own: one of ours is only logged.
        """
        self._writer.shutdown()
        try:
            self.wait()
        except UserError as error:
            _log.warning("%s", error)

    def _write(self, number: int, tree: Any, metadata: dict[str, Any]) -> None:
        save(self._folder, _name(number), tree, metadata)
        for old in metadata.get(INSTEAD_OF, ()):
            self._remove(old)
        for old in sorted(self._numbers())[: -self._keep]:
            self._remove(old)

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(p.name) for p in self._folder.iterdir() if p.name.isdecimal()]

    def _remove(self, number: int) -> None:
        path = self._folder / _name(number)
        # First, so that what is left after a kill is no whole item.
        (path / METADATA).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _name(number: int) -> str:
    return f"{number:06d}"


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


def _read_record(path: Path) -> dict[str, dict[str, Any]] | None:
    try:
        record = json.loads((path / METADATA).read_text())
        return {key: dict(record[key]) for key in ("metadata", "files")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unusable(path) from error


def _take_room(folder: Path, size: int) -> None:
    """Raise an OSError where so many bytes cannot be written.

    Orbax meets that with pages of tracebacks.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):  # a limit on files, or on what a user may have
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size + OVERHEAD)


def _as_os_error(error: Exception) -> OSError:
    """What TensorStore says, in a line and with a code, as Python says it."""
    if isinstance(error, OSError):
        return error
    text = str(error).splitlines()[0]
    if code := re.search(r"os_error_code='(\d+)'", text):
        return OSError(int(code[1]), os.strerror(int(code[1])))
    return OSError(None, text)


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder, by its name relative to the folder."""
    digests = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _bytes_stated(checkpointer: ocp.Checkpointer, folder: Path) -> int:
    """Of arrays, or of the chunks that they are read in, if those are larger."""
    metadata = checkpointer.metadata(folder).item_metadata
    if metadata is None:
        raise ValueError("nothing is stated")
    stated = jax.tree.leaves(metadata.tree)
    chunks = [leaf.storage and leaf.storage.chunk_shape for leaf in stated]
    return max(
        sum(
            math.prod(shape or leaf.shape) * leaf.dtype.itemsize
            for leaf, shape in zip(stated, shapes)
        )
        for shapes in (chunks, [None] * len(chunks))
    )


def _unusable(path: Path) -> Damaged:
    return Damaged(
        f"{path} is damaged or not what is expected; remove that folder to make it "
        "again"
    )


@contextmanager
def _quiet_checkpointer() -> Iterator[ocp.Checkpointer]:
    """Orbax logs the errors that it raises, and more; each process is on its own."""
    process = jax.process_index()
    own = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process{process}",
    )
    logger = logging.getLogger("absl")
    with _quiet:  # one thread at a time, or it would put back the level of another
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            with ocp.Checkpointer(
                ocp.PyTreeCheckpointHandler(multiprocessing_options=own),
                multiprocessing_options=own,
            ) as checkpointer:
                yield checkpointer
        finally:
            logger.setLevel(level)
