"""A tree of arrays in a folder, with the digests of its files. Orbax stops here.

Orbax reads an array with a flipped bit without a word, hence the digests. It also opens
whatever the names in a folder lead to, unpacks whatever its files state, and raises
whatever it meets: the folder is looked at before, and its errors become one line.
"""

import hashlib
import json
import logging
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dasm_jax.errors import UserError
from dasm_jax.files import sync_file, sync_folder
from dasm_jax.host_memory import physical_memory

TREE = "tree"
VERSION: str = ocp.__version__
HANDLES = 16  # files that Orbax opens at once, and some more

_quiet = threading.Lock()
# Orbax drops what it had begun when it meets metadata that make no sense.
warnings.filterwarnings(
    "ignore", r"coroutine '\w+Handler\.\w+' was never awaited", RuntimeWarning
)


class Damaged(UserError):
    """What is there is not what was written, and that is proven."""

    def __init__(self, path: Path):
        super().__init__(
            f"{path} is damaged or not what is expected; remove that folder to make it "
            "again"
        )


class Unreadable(UserError):
    """It may well be whole, but cannot be read now, or not by this version."""

    def __init__(self, path: Path, error: Exception, written_by: str = ""):
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, OSError):
            reason = error.strerror or reason
        versions = ""
        if written_by:
            versions = f", with Orbax {VERSION}, where Orbax {written_by} wrote it"
        super().__init__(
            f"{path} cannot be read{versions}: {reason.splitlines()[0]}; nothing is "
            "removed: mend that and start again, or remove that folder"
        )


def write(item: Path, arrays: Any) -> dict[str, str]:
    """Write a tree of NumPy arrays to ``item``/tree, to outlast a power loss.

    Returns:
      the sha256 of each file, by its name relative to that folder.

    Raises:
      OSError or ValueError: it cannot be written; TensorStore's errors are ValueErrors.
    """
    folder = item / TREE
    with _quiet_checkpointer() as checkpointer:
        checkpointer.save(folder, ocp.args.PyTreeSave(arrays), force=True)
    files = [*_files(item)]
    for name in files:
        sync_file(folder / name)
    for path in (folder, *filter(Path.is_dir, folder.rglob("*"))):
        sync_folder(path)
    return _digests(folder, files)


def read(item: Path, digests: dict[str, str], like: Any, written_by: str) -> Any:
    """Read ``item``/tree as NumPy arrays.

    Args:
      item: the folder that ``write`` was given.
      digests: what it returned.
      like: structure, shapes and dtypes that are expected.
      written_by: the version of Orbax that wrote it.

    Raises:
      Damaged: its files are others than were written, or hold another tree.
      Unreadable: they are the same, and cannot be read.
    """
    folder = item / TREE
    try:
        sizes = _files(item)
        # A file manager's or a network disk's own files begin with a dot.
        ours = {name for name in sizes if not name.rpartition("/")[2].startswith(".")}
        if not digests or not ours <= {*digests} <= {*sizes}:
            raise Damaged(item)
        if sum(sizes.values()) > _most_stored(like):
            raise Damaged(item)
        if _digests(folder, digests) != digests:
            raise Damaged(item)
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(item) from None
    except OSError as error:
        raise Unreadable(item, error) from error
    try:
        _check_format(folder)
        with _quiet_checkpointer() as checkpointer:
            stated = checkpointer.metadata(folder).item_metadata
            if stated is None or _leaves(stated.tree) != _leaves(like):
                raise Damaged(item)
            _check_room(stated.tree)  # Orbax allocates what the files state
            expected = jax.tree.map(_shape, like)
            plain = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), expected)
            arguments = ocp.args.PyTreeRestore(expected, restore_args=plain)
            tree = checkpointer.restore(folder, arguments)
            if _leaves(tree) != _leaves(like):
                raise Damaged(item)
    except Damaged:
        raise
    except Exception as error:  # Orbax, TensorStore and their codecs have their own
        raise Unreadable(item, error, written_by or "of unknown version") from error
    return tree


def room(arrays: Any) -> int:
    """Bytes of arrays; on disk they take that and a little more, or less."""
    return sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(arrays)
    )


def _most_stored(like: Any) -> int:
    """Bytes of files that such a tree is never larger than.

    Orbax writes about 200 bytes for a leaf, and a few thousand in all.
    """
    return 2 * room(like) + 2**16 + 2**11 * len(jax.tree.leaves(like))


def _files(item: Path) -> dict[str, int]:
    """Sizes of all files in the tree of an item, by their relative names.

    Raises:
      Damaged: there is something that is no file and no folder. What a link leads to
        is somebody else's, and a pipe would be waited for.
      OSError: it cannot be looked at.
    """
    sizes, folders = {}, [item / TREE]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode):
                folders.append(path)
            elif stat.S_ISREG(found.st_mode):
                sizes[path.relative_to(item / TREE).as_posix()] = found.st_size
            else:
                raise Damaged(item)
    return sizes


def _digests(folder: Path, names) -> dict[str, str]:
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _check_format(folder: Path) -> None:
    """Refuse what this program never wrote: others of Orbax's formats are files that
    TensorStore opens by names, with codecs of their choice."""
    stated = json.loads((folder / "_METADATA").read_text(encoding="utf-8"))
    if not isinstance(stated, dict) or stated.get("use_ocdbt") is not True:
        raise ValueError("_METADATA does not say OCDBT")
    if stated.get("use_zarr3", False) is not False:
        raise ValueError("_METADATA says Zarr 3")


def _check_room(stated: Any) -> None:
    """Refuse arrays, or chunks that they are read in, that are larger than memory."""
    chunks = [
        math.prod((leaf.storage and leaf.storage.chunk_shape) or ())
        * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(stated)
    ]
    size = room(stated)
    if size > physical_memory():
        raise ValueError(f"{size:,} bytes are more than this machine's memory")
    if sum(chunks) > max(2 * size, 2**20):
        raise ValueError("its chunks are larger than its arrays")


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every leaf by its path; Orbax makes dicts of named tuples."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            tuple(leaf.shape),
            np.dtype(leaf.dtype),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _check_handles() -> None:
    """Raise an OSError where few more files can be opened.

    Python leaves the event loop that Orbax starts half made where it meets that, and
    says so with tracebacks when the loop is collected.
    """
    with ExitStack() as opened:
        for _ in range(HANDLES):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))


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
    _check_handles()
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
