"""The rows of a study: one per cell and network, as CSV that can be committed.

Tables and figures are made of these alone.
"""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dasm_jax.errors import UserError
from dasm_jax.experiments.cells import Cell, Result
from dasm_jax.records import is_amount

SETUP = "data; network; evaluation; split; digest"


class Row(NamedTuple):
    """An evaluation network of a cell, or a cell that failed."""

    setup: str  # as SETUP says
    arm: str
    changes: str  # of the settings, field=value …
    ipc: int  # 0 for the full set
    made_as: int  # ipc of the run that it is a prefix of, its own where it is whole
    seed: int
    network: int = 0  # from 1; 0 of a cell that failed
    accuracy: float = 0.0  # in [0, 1]
    flops: float = 0.0  # counted matching FLOPs of the set
    seconds: float = 0.0  # of making the set, scoring included, compiling left out
    commit: str = ""
    date: str = ""
    device: str = ""
    failure: str = ""  # why there is no accuracy; else empty

    @property
    def place(self) -> tuple[str, int, int]:
        """The row of the table it belongs to."""
        return self.arm, self.ipc, self.made_as


def rows_of(
    results: dict[Cell, Result],
    setup: str,
    changes: Callable[[str], str],
) -> list[Row]:
    """Rows of all cells.

    Args:
      results: of the cells.
      setup: what they have in common.
      changes: of the arm of a name.
    """
    rows = []
    for cell, result in results.items():
        of_cell = Row(
            setup=setup,
            arm=cell.method,
            changes=changes(cell.method),
            ipc=cell.ipc,
            made_as=cell.made_as,
            seed=cell.seed,
        )
        if "failure" in result:
            reason = " ".join(result["failure"].split())
            rows.append(of_cell._replace(failure=reason))
            continue
        made = of_cell._replace(
            flops=result["matching_flops"],
            seconds=result["seconds_making"],
            **{name: result[name] for name in ("commit", "date", "device")},
        )
        for number, accuracy in enumerate(result["networks"], start=1):
            rows.append(made._replace(network=number, accuracy=accuracy))
    return rows


def to_csv(rows: Iterable[Row]) -> bytes:
    """One line per row; seven digits tell any two accuracies apart."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow(
            f"{value:.7g}" if isinstance(value, float) else value for value in row
        )
    return text.getvalue().encode()


def read(paths: list[Path]) -> list[Row]:
    """Rows of one or more files; of a row that several hold the first one counts.

    Raises:
      UserError: a file cannot be read, or is of another setup, or calls other changes
        by the same name; says which.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    arms: dict[str, str] = {}
    setup: str | None = None
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"config.study.rows: cannot read {path}: {error.strerror}"
            ) from None
        for row in from_csv(content, str(path)):
            setup = row.setup if setup is None else setup
            if row.setup != setup:
                raise UserError(
                    f"{path} is of {row.setup!r}, and rows before it are of {setup!r}; "
                    "only what was evaluated alike can stand in one table"
                )
            if arms.setdefault(row.arm, row.changes) != row.changes:
                raise UserError(
                    f"{path}: arm {row.arm!r} has the changes {row.changes!r}, and "
                    f"before it {arms[row.arm]!r}; give them two names"
                )
            rows.setdefault((*row.place, row.seed, row.network), row)
    if not rows:
        raise UserError("the files of config.study.rows hold no rows")
    # What failed in one file, and was made in another, is there.
    made = {(*row.place, row.seed) for row in rows.values() if not row.failure}
    return [r for r in rows.values() if not r.failure or (*r.place, r.seed) not in made]


def changes_of(rows: Iterable[Row]) -> dict[str, str]:
    """What every arm changes; by the name of another arm where it changes more.

    That is the one with most of the same changes, if there are three or more of them.
    """
    changes = {row.arm: row.changes.split() for row in rows if row.changes}
    said = {}
    for arm, own in changes.items():
        within = {
            other: each
            for other, each in changes.items()
            if len(each) >= 3 and set(each) < set(own)
        }
        base = max(within, key=lambda other: len(within[other]), default=None)
        more = [each for each in own if base is None or each not in within[base]]
        said[arm] = " ".join(more if base is None else [f"{base} with", *more])
    return said


def from_csv(content: bytes, name: str) -> list[Row]:
    """What ``to_csv`` wrote.

    Raises:
      UserError: something else did; names ``name`` and the line.
    """
    try:
        lines = content.decode().splitlines()
    except ValueError:
        lines = []
    if lines[:1] != [",".join(Row._fields)]:
        raise UserError(
            f"{name} is no cells.csv of a study: its first line must name the columns"
        )
    rows: list[Row] = []
    try:
        for values in csv.reader(lines[1:]):
            rows.append(_checked(values))
    except (TypeError, ValueError, OverflowError, csv.Error):
        raise UserError(
            f"line {len(rows) + 2} of {name} is damaged; remove it, or the file"
        ) from None
    return rows


def _checked(values: list[str]) -> Row:
    typed: list[Any] = []
    for (name, kind), text in zip(Row.__annotations__.items(), values, strict=True):
        value = kind(text)
        if kind is not str and not is_amount(value):
            raise ValueError(name)
        typed.append(value)
    row = Row(*typed)
    if len(row.setup.split("; ")) != len(SETUP.split("; ")):
        raise ValueError("setup")
    if row.accuracy > 1 or bool(row.failure) != (row.network == 0):
        raise ValueError("accuracy")
    return row
