"""Decoded images kept on disk: the second start takes a fraction of a second.

One uncompressed ``.npz`` per dataset, choice of splits and content. A file is used only
when the fingerprint of the source, taken without decoding anything, is the one it was
made from. Where the source is not on the machine, the newest file is used.
"""

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dasm_jax import types
from dasm_jax.data import validate
from dasm_jax.errors import UserError
from dasm_jax.files import UNFINISHED, remove_unfinished
from dasm_jax.npz import DAMAGE, NpzReader, open_npz

FORMAT = 1  # part of every file name: a change of the layout leaves old files alone
DAY = 24 * 60 * 60.0  # seconds
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_log = logging.getLogger(__name__)


class Key(NamedTuple):
    """What the user asked for; two datasets with one key replace each other."""

    source: str  # 'tfds', 'folder'
    name: str  # TFDS name, absolute path
    splits: tuple[str, ...]  # everything else that decides which images are read


def default_dir() -> Path:
    """Returns ``$DASM_CACHE_DIR``, else ``~/.cache/dasm_jax``."""
    folder = os.environ.get("DASM_CACHE_DIR") or "~/.cache/dasm_jax"
    return Path(os.path.expanduser(folder))


def fingerprint(facts: Any) -> str:
    """Returns the sha256 (hexadecimal) of what tells one state of a source apart."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def load_or_read(
    key: Key,
    source_fingerprint: str | None,
    read: Callable[[], types.Dataset],
    cache_dir: str | os.PathLike[str] | None = None,
) -> types.Dataset:
    """Returns the cached dataset, or reads the source and caches what it gave.

    Args:
        key: what was asked for.
        source_fingerprint: the state of the source; None when it is not here.
        read: decodes the source, or raises the UserError that says it is not here.
        cache_dir: folder of the cache; by default ``default_dir()``.

    Raises:
        UserError: from ``read``, or for a damaged cache file without its source.
    """
    folder = Path(os.path.expanduser(cache_dir)) if cache_dir else default_dir()
    dataset = find(key, source_fingerprint, folder)
    if dataset is None:
        dataset = read()
        _save_or_warn(key, source_fingerprint or "", dataset, folder)
    return dataset


def find(
    key: Key, source_fingerprint: str | None, folder: Path
) -> types.Dataset | None:
    """Returns the newest intact cached dataset of this fingerprint (None: of any).

    Raises:
        UserError: when the newest file is damaged and there is no source to rebuild
            it from.
    """
    for path in _newest_first(folder, f"{_slug(key)}-*.npz"):
        try:
            with open_npz(path) as reader:
                meta = json.loads(reader.array("meta").item())
                if source_fingerprint in (None, meta["fingerprint"]):
                    dataset = _unpack(meta, reader)
                    _log.info("%s comes from the cache file %s", key.name, path)
                    return dataset
        except DAMAGE as error:
            reason = f"cache file {path} is damaged ({_first_line(error)})"
            if source_fingerprint is None:
                raise UserError(
                    f"{reason} and its source is not here to rebuild it from; delete"
                    f" the file and bring back {key.source} {key.name}"
                ) from error
            _log.warning("%s; it is ignored and rebuilt from the source", reason)
    return None


def save(
    key: Key, source_fingerprint: str, dataset: types.Dataset, folder: Path
) -> Path:
    """Writes the cache file of a dataset in one step and returns its path.

    Raises:
        OSError: when the folder cannot be written.
    """
    meta = {
        **key._asdict(),
        "dataset_name": dataset.name,
        "class_names": dataset.class_names,
        "content_hash": dataset.content_hash,
        "fingerprint": source_fingerprint,
    }
    arrays = (*dataset.train, *dataset.test)
    path = folder / f"{_slug(key)}-{dataset.content_hash[:16]}.npz"
    # A name of its own until the file is whole: other processes never see half a file.
    unfinished = folder / f".{path.name}.{uuid.uuid4().hex}{UNFINISHED}"
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder, untouched_for=DAY)  # of who was killed: gigabytes
    try:
        with open(unfinished, "wb") as file:
            contents: dict[str, Any] = dict(zip(_ARRAYS, arrays))
            np.savez(file, meta=np.array(json.dumps(meta)), **contents)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _save_or_warn(
    key: Key, source_fingerprint: str, dataset: types.Dataset, folder: Path
) -> None:
    try:
        save(key, source_fingerprint, dataset, folder)
    except OSError as error:
        _log.warning(
            "cannot write the decoded cache in %s (%s); every start decodes again until"
            " DASM_CACHE_DIR names a writable folder",
            folder,
            _first_line(error),
        )


def _unpack(meta: dict[str, Any], reader: NpzReader) -> types.Dataset:
    train_images, train_labels, test_images, test_labels = map(reader.array, _ARRAYS)
    train = types.ArrayDataset(train_images, train_labels)
    test = types.ArrayDataset(test_images, test_labels)
    class_names = tuple(map(str, meta["class_names"]))
    # 0.15 s for CIFAR-10: cheap enough to do at every start.
    name = str(meta["dataset_name"])
    dataset = validate.make_dataset(name, train, test, class_names)
    if dataset.content_hash != meta["content_hash"]:
        raise ValueError("its content does not have the hash written in it")
    return dataset


def _slug(key: Key) -> str:
    """Names a key for people, with a digest because paths may share their last part."""
    readable = "_".join(re.findall(r"\w+", key.name, re.ASCII))[-40:]
    return f"{key.source}-{readable}-{fingerprint([FORMAT, *key])[:8]}"


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern), key=lambda p: p.stat().st_mtime_ns)[::-1]
    except OSError:
        # Unreadable, or a file vanished meanwhile: as good as no cache.
        return []


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
