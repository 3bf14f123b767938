"""Files that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dasm_jax.errors import UserError


def write_atomically(path: Path, write) -> None:
    """Let ``write(file)`` fill a file that appears whole or not at all.

    Raises:
      UserError: it cannot be written (permissions, a full disk).
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Read what ``write_json`` wrote.

    Raises:
      UserError: it is missing or damaged.
    """
    with expecting_ours(path):
        return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def expecting_ours(path: Path) -> Iterator[None]:
    """Say in one line that a file does not hold what a run writes there.

    To be put around what reads it, and what first looks into its content.

    Raises:
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
    ):
        raise UserError(
            f"{path} cannot be read; remove {path.parent} to run it again"
        ) from None


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object that can be made again: empty where it is damaged."""
    try:
        content = read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}
