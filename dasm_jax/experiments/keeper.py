"""Never lose work: checkpoints, where they are found again, rollbacks and signals."""

import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dasm_jax import __version__, hosts, signals
from dasm_jax.budget import SegmentPlan
from dasm_jax.checkpoint import differences, load, read_metadata, remove_all, save
from dasm_jax.dasm import run_dasm
from dasm_jax.device_memory import Need
from dasm_jax.errors import Interrupted, NonFiniteError, UserError
from dasm_jax.evaluate import Accuracy
from dasm_jax.experiments import kept
from dasm_jax.experiments.kept import Kept
from dasm_jax.experiments.memory import check_fits, memory_explained
from dasm_jax.experiments.rollback import MOST_HALVINGS, Rollback
from dasm_jax.files import make_folder, read_record, write_json
from dasm_jax.numbered import Checkpoints
from dasm_jax.problem import Problem
from dasm_jax.progress import Progress, SegmentResult, Snapshot
from dasm_jax.run_log import LogPosition
from dasm_jax.source import RESULTS
from dasm_jax.stored_tree import Damaged
from dasm_jax.workdir import PhaseClock, identity, without_additions

CHECKPOINTS = "checkpoints"
ACCOUNTS = "accounts.json"  # of time and memory, so far

_log = logging.getLogger(__name__)


def discard(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished: nobody needs them any more."""
    with suppress(OSError):
        (folder / CHECKPOINTS / ACCOUNTS).unlink()
    remove_all(folder / CHECKPOINTS)


class Keeper:
    """Runs the segment loop, keeps where it stands, and goes on from there.

    A context: leaving it ends the writing in the background.
    """

    def __init__(
        self,
        problem: Problem,
        plans: list[SegmentPlan],
        folder: Path,
        clock: PhaseClock | None = None,
    ):
        """Find the newest checkpoint under ``folder``, where the settings want it.

        ``clock`` goes on from where it stood when something was kept.

        Raises:
          UserError: it is of another config, version or dataset, there has to be one
            and there is none, or several processes cannot do this (``hosts.check``).
        """
        hosts.check(problem.settings)
        c = problem.settings.checkpoint
        self._problem, self._plans = problem, plans
        self._folder = folder / CHECKPOINTS
        self._identity = {
            "config": identity(problem.settings),
            "version": __version__,
            "data_hash": problem.dataset.content_hash,
            "format": kept.FORMAT,
            "results": RESULTS,
        }
        self._machine = {**kept.machine(problem), **kept.schedule(plans)}
        if c.resume == "never":
            discard(folder)
        self._items = Checkpoints(self._folder, c.keep, careful=c.resume == "must")
        if c.resume == "never" and self._items.any():
            raise UserError(
                f"config.checkpoint.resume='never', and {self._folder} cannot be "
                "removed; remove it, or use another --workdir"
            )
        # Held in memory, for a run of several processes has its files in one of them.
        self._most = c.keep if problem.settings.on_nonfinite == "rollback" else 1
        found = self._items.newest(self._expected, self._restored, self._most)
        self._kept = [*map(kept.as_kept, found[::-1])]  # the oldest one first
        # Whether the last bits may differ, in words; "" where they will not.
        self.moved = ""
        if found:
            self.moved = kept.moved(found[0].metadata["machine"], self._machine)
        if self.moved and hosts.is_first():
            _log.warning("%s", self.moved)
        # Where the logs are continued.
        self.after = self._kept[-1].log if self._kept else None
        if not self._kept and c.resume == "must":
            raise UserError(
                f"config.checkpoint.resume='must', and {self._folder} holds no whole "
                "checkpoint; use 'auto' to start from the beginning"
            )
        self._clock = clock
        if clock is not None and (self._folder / ACCOUNTS).is_file():
            clock.go_on_from(read_record(self._folder / ACCOUNTS))
        self._saved = time.monotonic()
        self._unsaved: Callable[[], Snapshot] | None = None

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *error: Any) -> None:
        self._items.close()

    @property
    def snapshot(self) -> Snapshot:
        """The newest one that is kept."""
        return self._kept[-1].snapshot if self._kept else Snapshot([])

    @property
    def where(self) -> str:
        """Where the snapshot stands, in words."""
        return self._place(self.snapshot)

    def distil(
        self,
        *,
        experts_folder: Path,
        position: Callable[[], LogPosition] = LogPosition,
        on_expert: Callable[[int, int], None] = lambda segment, done: None,
        on_outer: Callable[[Progress], None] = lambda progress: None,
        on_segment: Callable[[list[SegmentResult]], None] = lambda results: None,
        on_rollback: Callable[[Rollback], None] = lambda rollback: None,
        on_need: Callable[[Need], None] = lambda need: None,
    ) -> list[SegmentResult]:
        """Make what is missing of the segments; arguments as of ``run_dasm``.

        Args:
          experts_folder: where expert trajectories are kept.
          position: where the logs stand.
          on_expert: called when experts are ready.
          on_outer: called after an outer iteration, before it is kept.
          on_segment: called when a segment is frozen, before it is kept, with all that
            are.
          on_rollback: called before the run goes on from an earlier moment.
          on_need: called with an estimate of memory, ahead of the first segment and of
            any that needs more.

        Raises:
          Interrupted: by a signal; everything up to the last outer iteration is kept.
          NonFiniteError: see ``run_dasm``; the settings want no rollback, or there were
            too many.
          UserError: a checkpoint cannot be written, or the device is too small.
        """
        settings = self._problem.settings
        needs: list[Need] = []  # the largest one last
        every = 60 * settings.checkpoint.minutes
        if not self._kept:
            self._kept = [Kept(0, Snapshot([]), position(), tried=False)]

        def keep(snapshot: Snapshot) -> None:
            self._keep(snapshot, position())

        def stop_if_asked() -> None:
            asked = hosts.agree(found.signal or 0)
            if not asked:
                return
            if self._unsaved is not None:
                keep(self._unsaved())
            self._items.wait()
            name = signal.Signals(asked).name
            how = f"goes on from {self.where}"
            if not self._kept[-1].number:
                how = "starts from the beginning"
            raise Interrupted(asked, f"stopped by {name}; the same command {how}")

        def check_need(need: Need) -> None:
            if not needs or sum(need[:2]) > sum(needs[-1][:2]):
                needs.append(need)
                on_need(need)
                check_fits(settings, need)

        def after_expert(segment: int, done: int) -> None:
            on_expert(segment, done)
            stop_if_asked()

        def after_outer(progress: Progress) -> None:
            on_outer(progress)
            self._unsaved = progress.snapshot
            last = progress.outer == progress.plan.outer_iterations
            due = self._items.failed or time.monotonic() - self._saved >= every
            # All processes at once, for they have to go back to the same moments.
            if not last and hosts.agree(int(due)):
                keep(progress.snapshot())
            stop_if_asked()

        def after_segment(result: SegmentResult) -> None:
            finished = [*self.snapshot.finished, result]
            on_segment(finished)
            keep(Snapshot(finished, None, self.snapshot.halvings))
            stop_if_asked()

        last = lambda: needs[-1] if needs else None  # noqa: E731
        with signals.noted() as found, memory_explained(settings, last):
            while True:
                try:
                    results = run_dasm(
                        self._problem,
                        self._plans,
                        resume=kept.copied(self.snapshot),
                        experts_folder=experts_folder,
                        on_network=stop_if_asked,
                        on_expert=after_expert,
                        on_outer=after_outer,
                        on_need=check_need,
                        on_segment=after_segment,
                    )
                    break
                except NonFiniteError as error:
                    rollback, undone = self._back_from(error)
                    on_rollback(rollback)
                    snapshot = self._kept.pop().snapshot
                    snapshot = snapshot._replace(halvings=rollback.halvings)
                    self._keep(snapshot, position(), undone)
            self._items.wait()
            stop_if_asked()
        signals.raise_again(found)
        return results

    def _back_from(self, error: NonFiniteError) -> tuple[Rollback, list[int]]:
        """Make the checkpoint to go back to the newest one.

        That is the newest one, or where it was tried before the one ahead of it.

        Returns:
          what there is to say, and the items that are of no use any more.

        Raises:
          NonFiniteError: the error, where the run has to stop.
        """
        halvings = self.snapshot.halvings + 1
        on_nonfinite = self._problem.settings.on_nonfinite
        if on_nonfinite == "stop" or halvings > MOST_HALVINGS:
            raise error
        undone = [self._kept[-1].number]
        if self._kept[-1].tried and len(self._kept) > 1:
            self._kept.pop()
            undone.append(self._kept[-1].number)
        to = self._kept[-1]
        rollback = Rollback(error.trouble, self._place(to.snapshot), halvings, to.log)
        if hosts.is_first():
            _log.warning("%s", rollback)
        return rollback, [number for number in undone if number]

    def _keep(
        self, snapshot: Snapshot, log: LogPosition, instead_of: list[int] | None = None
    ) -> None:
        """Begin to write a checkpoint, from which the run can go on."""
        arrays, metadata = kept.to_store(snapshot, log, self._identity, self._machine)
        self._account()
        number = self._items.save(arrays, metadata, instead_of)
        newest = Kept(number, snapshot, log, tried=instead_of is not None)
        before = [each for each in self._kept if each.number]
        self._kept = [*before, newest][-self._most :]
        self._saved, self._unsaved = time.monotonic(), None

    def once(
        self, name: str, like: Any, make: Callable[[], Any], made_from: str = ""
    ) -> Any:
        """A tree of arrays that is made once: read where it is stored, else stored.

        Args:
          name: of the item.
          like: its structure, shapes and dtypes.
          make: makes it; ``None`` is not stored.
          made_from: tells apart what it may be made from, beside the run.

        Raises:
          UserError: it cannot be written, or whatever ``make`` raises.
        """
        metadata = {**self._identity, "made_from": made_from}
        try:
            if read_metadata(self._folder, name) == metadata:
                return load(self._folder, name, like)
        except Damaged:
            _log.warning("%s is damaged; it is made again", self._folder / name)
        tree = make()
        if tree is not None:
            save(self._folder, name, tree, metadata)
            self._account()
        return tree

    def _account(self) -> None:
        """Write what was spent on what is kept."""
        if self._clock is None:
            return
        make_folder(self._folder)
        write_json(self._folder / ACCOUNTS, self._clock.record())

    def accuracy(
        self, name: str, evaluate: Callable[[], Accuracy], made_from: str = ""
    ) -> Accuracy:
        """Evaluate once, by the settings' number of networks, with one look."""
        s, test = self._problem.settings.evaluate, self._problem.dataset.test
        numbers = np.empty(s.networks)
        like = Accuracy(numbers, numbers, np.empty(len(test.labels), np.float32))  # type: ignore[arg-type]

        def make() -> Accuracy:
            networks, best, correct = evaluate()
            return Accuracy(np.array(networks), np.array(best), correct)  # type: ignore[arg-type]

        networks, best, correct = self.once(name, like, make, made_from)
        return Accuracy(tuple(networks.tolist()), tuple(best.tolist()), correct)

    def _place(self, snapshot: Snapshot) -> str:
        finished, active, _ = snapshot
        if active is not None:
            name = self._plans[len(finished)].name
            return f"{name}, outer iteration {active.outer}"
        if not finished:
            return "the beginning"
        return f"the end of {self._plans[len(finished) - 1].name}"

    def _expected(self, metadata: dict[str, Any]) -> list[Any]:
        theirs = metadata.get("identity")
        if not isinstance(theirs, dict):
            raise Damaged(self._folder)
        theirs = {**theirs, "config": without_additions(theirs.get("config"))}
        if names := differences(self._identity, theirs):
            raise UserError(
                f"{self._folder} holds checkpoints of another run; they differ in "
                f"{', '.join(names)}; use another --workdir, or start anew with "
                "config.checkpoint.resume='never'"
            )
        with kept.of_this_code(metadata, self._machine, self._folder):
            return kept.expected(metadata, self._folder)

    def _restored(
        self, arrays: list[np.ndarray], metadata: dict[str, Any]
    ) -> kept.Found:
        with kept.of_this_code(metadata, self._machine, self._folder):
            return kept.restored(
                self._problem, self._plans, arrays, metadata, self._folder
            )
