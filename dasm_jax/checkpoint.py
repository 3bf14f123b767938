"""Trees of arrays on disk, whole or not at all. Orbax stops at this module.

An item is a folder: Orbax's ``tree/``, and ``metadata.json``, which is written last and
makes the item valid. It holds the caller's metadata and the digests of the files in
``tree/``, because Orbax reads an array with a flipped bit without a word.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dasm_jax.errors import UserError
from dasm_jax.files import write_atomically

TREE = "tree"
METADATA = "metadata.json"


def save(folder: Path, name: str, tree: Any, metadata: dict[str, Any]) -> None:
    """Store a tree of arrays, none of them empty, with metadata that is plain JSON.

    An older item of that name gives way; the folder is made where it is missing.

    Raises:
      UserError: it cannot be written (permissions, a full disk).
    """
    if jax.process_index() != 0:
        return  # the first of several processes writes
    path = folder.absolute() / name
    arrays = jax.tree.map(np.asarray, tree)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / METADATA).unlink(missing_ok=True)
        # Asked beforehand, because Orbax meets a full disk with pages of tracebacks.
        if shutil.disk_usage(path).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _quiet_checkpointer() as checkpointer:
            checkpointer.save(path / TREE, ocp.args.PyTreeSave(arrays), force=True)
        record = {"metadata": metadata, "files": _digests(path / TREE)}
    except (OSError, ValueError) as error:  # TensorStore's write errors are ValueErrors
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}") from error
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(path / METADATA, lambda file: file.write(text.encode()))


def load(folder: Path, name: str, like: Any) -> Any:
    """Read an item as NumPy arrays, of the structure, shapes and dtypes of ``like``.

    Raises:
      UserError: the item is missing, damaged, or not like ``like``.
    """
    path = folder.absolute() / name
    record = _read_record(path)
    if record is None or not record["files"].items() <= _digests(path / TREE).items():
        raise _unusable(path)
    expected = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    try:
        with _quiet_checkpointer() as checkpointer:
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
      UserError: the item is damaged.
    """
    record = _read_record(folder.absolute() / name)
    return None if record is None else record["metadata"]


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(path) from error


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder, by its name relative to the folder."""
    digests = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _unusable(path: Path) -> UserError:
    return UserError(
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
