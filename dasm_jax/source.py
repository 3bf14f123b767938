"""Digests of source files: what made a result, where the version says too little."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parent


def digest(package: Path, files: Iterable[Path]) -> str:
    """Sha256 of files of a package, and of where they are in it."""
    found = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        name = file.relative_to(package).as_posix()
        found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()


@functools.cache
def everything() -> str:
    """Sha256 of all modules of this package."""
    return digest(PACKAGE, sorted(PACKAGE.rglob("*.py")))
