"""The logs of a run: metrics, text and a progress bar, and moments to go back to."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dasm_jax.errors import UserError, printable
from dasm_jax.files import cannot_write, open_to_append, write_atomically

ROLLBACK = "rollback"  # the kind of the metrics of one

_log = logging.getLogger(__name__)


class LogPosition(NamedTuple):
    """A moment in the logs of a run, from which they can be continued."""

    done: int = 0  # units of work
    seconds: float = 0.0
    metrics_bytes: int | None = None  # of ``metrics.jsonl``; None: all there are


class RunLog:
    """``metrics.jsonl``, ``log.txt`` and a progress bar, in step with each other.

    Begun anew, or continued ``after`` a moment: metrics of later ones are dropped, and
    so is what was left of a last line; ``log.txt`` tells all that happened.
    """

    def __init__(self, workdir: Path, total: int, *, after: LogPosition | None = None):
        try:
            if after is None:
                for name in ("metrics.jsonl", "log.txt"):
                    (workdir / name).unlink(missing_ok=True)
            size = after and after.metrics_bytes
            with ExitStack() as opened:  # both, or neither
                self._metrics, self._text = (
                    opened.enter_context(open_to_append(workdir / name, bytes_))
                    for name, bytes_ in (("metrics.jsonl", size), ("log.txt", None))
                )
                opened.pop_all()
        except OSError as error:
            raise UserError(f"cannot write to {workdir}: {error.strerror}") from None
        self.facts: dict[str, Any] = {}  # that the manifest is to hold as well
        after = after or LogPosition()
        self._began = time.perf_counter() - after.seconds
        left, expected = os.fstat(self._metrics.fileno()).st_size, after.metrics_bytes
        if expected is not None and left < expected and not self._was_cut_back():
            text = f"metrics.jsonl holds {left} bytes of the {expected} it had; the "
            text += "lines that are missing are lost"
            _log.warning("%s", text)
            self.line(text)
        self._done, self._total = after.done, total
        self._bar = tqdm(
            total=total,
            initial=after.done,
            unit="it",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            file=sys.stderr,
        )

    @property
    def position(self) -> LogPosition:
        """Now; metrics up to here outlast a power loss.

        Raises:
          UserError: they cannot be written.
        """
        seconds = time.perf_counter() - self._began
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise cannot_write(self._metrics.name, error) from None
        size = os.fstat(self._metrics.fileno()).st_size
        return LogPosition(self._done, seconds, size)

    def metrics(self, kind: str, **values: Any) -> None:
        """Append one JSON line.

        Raises:
          UserError: it cannot be written.
        """
        seconds = round(time.perf_counter() - self._began, 3)
        self._write(
            self._metrics,
            json.dumps({"kind": kind, "seconds": seconds, **values}, allow_nan=False),
        )

    def line(self, text: str) -> None:
        """Append one line to ``log.txt``.

        Raises:
          UserError: it cannot be written.
        """
        self._write(self._text, f"{time.strftime('%H:%M:%S')} {printable(text)}")

    def advance(self, text: str, log_it: bool) -> None:
        """One unit of the total is done; ``text`` goes with the remaining time."""
        self._done += 1
        self._bar.set_description_str(printable(text), refresh=False)
        self._bar.update()
        if log_it:
            spent = time.perf_counter() - self._began
            left = spent / self._done * (self._total - self._done)
            self.line(
                f"{self._done}/{self._total} {text}, {spent:.0f} s spent, about "
                f"{left:.0f} s left"
            )

    def go_back(self, to: LogPosition, stays: Callable[[dict[str, Any]], bool]) -> None:
        """Undo what was done since a moment, and drop its metrics, but for a few.

        Args:
          to: the moment.
          stays: whether a line that was written later is kept, by its content, which is
            empty where that is no JSON object.

        Raises:
          UserError: the file cannot be read or written.
        """
        path = Path(self._metrics.name)
        try:
            content = path.read_bytes()
            before = content[: to.metrics_bytes]
            lines = content[len(before) :].decode(errors="replace").splitlines()
            kept = "".join(f"{line}\n" for line in lines if stays(_record(line)))
            # At once: a kill in between must not lose those that stay.
            write_atomically(path, lambda file: file.write(before + kept.encode()))
            self._metrics.close()
            self._metrics = open_to_append(path, None)
        except OSError as error:
            raise cannot_write(path, error) from None
        self._bar.update(to.done - self._done)
        self._done = to.done

    def drop(self, kind: str, **values: Any) -> None:
        """Drop the metrics of this kind that have these values: they are made again.

        Raises:
          UserError: the file cannot be read or written.
        """
        gone = {"kind": kind, **values}
        to = self.position._replace(metrics_bytes=0)
        self.go_back(to, lambda record: not gone.items() <= record.items())

    def close(self) -> None:
        """Close the files and the bar."""
        self._bar.close()
        for file in (self._metrics, self._text):
            # Every line was flushed when it was written, and failed there if it did.
            with suppress(OSError):
                file.close()

    def _was_cut_back(self) -> bool:
        """Whether a kill cut a rollback short: it is made again, and what it undid.

        Lines may have followed it while the checkpoint after it was being written.
        """
        lines = Path(self._metrics.name).read_bytes().decode(errors="replace")
        return any(_record(line).get("kind") == ROLLBACK for line in lines.split("\n"))

    def _write(self, file: Any, text: str) -> None:
        try:
            file.write(text + "\n")
            file.flush()
        except OSError as error:
            raise cannot_write(file.name, error) from None


def _record(line: str) -> dict[str, Any]:
    """The JSON object in a line; empty where there is none."""
    try:
        content = json.loads(line)
    except (RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
