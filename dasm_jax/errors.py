"""The two ways a run ends early, told apart from bugs."""


class UserError(ValueError):
    """A mistake the user can mend.

    The message is one line that names the field, file or folder and the remedy.
    ``main.py`` prints it without a traceback and exits with code 2.
    """


class NonFiniteError(FloatingPointError):
    """The matching distance or a pixel is no longer a finite number.

    The message names segment, step and class. The last good state is on disk by the
    time this is raised.
    """
