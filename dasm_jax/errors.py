"""The two ways a run ends early, told apart from bugs."""

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
