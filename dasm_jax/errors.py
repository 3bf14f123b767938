"""The ways a run ends early, told apart from bugs."""

from typing import Any


class UserError(ValueError):
    """A mistake the user can mend.

    The message is one line that names the field, file or folder and the remedy.
    ``main.py`` prints it without a traceback and exits with code 2.
    """


class NonFiniteError(FloatingPointError):
    """The matching distance or a pixel is no longer a finite number.

    The message names segment, step and class; ``last_good`` is the synthetic set as it
    was before (``types.SyntheticSet``).
    """

    def __init__(self, message: str, last_good: Any):
        super().__init__(message)
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
