"""Never lose work: checkpoints of a run, where they are found again, and signals."""

import logging
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dasm_jax import __version__, hosts, signals
from dasm_jax.budget import SegmentPlan
from dasm_jax.checkpoint import (
    Checkpoints,
    Damaged,
    differences,
    load,
    read_metadata,
    save,
)
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import Interrupted, UserError
from dasm_jax.evaluate import Accuracy
from dasm_jax.problem import Problem
from dasm_jax.progress import Progress, SegmentResult, Snapshot
from dasm_jax.snapshots import arrays_like, from_arrays, to_arrays
from dasm_jax.workdir import LogPosition, identity

CHECKPOINTS = "checkpoints"

_log = logging.getLogger(__name__)


def discard(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished: nobody needs them any more."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


class Keeper:
    """Runs the segment loop, keeps where it stands, and goes on from there.

    A context: leaving it ends the writing in the background.
    """

    def __init__(self, problem: Problem, plans: list[SegmentPlan], folder: Path):
        """Find the newest checkpoint under ``folder``, where the settings want it.

        Raises:
          UserError: it is of another config, version or dataset, or there has to be
            one and there is none.
        """
        c = problem.settings.checkpoint
        self._problem, self._plans = problem, plans
        self._folder = folder / CHECKPOINTS
        self._identity = {
            "config": identity(problem.settings),
            "version": __version__,
            "data_hash": problem.dataset.content_hash,
        }
        if c.resume == "never":
            discard(folder)
        self.snapshot = Snapshot([])
        self.after: LogPosition | None = None  # where the logs are continued
        self._items = Checkpoints(self._folder, c.keep)
        found = self._items.newest(self._expected)
        if found is not None:
            arrays, metadata, _ = found
            self.snapshot = from_arrays(problem, plans, arrays, metadata["layout"])
            self.after = LogPosition(**metadata["log"])
        elif c.resume == "must":
            raise UserError(
                f"config.checkpoint.resume='must', and {self._folder} holds no whole "
                "checkpoint; use 'auto' to start from the beginning"
            )
        self._saved = time.monotonic()
        self._unsaved: Callable[[], Snapshot] | None = None

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *error: Any) -> None:
        self._items.close()

    @property
    def where(self) -> str:
        """Where the snapshot stands, in words."""
        finished, active = self.snapshot
        if active is None:
            return f"the end of {self._plans[len(finished) - 1].name}"
        name = self._plans[len(finished)].name
        return f"{name}, outer iteration {active.outer}"

    def distil(
        self,
        *,
        experts_folder: Path,
        position: Callable[[], LogPosition] = LogPosition,
        on_expert: Callable[[int, int], None] = lambda segment, done: None,
        on_outer: Callable[[Progress], None] = lambda progress: None,
        on_segment: Callable[[SegmentResult], None] = lambda result: None,
    ) -> list[SegmentResult]:
        """Make what is missing of the segments; arguments as of ``run_dasm``.

        Args:
          experts_folder: where expert trajectories are kept.
          position: where the logs stand.
          on_expert: called when experts are ready.
          on_outer: called after an outer iteration, before it is kept.
          on_segment: called when a segment is frozen, before it is kept.

        Raises:
          Interrupted: by a signal; everything up to the last outer iteration is kept.
          NonFiniteError: see ``run_dasm``.
          UserError: a checkpoint cannot be written.
        """
        finished = list(self.snapshot.finished)
        every = 60 * self._problem.settings.checkpoint.minutes

        def keep(snapshot: Snapshot) -> None:
            self.snapshot, self._unsaved = snapshot, None
            self._saved = time.monotonic()
            arrays, layout = to_arrays(snapshot)
            log = position()._asdict()
            metadata = {"identity": self._identity, "layout": layout, "log": log}
            self._items.save(arrays, metadata)

        def stop_if_asked() -> None:
            asked = hosts.agree(found.signal or 0)
            if not asked:
                return
            if self._unsaved is not None:
                keep(self._unsaved())
            self._items.wait()
            name = signal.Signals(asked).name
            raise Interrupted(
                asked,
                f"stopped by {name}; the same command goes on from {self.where}",
            )

        def after_expert(segment: int, done: int) -> None:
            on_expert(segment, done)
            stop_if_asked()

        def after_outer(progress: Progress) -> None:
            on_outer(progress)
            self._unsaved = progress.snapshot
            last = progress.outer == progress.plan.outer_iterations
            if not last and time.monotonic() - self._saved >= every:
                keep(progress.snapshot())
            stop_if_asked()

        def after_segment(result: SegmentResult) -> None:
            finished.append(result)
            on_segment(result)
            keep(Snapshot(list(finished)))
            stop_if_asked()

        with signals.noted() as found:
            results = run_dasm(
                self._problem,
                self._plans,
                resume=self.snapshot,
                experts_folder=experts_folder,
                on_network=stop_if_asked,
                on_expert=after_expert,
                on_outer=after_outer,
                on_segment=after_segment,
            )
            self._items.wait()
            stop_if_asked()
        return results

    def once(self, name: str, like: Any, make: Callable[[], Any]) -> Any:
        """A tree of arrays that is made once: read where it is stored, else stored.

        Args:
          name: of the item.
          like: its structure, shapes and dtypes.
          make: makes it; ``None`` is not stored.

        Raises:
          UserError: it cannot be written, or whatever ``make`` raises.
        """
        try:
            if read_metadata(self._folder, name) == self._identity:
                return load(self._folder, name, like)
        except Damaged:
            _log.warning("%s is damaged; it is made again", self._folder / name)
        tree = make()
        if tree is not None:
            save(self._folder, name, tree, self._identity)
        return tree

    def accuracy(self, name: str, evaluate: Callable[[], Accuracy]) -> Accuracy:
        """Evaluate once, by the settings' number of networks, with one look."""
        s, test = self._problem.settings.evaluate, self._problem.dataset.test
        numbers = np.empty(s.networks)
        like = Accuracy(numbers, numbers, np.empty(len(test.labels), np.float32))  # type: ignore[arg-type]

        def make() -> Accuracy:
            networks, best, correct = evaluate()
            return Accuracy(np.array(networks), np.array(best), correct)  # type: ignore[arg-type]

        networks, best, correct = self.once(name, like, make)
        return Accuracy(tuple(networks.tolist()), tuple(best.tolist()), correct)

    def _expected(self, metadata: dict[str, Any]) -> list[Any]:
        names = differences(self._identity, metadata["identity"])
        if names:
            raise UserError(
                f"{self._folder} holds checkpoints of another run; they differ in "
                f"{', '.join(names)}; use another --workdir, or start anew with "
                "config.checkpoint.resume='never'"
            )
        return arrays_like(metadata["layout"])
