"""Files that cannot be read for a while, as on a network disk that is away."""

import os
from contextlib import contextmanager

import pytest


@contextmanager
def unreadable(path, code):
    """Opening the file, or anything in the folder, fails; nothing else does."""
    whole = os.open

    def opened(name, flags, *rest, **options):
        at = isinstance(name, str | os.PathLike) and os.path.abspath(name)
        if at and (at == str(path) or at.startswith(f"{path}/")) and not flags & 3:
            raise OSError(code, os.strerror(code), str(name))
        return whole(name, flags, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        yield
