"""Items with numbers: written one after the other, the newest whole one found again."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from dasm_jax import checkpoint
from dasm_jax.errors import CannotWrite
from dasm_jax.files import cannot_write
from dasm_jax.stored_tree import Damaged, Unreadable

INSTEAD_OF = "instead_of"
DAMAGED = ".damaged"  # ends the names of items that are set aside

_log = logging.getLogger(__name__)


class Item(NamedTuple):
    """One of several, as it is found."""

    content: Any
    metadata: dict[str, Any]
    number: int


class Checkpoints:
    """The newest items of a folder, numbered, written in the background.

    Only whole ones count. What a process that was killed left of others is removed, so
    a folder belongs to one process at a time. A damaged one is set aside under another
    name, and removed when a newer one is whole. For a ``careful`` user both are set
    aside, and nothing is removed.
    """

    def __init__(self, folder: Path, keep: int, careful: bool = False):
        self._folder, self._keep, self._careful = folder.absolute(), keep, careful
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._replaced: list[int] = []  # by the pending one
        self._next = 1 + max(self._numbers() + self._numbers(DAMAGED), default=0)

    def newest(
        self,
        expected: Callable[[dict[str, Any]], Any],
        restored: Callable[[Any, dict[str, Any]], Any] = lambda tree, metadata: tree,
        most: int = 1,
    ) -> list[Item]:
        """The newest items that are not damaged, the newest one first.

        Those that a newer one stands for are none of them, and are removed. Damaged
        ones are said in one line each.

        Args:
          expected: gets the metadata of an item, and gives what ``load`` has to know.
          restored: gets its arrays and metadata, and gives its content. Both may raise
            Damaged.
          most: how many are looked for.

        Raises:
          Unreadable: one may be whole, and cannot be read; nothing is removed.
          UserError: an item cannot be removed or set aside.
        """
        found: list[Item] = []
        damaged, useless, replaced = [], [], set()
        for number in sorted(self._numbers(), reverse=True):
            if len(found) == most:
                break
            if number in replaced:
                useless.append(number)
                continue
            name = _name(number)
            try:
                metadata = checkpoint.read_metadata(self._folder, name)
                if metadata is None:
                    useless.append(number)
                    continue
                instead_of = self._instead_of(metadata)
                tree = checkpoint.load(self._folder, name, expected(metadata))
                found.append(Item(restored(tree, metadata), metadata, number))
                replaced |= instead_of
            except Damaged:
                damaged.append(number)
        self._say(damaged, [item.number for item in found])
        if found or not self._careful:
            try:
                self._put_away(damaged, useless)
            except OSError as error:
                raise cannot_write(self._folder, error) from error
        return found

    def _instead_of(self, metadata: dict[str, Any]) -> set[int]:
        numbers = metadata.get(INSTEAD_OF, [])
        if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
            raise Damaged(self._folder)
        return {*numbers}

    def _say(self, damaged: list[int], found: list[int]) -> None:
        for number in damaged:
            path = self._folder / _name(number)
            instead = max((n for n in found if n < number), default=None)
            if instead is None:
                _log.warning("%s is damaged, and there is no whole one before it", path)
            else:
                _log.warning("%s is damaged; %s is used instead", path, _name(instead))

    def _put_away(self, damaged: list[int], useless: list[int]) -> None:
        for number in damaged + useless * self._careful:
            path = self._folder / _name(number)
            path.rename(path.with_name(path.name + DAMAGED))
        for number in useless * (not self._careful):
            checkpoint.remove(self._folder / _name(number))

    def any(self) -> bool:
        """Whether there is an item, whole or not."""
        return bool(self._numbers())

    def save(
        self,
        tree: Any,
        metadata: dict[str, Any],
        instead_of: Sequence[int] | None = None,
    ) -> int:
        """Begin to write an item, once the one before it is written.

        Nothing may change the arrays any more. Where the one before could not be
        written this one may still be, for there may be room again: it is waited for.

        Args:
          tree: arrays.
          metadata: plain JSON; ``INSTEAD_OF`` is added where that is given.
          instead_of: numbers of older items, which are removed once it is whole.

        Returns:
          its number.

        Raises:
          UserError: neither the one before it nor this one could be written.
        """
        missed = None
        try:
            self.wait()
        except CannotWrite as error:
            missed = error
            if self._replaced:
                instead_of = [*self._replaced, *(instead_of or ())]
        number, self._next = self._next, self._next + 1
        self._replaced = list(instead_of or ())
        if instead_of is not None:
            metadata = {**metadata, INSTEAD_OF: self._replaced}
        self._pending = self._writer.submit(self._write, number, tree, metadata)
        if missed is not None:
            self.wait()
            what = str(missed).partition(";")[0]  # without a remedy
            _log.warning("%s; %s is whole instead", what, _name(number))
        return number

    @property
    def failed(self) -> bool:
        """Whether the last one is known not to have been written."""
        pending = self._pending
        return pending is not None and pending.done() and bool(pending.exception())

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
          UserError: it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let go of the thread, once it is done.

        For a caller that may have met an error of its own: one of ours is only logged.
        """
        self._writer.shutdown()
        try:
            self.wait()
        except Exception as error:
            _log.warning("%s", error)

    def _write(self, number: int, tree: Any, metadata: dict[str, Any]) -> None:
        checkpoint.save(self._folder, _name(number), tree, metadata)
        replaced = {*metadata.get(INSTEAD_OF, ())}
        left = sorted({*self._numbers()} - replaced)
        names = [*map(_name, (*replaced, *left[: -self._keep]))]
        if not self._careful:
            names += [f"{_name(number)}{DAMAGED}" for number in self._numbers(DAMAGED)]
        try:
            for name in names:
                checkpoint.remove(self._folder / name)
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def _numbers(self, end: str = "") -> list[int]:
        """Of the folders that are named as items are; a link is somebody else's."""
        try:
            with os.scandir(self._folder) as entries:
                names = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise Unreadable(self._folder, error) from error
        pattern = re.compile("([0-9]{6}|[1-9][0-9]{6,})" + re.escape(end))
        return [int(found[1]) for found in map(pattern.fullmatch, names) if found]


def _name(number: int) -> str:
    return f"{number:06d}"
