"""The ways a run ends early, told apart from bugs."""

from typing import Any

LONGEST_MESSAGE = 2000


def printable(text: str) -> str:
    """Text as one line that says nothing to a terminal.

    Names of files and classes come from anyone: line breaks, control and bidirectional
    characters and halves of surrogate pairs are escaped, as Python writes them. Of a
    very long text the middle is left out.
    """
    if len(text) > LONGEST_MESSAGE:
        kept = LONGEST_MESSAGE // 2
        text = f"{text[:kept]} … {text[-kept:]}"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


class UserError(ValueError):
    """A mistake the user can mend.

    The message names the field, file or folder and the remedy, and is made one
    ``printable`` line. ``main.py`` prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class CannotWrite(UserError):
    """A file cannot be written: nothing that comes after can be, so the run ends."""


class CannotRead(UserError):
    """What is there may well be whole, but cannot be read now, or not here.

    Nothing is made in its place, for that would overwrite it.
    """


class SameForAll(UserError):
    """A mistake that every process of a run meets alike: none is left waiting."""


class NonFiniteError(FloatingPointError):
    """The matching distance or a pixel is no longer a finite number.

    The message is ``trouble``, which names segment, step and class, and the remedy;
    ``last_good`` is the synthetic set as it was before (``types.SyntheticSet``).
    """

    def __init__(self, trouble: str, last_good: Any, remedy: str = ""):
        super().__init__(printable(f"{trouble}; {remedy}" if remedy else trouble))
        self.trouble = printable(trouble)
        self.last_good = last_good


class Interrupted(Exception):
    """A signal asked the run to end, and all that it has done is kept.

    ``signal`` is its number; the message is one line. ``main.py`` exits with code
    128 + signal, as a shell says of a process that a signal ended.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(signal, message)
        self.signal = signal

    def __str__(self) -> str:
        return self.args[1]
