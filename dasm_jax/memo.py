"""What is made once in a process, though every run asks for it: compiled programs."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Make = TypeVar("Make", bound=Callable)
Thing = TypeVar("Thing")

MOST = 32  # of one kind; the ones not asked for the longest give way


class Shelf(Generic[Thing]):
    """Things by what they depend on; the ones longest out of use give way."""

    def __init__(self, most: int = MOST):
        self._things: OrderedDict[tuple, Thing] = OrderedDict()
        self._most = most

    def find(self, depends: tuple, make: Callable[[], Thing]) -> Thing:
        """The thing that depends on ``depends`` alone: found, or made."""
        if depends not in self._things:
            self._things[depends] = make()
        self._things.move_to_end(depends)
        while len(self._things) > self._most:
            self._things.popitem(last=False)
        return self._things[depends]

    def clear(self) -> None:
        """Forget all."""
        self._things.clear()


def remembered(make: Make) -> Make:
    """Let a pure function return what it made for equal arguments before.

    Where one of them has no hash, such as an array, it is made anew. ``cache_clear()``
    of the result forgets all, as that of ``functools.lru_cache`` does.
    """
    kept = functools.lru_cache(maxsize=MOST)(make)

    @functools.wraps(make)
    def found(*args, **kwargs):
        try:
            hash((args, tuple(kwargs.items())))
        except TypeError:
            return make(*args, **kwargs)
        return kept(*args, **kwargs)

    found.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return found  # type: ignore[return-value]
