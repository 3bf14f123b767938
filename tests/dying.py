"""A process that ends itself, at a moment too short to be seen from outside.

    python -m tests.dying removing 3 main.py --config=… --workdir=…

It runs the script, and SIGKILL comes at the third of the steps of that moment:

    completing   a checkpoint has all its files, and the last one gets its name
    loading      a file of a whole checkpoint is opened to be read
    removing     a file of a checkpoint that is no longer wanted is removed
    discarding   the same of all checkpoints, when the run has its summary
    training     a network that is going to score has begun a step of its training
    scoring      a network that was trained for that has begun to look at real images
    evaluating   a network that evaluates a set has begun a step of its training
"""

import functools
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Moments of networks: what makes the program that is called at every step, and the
# module that wants the network. Others train and look with the same programs.
CALLS = {
    "training": ("make_advance", "dasm_jax.pools"),
    "scoring": ("make_predictor", "dasm_jax.pools"),
    "evaluating": ("make_advance", "dasm_jax.evaluate"),
}


class Moment:
    """An audit hook (``sys.addaudithook``) that counts the steps of a moment.

    Those of ``CALLS`` are no events of Python: ``step`` is to be called at each.
    """

    def __init__(self, kind: str, steps: int, workdir: Path):
        """``steps`` is counted from 1."""
        self._kind, self._left = kind, steps
        self._workdir, self._checkpoints = workdir, workdir / "checkpoints"
        self._removed: Path | None = None  # the folder that is being removed

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """End the process where this event is the last step."""
        if event == "shutil.rmtree":
            self._removed = Path(arguments[0]).absolute()
        if event in ("open", "os.remove") and self._is_step(event, arguments[0]):
            self.step()
        # What appears whole is renamed; the second argument is its name.
        if event == "os.rename" and self._is_step(event, arguments[1]):
            self.step()

    def step(self) -> None:
        """End the process where this is the last step."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_step(self, event: str, path: Any) -> bool:
        if self._kind == "completing":
            return event == "os.rename" and self._completes_item(path)
        if self._kind == "loading":
            return event == "open" and self._is_of_whole_item(path)
        if event != "os.remove" or self._removed is None:
            return False
        if self._kind == "removing":
            return self._is_item(self._removed)
        if self._kind != "discarding":
            return False  # of ``CALLS``
        finished = (self._workdir / "summary.json").exists()
        return finished and self._removed == self._checkpoints

    def _is_of_whole_item(self, path: Any) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False  # a number of an open file
        inside = Path(os.fsdecode(path)).absolute()
        items = [folder for folder in inside.parents if self._is_item(folder)]
        return bool(items) and (items[0] / "metadata.json").exists()

    def _completes_item(self, path: Any) -> bool:
        made = Path(os.fsdecode(path)).absolute()
        return made.name == "metadata.json" and self._is_item(made.parent)

    def _is_item(self, folder: Path) -> bool:
        return folder.parent == self._checkpoints and folder.name.isdecimal()


def watch(module: Any, maker: str, user: str, step: Callable[[], None]) -> None:
    """Call ``step`` after each call of what a function of a module makes.

    That is while a device still computes, for calls of compiled programs do not wait.

    Args:
      module: that has the function.
      maker: its name.
      user: module that has to be among the callers.
      step: what to call.
    """
    make = getattr(module, maker)

    @functools.wraps(make)
    def made(*arguments: Any, **options: Any) -> Callable[..., Any]:
        program = make(*arguments, **options)

        def called(*inputs: Any) -> Any:
            found = program(*inputs)
            if user in _callers():
                step()
            return found

        return called

    setattr(module, maker, made)


def _callers() -> set[str]:
    """Names of the modules whose functions are being run by this thread."""
    return {frame.f_globals["__name__"] for frame, _ in traceback.walk_stack(None)}


def main() -> None:
    """Run the script that the command line names."""
    kind, steps, *command = sys.argv[1:]
    workdir = next(a for a in command if a.startswith("--workdir=")).partition("=")[2]
    moment = Moment(kind, int(steps), Path(workdir).absolute())
    sys.addaudithook(moment)
    if kind in CALLS:
        from dasm_jax import trainers  # JAX takes seconds, and the others need none

        watch(trainers, *CALLS[kind], moment.step)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
