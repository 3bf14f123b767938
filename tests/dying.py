"""A process that ends itself, at a moment too short to be seen from outside.

    python -m tests.dying removing 3 main.py --config=… --workdir=…

It runs the script, and SIGKILL comes at the third of the steps of that moment:

    loading      a file of a whole checkpoint is opened to be read
    removing     a file of a checkpoint that is no longer wanted is removed
    discarding   the same of all checkpoints, when the run has its summary
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any


class Moment:
    """An audit hook (``sys.addaudithook``) that counts the steps of a moment."""

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
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_step(self, event: str, path: Any) -> bool:
        if self._kind == "loading":
            return event == "open" and self._is_of_whole_item(path)
        if event == "open" or self._removed is None:
            return False
        if self._kind == "removing":
            return self._is_item(self._removed)
        finished = (self._workdir / "summary.json").exists()
        return finished and self._removed == self._checkpoints

    def _is_of_whole_item(self, path: Any) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False  # a number of an open file
        inside = Path(os.fsdecode(path)).absolute()
        items = [folder for folder in inside.parents if self._is_item(folder)]
        return bool(items) and (items[0] / "metadata.json").exists()

    def _is_item(self, folder: Path) -> bool:
        return folder.parent == self._checkpoints and folder.name.isdecimal()


def main() -> None:
    """Run the script that the command line names."""
    kind, steps, *command = sys.argv[1:]
    workdir = next(a for a in command if a.startswith("--workdir=")).partition("=")[2]
    sys.addaudithook(Moment(kind, int(steps), Path(workdir).absolute()))
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
