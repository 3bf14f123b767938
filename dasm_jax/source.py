"""What code made a result, where the version says too little."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

# To be raised where equal settings come to give other sets: what was made before is
# then made again or refused, so that no table and no run holds both.
RESULTS = 3
# Fields that came after that, or went again, each with the value that leaves results as
# they were. With it they are no part of what a run depends on: older ones are shown and
# go on.
ADDED = {
    "dasm.polish_target": "class",
    "dasm.ceiling": "fixed",
    "dasm.polish_nested": 0.0,
    "dasm.polish_schedule": "matcher",
    "dasm.polish_prefixes": 0.0,  # went
}
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
    files = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
    # An editor's begin with a dot, or lie in a folder that does.
    ours = [file for file in files if not any(part[0] == "." for part in file.parts)]
    return digest(PACKAGE, (PACKAGE / file for file in ours))
