"""Files that appear whole or not at all, files that grow by lines, and locks."""

import errno
import fcntl
import json
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dasm_jax.errors import CannotRead, CannotWrite, UserError

UNFINISHED = ".unfinished"

_log = logging.getLogger(__name__)

_GO_ON = "start the same command again, and it goes on where it stopped"
_REMEDIES = {
    errno.ENOSPC: f"make room there, then {_GO_ON}",
    errno.EDQUOT: f"make room there, then {_GO_ON}",
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f), then {_GO_ON}",
}
NO_ROOM = frozenset(_REMEDIES)
MOST_JSON = 2**30  # bytes
# What an OSError says of what is there, and not of reading it now: PIL's have no code,
# and a damaged archive leads to places that no file has.
_OF_CONTENT = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def cannot_write(path: Path | str, error: OSError) -> CannotWrite:
    """The error that names a file, the reason, and what helps where that is room."""
    text = f"cannot write {path}: {error.strerror or error}"
    remedy = _REMEDIES.get(error.errno or 0)
    return CannotWrite(f"{text}; {remedy}" if remedy else text)


def may_be_whole(error: BaseException) -> bool:
    """Whether a file that made reading it raise this may be read another time.

    A disk that is away, rights, too many open files, too little memory; not a missing
    or damaged file.
    """
    if isinstance(error, OSError):
        return error.errno not in _OF_CONTENT
    return isinstance(error, MemoryError)


def cannot_read(path: Path | str, error: BaseException) -> CannotRead:
    """The error that names a file, and the reason, of what ``may_be_whole``."""
    reason = isinstance(error, OSError) and error.strerror
    reason = reason or " ".join(str(error).split()) or type(error).__name__
    return CannotRead(
        f"{path} cannot be read now: {reason}; nothing has to be removed: start again "
        "once it can"
    )


def not_ours(
    path: Path, error: BaseException, to_remove: Path | None = None
) -> UserError:
    """The error that says what to do about a file that reading has raised this.

    Args:
      path: of the file.
      error: what was raised.
      to_remove: the file without which it is made again, itself by default.
    """
    if may_be_whole(error):
        return cannot_read(path, error)
    return UserError(
        f"{path} is missing or damaged; remove "
        + (f"{to_remove} to run it again" if to_remove else "it to make it again")
    )


def is_there(path: Path) -> bool:
    """Whether there is a file or folder, which a disk that is away cannot tell.

    Raises:
      CannotRead: that.
    """
    try:
        path.stat()
    except OSError as error:
        if may_be_whole(error):
            raise cannot_read(path, error) from None
        return False
    return True


def write_atomically(path: Path, write) -> None:
    """Let ``write(file)`` fill a file that appears whole or not at all, and for good.

    Raises:
      CannotWrite: permissions, a full disk.
    """
    try:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to be told
                os.unlink(temporary)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_all(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files by name, each whole or not at all.

    Raises:
      CannotWrite: permissions, a full disk.
    """
    for name, content in contents.items():
        write_atomically(
            folder / name, lambda file, content=content: file.write(content)
        )


def remove_unfinished(folder: Path, untouched_for: float = 0.0) -> None:
    """Remove what ``write_atomically`` left in a folder when it was killed.

    Not in the folders inside, which may be of runs that are being written.

    Args:
      folder: that may not be there.
      untouched_for: seconds, of a folder in which others may be writing.
    """
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):  # a folder of that name is somebody else's
            if time.time() - path.stat().st_mtime >= untouched_for:
                path.unlink()


def sync_file(path: Path) -> None:
    """Make the content of a file outlast a power loss.

    Raises:
      OSError: it cannot be written, as only the disk may know.
    """
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Make the names in a folder outlast a power loss, where its file system can.

    Raises:
      OSError: they cannot be written.
    """
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def read_regular(path: Path, most: int, links: bool = False) -> str:
    """Read a text file that is no pipe, and not larger than ``most`` bytes.

    Args:
      path: of the file.
      most: bytes.
      links: whether it may be a link.

    Raises:
      OSError: it cannot be read.
      ValueError: it is something else, or no UTF-8.
    """
    if path.is_symlink() and not links:
        raise ValueError(f"{path} is a link")
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"{path} is too large")
        return file.read(most).decode()


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that is no pipe or device, which could keep us waiting.

    Raises:
      OSError: it cannot be opened.
      ValueError: it is something else.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} is no file")
    return file


def make_folder(path: Path) -> None:
    """Make a folder, and those it lies in, unless it is there.

    Raises:
      CannotWrite: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
      CannotWrite: permissions, a full disk.
    """
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path, to_remove: Path | None = None) -> Any:
    """Read what ``write_json`` wrote; arguments as of ``not_ours``.

    Raises:
      CannotRead: it cannot be read now.
      UserError: it is missing or damaged.
    """
    with expecting_ours(path, to_remove):
        return json.loads(read_regular(path, MOST_JSON, links=True))


@contextmanager
def expecting_ours(path: Path, to_remove: Path | None = None) -> Iterator[None]:
    """Say in one line that a file does not hold what a run writes there.

    To be put around what reads it, and what first looks into its content; arguments as
    of ``not_ours``.

    Raises:
      CannotRead: it cannot be read now.
      UserError: a field is missing, or of another type, size or depth.
    """
    try:
        yield
    except UserError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise not_ours(path, error, to_remove) from None


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object that can be made again: empty where it is damaged.

    Raises:
      CannotRead: it may be whole, so nothing is to be written in its place.
    """
    try:
        content = read_json(path)
    except CannotRead:
        raise
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def open_to_append(path: Path, size: int | None = None) -> TextIO:
    """Open a file of lines, and cut it after the last whole one.

    Args:
      path: made where it does not exist.
      size: bytes that count, all of them by default.

    Raises:
      OSError: it cannot be opened.
      UserError: it is a link, and what it leads to would be cut, or no file.
    """
    file = _open_own(path)
    try:
        file.truncate(path.read_bytes()[:size].rfind(b"\n") + 1)
    except BaseException:
        file.close()
        raise
    return file


def _open_own(path: Path) -> TextIO:
    def opened(name: str, flags: int) -> int:
        # Not through a link, nor waiting for whoever reads a pipe.
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    try:
        file = open(path, "a", encoding="utf-8", opener=opened)  # noqa: SIM115
    except OSError as error:
        if path.is_symlink():
            raise UserError(
                f"{path} is a link, and what it leads to is not changed; remove it"
            ) from None
        raise error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is no file; remove it")
    return file


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file, which the operating system undoes when the process ends.

    Yields:
      False where someone else has locked it.

    Raises:
      UserError: the file cannot be opened.
    """
    try:
        file = _open_own(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system that has no locks
            _log.warning("%s cannot be locked; start no second run beside it", path)
        yield True
