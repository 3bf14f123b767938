"""Going back to a checkpoint, and what is on record of it."""

from typing import Any, NamedTuple

from dasm_jax.run_log import ROLLBACK, LogPosition, RunLog

MOST_HALVINGS = 10


class Rollback(NamedTuple):
    """The run goes back, because something was no finite number."""

    trouble: str  # what was not finite, and where
    where: str  # what the run goes on from, in words
    halvings: int  # of the image rates from there on, in all
    log: LogPosition  # where the logs stood there

    def __str__(self) -> str:
        times = "once" if self.halvings == 1 else f"{self.halvings} times"
        return (
            f"{self.trouble}; goes back to {self.where}, with the image rate halved "
            f"{times} from there on"
        )

    @property
    def record(self) -> dict[str, Any]:
        """For ``metrics.jsonl``."""
        return {
            "trouble": self.trouble,
            "back_to": self.where,
            "halvings": self.halvings,
        }


def log_rollback(log: RunLog, rollback: Rollback, **more: Any) -> None:
    """Put it on record; ``more`` goes with its metrics.

    Raises:
      UserError: it cannot be written.
    """
    # It is made again after a kill that came before there was a checkpoint of it.
    log.drop(ROLLBACK, halvings=rollback.halvings, **more)
    log.metrics(ROLLBACK, **rollback.record, **more)
    log.line(str(rollback))


def keep_rollbacks(log: RunLog) -> None:
    """Drop the metrics of an earlier process, but for rollbacks.

    For where everything is written again, and sets go on at the rates that those had
    halved.

    Raises:
      UserError: the files cannot be written.
    """
    start = LogPosition(metrics_bytes=0)
    log.go_back(start, lambda record: record.get("kind") == ROLLBACK)


def undo(log: RunLog, rollback: Rollback) -> None:
    """Cut the logs of a run back to where it goes on, and put that on record.

    Rollbacks before this one stay on record.

    Raises:
      UserError: the files cannot be written.
    """

    def stays(record: dict[str, Any]) -> bool:
        halvings = record.get("halvings") if record.get("kind") == ROLLBACK else None
        return type(halvings) is int and halvings < rollback.halvings

    log.go_back(rollback.log, stays)
    log_rollback(log, rollback)
