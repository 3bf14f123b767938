"""Tables and figures of an analysis, made of its rows alone."""

import math
import statistics
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dasm_jax.bootstrap import Difference, paired_difference
from dasm_jax.experiments.analysis_rows import Row
from dasm_jax.experiments.document import as_text
from dasm_jax.experiments.study_table import verdict
from dasm_jax.schedule import DECILES

EASIER = DECILES // 2  # deciles of the easier half
GRADIENT = "gradient_norm_share_by_decile.trained"
# Head of a column, what it shows, and how it is written.
Column = tuple[str, Callable[["Segment"], list[float]], str]


class Segment(NamedTuple):
    """A segment of one name, over all seeds."""

    run: str
    segment: int
    ipc: int  # of all segments up to this one
    seeds: list[dict[str, tuple[float, ...]]]  # quantities by name

    @property
    def label(self) -> str:
        """The name of its row."""
        return f"{self.run} {self.segment}"

    def scalar(self, quantity: str) -> list[float]:
        """Of every seed."""
        return [seed[quantity][0] for seed in self.seeds]

    def deciles(self, quantity: str) -> np.ndarray:
        """f[S, 10]."""
        return np.array([seed[quantity] for seed in self.seeds])

    def gradient_in_pool(self) -> np.ndarray:
        """Share of the gradient norm of its pool that each decile carries, f[S, 10]."""
        held = self.deciles(GRADIENT) * self.deciles("pool_share_by_decile")
        return held / held.sum(axis=1, keepdims=True)


def segments_of(rows: list[Row]) -> list[Segment]:
    """Rows of segments put together, in order of appearance."""
    groups: dict[tuple[str, int], dict[int, dict[str, tuple[float, ...]]]] = {}
    sizes = {}
    for row in rows:
        if row.segment:
            place = row.run, row.segment
            groups.setdefault(place, {}).setdefault(row.seed, {})[row.quantity] = (
                row.values
            )
            sizes[place] = row.ipc
    return [
        Segment(*place, sizes[place], [group[seed] for seed in sorted(group)])
        for place, group in groups.items()
    ]


def _easier(shares: np.ndarray) -> list[float]:
    return (100 * shares[:, :EASIER].sum(axis=1)).tolist()


COLUMNS: tuple[Column, ...] = (
    (
        "gradient, fresh",
        lambda s: _easier(s.deciles("gradient_norm_share_by_decile.random")),
        ".1f",
    ),
    ("gradient, matched", lambda s: _easier(s.deciles(GRADIENT)), ".1f"),
    ("in the pool", lambda s: _easier(s.gradient_in_pool()), ".1f"),
    ("set", lambda s: _easier(s.deciles("set_share_by_decile")), ".1f"),
    ("pool CE", lambda s: s.scalar("pool_difficulty_mean"), ".2f"),
    ("set CE", lambda s: s.scalar("set_difficulty_mean"), ".2f"),
    ("diversity", lambda s: s.scalar("diversity"), ".2f"),
    ("union", lambda s: s.scalar("diversity_of_union"), ".2f"),
)
READING = (
    "A row is a segment. In % of the whole, 50 is even: what the easier half of a "
    "class carries of the sum of its gradient norms, in a fresh network and in the one "
    "matched on last, over the class and over the pool alone; and how many of the "
    "segment's own images are as easy as that half. CE: mean cross-entropy of pool and "
    "images under networks trained on all real images. Diversity: mean distance of two "
    "images of a class, of the segment and of all so far."
)


def _text(values: list[float], form: str) -> str:
    if any(math.isnan(value) for value in values):
        return "–"
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def _head(rows: list[Row]) -> str:
    def every(name: str) -> str:
        return ", ".join(sorted({str(getattr(row, name)) for row in rows}))

    data, network, ruler, split = rows[0].setup.split("; ")
    return (
        f"{data}; {network}; difficulty by {ruler} on all real images; {split} split. "
        f"Mean ± std over seeds ({every('seed')}). {every('date')}, {every('device')}, "
        f"commit {every('commit')}."
    )


def _cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["segment", *(head for head, _, _ in COLUMNS)]
    body = [
        [segment.label, *(_text(value(segment), form) for _, value, form in COLUMNS)]
        for segment in segments_of(rows)
    ]
    return heads, body


def accuracies(rows: list[Row], run: str) -> dict[int, np.ndarray]:
    """Test accuracy of the largest set of a run by decile, f[10] of every seed."""
    found = [r for r in rows if r.run == run and r.quantity == "set.accuracy_by_decile"]
    largest = max((row.ipc for row in found), default=0)
    return {row.seed: np.array(row.values) for row in found if row.ipc == largest}


def gains(rows: list[Row]) -> dict[str, list[Difference]]:
    """Accuracy of each run minus that of the first one, by decile; paired by seed."""
    first, *others = dict.fromkeys(row.run for row in rows)
    base = accuracies(rows, first)
    found = {}
    for run in others:
        own = accuracies(rows, run)
        seeds = sorted({*own} & {*base})
        if seeds:
            apart = np.stack([own[seed] - base[seed] for seed in seeds])
            found[f"{run} − {first}"] = [
                paired_difference(apart[:, [decile]]) for decile in range(DECILES)
            ]
    return found


def render_markdown(rows: list[Row]) -> str:
    """The tables for a document."""
    heads, body = _cells(rows)
    lines = textwrap.wrap(as_text(_head(rows)), 80)
    lines += ["", *textwrap.wrap(READING, 80), ""]
    lines += [_row(heads), _row(["---"] * len(heads))]
    lines += [_row([as_text(cells[0]), *cells[1:]]) for cells in body]
    found = gains(rows)
    if found:
        names = [f"decile {decile + 1}" for decile in range(DECILES)]
        lines += ["", _row(["accuracy by difficulty", *map(as_text, found)])]
        lines += [_row(["---"] * (1 + len(found)))]
        for number, name in enumerate(names):
            lines.append(
                _row([name, *(verdict(each[number]) for each in found.values())])
            )
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def render_text(rows: list[Row]) -> str:
    """The main figures for a terminal of 80 columns."""
    heads, body = _cells(rows)
    lines = [*textwrap.wrap(_head(rows), 80), "", *textwrap.wrap(READING, 80)]
    width = max(map(len, heads))
    for cells in body:
        lines += ["", cells[0]]
        for head, text in zip(heads[1:], cells[1:]):
            lines.append(f"  {head:<{width}}  {text}")
    for name, each in gains(rows).items():
        lines += ["", f"accuracy by difficulty of the test images, {name}"]
        for number, found in enumerate(each, start=1):
            lines.append(f"  decile {number:<2}  {verdict(found)}")
    return "\n".join(lines)


Lines = dict[str, list[tuple[float, float]]]


def bias_panels(rows: list[Row]) -> dict[str, Lines]:
    """What each decile has of pools, gradients and sets; for ``plots.line_panels``."""
    measured = segments_of(rows)

    def by_decile(shares: Callable[[Segment], np.ndarray]) -> Lines:
        return {
            segment.label: [
                (decile + 1, 100 * value)
                for decile, value in enumerate(shares(segment).mean(axis=0))
                if not math.isnan(value)
            ]
            for segment in measured
        }

    return {
        "held by the pool": by_decile(lambda s: s.deciles("pool_share_by_decile")),
        "gradient norm, matched network": by_decile(lambda s: s.deciles(GRADIENT)),
        "images of the segment": by_decile(lambda s: s.deciles("set_share_by_decile")),
    }


def diversity_lines(rows: list[Row]) -> Lines:
    """Diversity over images per class; for ``plots.line_curves``."""
    lines: Lines = {}
    for segment in segments_of(rows):
        for name, quantity in (
            (segment.run, "diversity_of_union"),
            (f"{segment.run}, segments alone", "diversity"),
        ):
            value = statistics.mean(segment.scalar(quantity))
            if segment.ipc and not math.isnan(value):
                lines.setdefault(name, []).append((segment.ipc, value))
    return lines


def gain_panels(
    rows: list[Row],
) -> dict[str, dict[str, tuple[float, float | None, float | None]]]:
    """Gains by decile; for ``plots.intervals``."""
    return {
        name: {f"decile {i}": found[:3] for i, found in enumerate(each, start=1)}
        for name, each in gains(rows).items()
    }
