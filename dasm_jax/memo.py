"""What is made once in a process, though every run asks for it: compiled programs."""

import functools
from collections.abc import Callable
from typing import TypeVar

Make = TypeVar("Make", bound=Callable)

MOST = 32  # of one kind; the ones not asked for the longest give way


def remembered(make: Make) -> Make:
    """Let a pure function return what it made for equal arguments before.

    Where one of them has no hash, such as an array, it is made anew.
    """
    kept = functools.lru_cache(maxsize=MOST)(make)

    @functools.wraps(make)
    def found(*args, **kwargs):
        try:
            hash((args, tuple(kwargs.items())))
        except TypeError:
            return make(*args, **kwargs)
        return kept(*args, **kwargs)

    return found  # type: ignore[return-value]
