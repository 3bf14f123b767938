"""Tables and figures of an analysis, made of its rows alone."""

import math
import statistics
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dasm_jax.bootstrap import Difference, paired_difference
from dasm_jax.experiments.analysis_rows import Row
from dasm_jax.experiments.document import as_text
from dasm_jax.experiments.study_table import NOT_SEEN, verdict
from dasm_jax.schedule import DECILES

EASIER = DECILES // 2  # deciles of the easier half
POOL = "pool_share_by_decile"
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
        """The name of its row; the number first, for long names are cut."""
        return f"{self.segment} {self.run}"

    def scalar(self, quantity: str) -> list[float]:
        """Of every seed."""
        return [seed[quantity][0] for seed in self.seeds]

    def deciles(self, quantity: str) -> np.ndarray:
        """f[S, 10]."""
        return np.array([seed[quantity] for seed in self.seeds])

    def pool(self) -> np.ndarray:
        """Share of the pool's images that is in each decile, f[S, 10]."""
        return _normalized(self.deciles(POOL))

    def gradient_in_pool(self) -> np.ndarray:
        """Share of its gradient norm that each decile carries, f[S, 10].

        Estimated, as if what the pool holds of a decile had that decile's mean norm.
        """
        return _normalized(self.deciles(GRADIENT) * self.deciles(POOL))


def _normalized(shares: np.ndarray) -> np.ndarray:
    total = shares.sum(axis=1, keepdims=True)
    return np.divide(shares, total, where=total > 0, out=np.full_like(shares, np.nan))


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
    ("pool", lambda s: _easier(s.pool()), ".1f"),
    ("gradient in pool", lambda s: _easier(s.gradient_in_pool()), ".1f"),
    ("set", lambda s: _easier(s.deciles("set_share_by_decile")), ".1f"),
    ("pool CE", lambda s: s.scalar("pool_difficulty_mean"), ".2f"),
    ("set CE", lambda s: s.scalar("set_difficulty_mean"), ".2f"),
    ("diversity", lambda s: s.scalar("diversity"), ".2f"),
    ("union", lambda s: s.scalar("diversity_of_union"), ".2f"),
    ("random", lambda s: s.scalar("diversity_of_random"), ".2f"),
)
READING = (
    "A row is a segment. In %, what falls to the easier half of a class: of the sum of "
    "gradient norms, in a fresh network and in the one matched on last (50 would be "
    "even); of the images of the pool, and of its gradient norm by the shares of its "
    "deciles (equal to the pool's would be even); of the segment's own images. CE: "
    "mean cross-entropy of pool and images under networks trained on all real images. "
    "Diversity: mean distance of two images of a class, of the segment, of all so far, "
    "and of as many random real images as the segment has. These networks were trained "
    "on the real images and never saw the others."
)


def _text(values: list[float], form: str) -> str:
    if any(math.isnan(value) for value in values):
        return "–"
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def _head(rows: list[Row]) -> str:
    def every(name: str) -> str:
        return ", ".join(map(str, sorted({getattr(row, name) for row in rows})))

    setup = rows[0].setup
    return (
        f"{setup.dataset}; {setup.network}; difficulty by {setup.ruler} on all "
        f"real images; {setup.split} split. Mean ± std over seeds ({every('seed')}). "
        f"{every('date')}, {every('device')}, commit {every('commit')}."
    )


def _cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["segment", *(head for head, _, _ in COLUMNS)]
    body = [
        [
            segment.label + _fewer(len(segment.seeds), rows),
            *(_text(value(segment), form) for _, value, form in COLUMNS),
        ]
        for segment in segments_of(rows)
    ]
    return heads, body


def _fewer(seeds: int, rows: list[Row]) -> str:
    """The number of seeds, where it is not that of the analysis."""
    return "" if seeds == len({row.seed for row in rows}) else f" ({seeds} seeds)"


class Gain(NamedTuple):
    """Of one run over the first one, by difficulty of the images it is tested on."""

    run: str
    first: str
    ipc: int  # of both sets
    seeds: int
    overall: Difference
    deciles: list[Difference | None]  # None: undefined

    @property
    def rows(self) -> dict[str, Difference | None]:
        """By the name of the row."""
        return {f"decile {i}": found for i, found in enumerate(self.deciles, 1)} | {
            "all images": self.overall
        }


def gains(rows: list[Row]) -> list[Gain]:
    """Accuracy of each run minus that of the first one, by decile; paired by seed.

    At the largest IPC that both have; of runs that have none in common there is none.
    """
    first, *others = dict.fromkeys(row.run for row in rows)
    found = []
    for run in others:
        own, base = _accuracies(rows, run), _accuracies(rows, first)
        shared = {*own} & {*base}
        if not shared:
            continue
        ipc = max(ipc for ipc, _ in shared)
        seeds = sorted(seed for size, seed in shared if size == ipc)
        apart = np.stack([own[ipc, seed] - base[ipc, seed] for seed in seeds])
        overall, *deciles = (
            None if np.isnan(column).any() else paired_difference(column[:, None])
            for column in apart.T
        )
        assert overall is not None, "an accuracy is a number"
        found.append(Gain(run, first, ipc, len(seeds), overall, deciles))
    return found


def _accuracies(rows: list[Row], run: str) -> dict[tuple[int, int], np.ndarray]:
    """Accuracy of its sets, of all images and by decile f[11], by ipc and seed."""
    found: dict[tuple[int, int], dict[str, tuple[float, ...]]] = {}
    for row in rows:
        if row.run == run and not row.segment:
            found.setdefault((row.ipc, row.seed), {})[row.quantity] = row.values
    return {
        place: np.array([*values["accuracy"], *values["accuracy_by_decile"]])
        for place, values in found.items()
    }


def _gain_text(found: Difference | None) -> str:
    return "–" if found is None else verdict(found)


def _gain_label(gain: Gain, rows: list[Row]) -> str:
    few = _fewer(gain.seeds, rows)
    return f"{gain.run} − {gain.first}, IPC {gain.ipc}{few}"


def _gain_reading(rows: list[Row], count: int) -> str:
    return (
        f"Accuracy on {rows[0].split} images by their difficulty, decile 1 the "
        "easiest: points over the first run, with a 95 % interval paired by seed; "
        f"'{NOT_SEEN}' where that holds zero. {11 * count} intervals are as many "
        "chances to see what is not there."
    )


def render_markdown(rows: list[Row]) -> str:
    """The tables for a document."""
    heads, body = _cells(rows)
    lines = textwrap.wrap(as_text(_head(rows)), 80)
    lines += ["", *textwrap.wrap(READING, 80), ""]
    lines += [_row(heads), _row(["---"] * len(heads))]
    lines += [_row([as_text(cells[0]), *cells[1:]]) for cells in body]
    if found := gains(rows):
        heads = ["", *(as_text(_gain_label(gain, rows)) for gain in found)]
        lines += ["", *textwrap.wrap(_gain_reading(rows, len(found)), 80)]
        lines += ["", _row(heads), _row(["---"] * len(heads))]
        for name in found[0].rows:
            lines.append(_row([name, *(_gain_text(gain.rows[name]) for gain in found)]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def render_text(rows: list[Row]) -> str:
    """The main figures for a terminal of 80 columns."""
    heads, body = _cells(rows)
    lines = [*textwrap.wrap(_head(rows), 80), "", *textwrap.wrap(READING, 80)]
    width = max(map(len, heads))
    for cells in body:
        lines += ["", *textwrap.wrap(cells[0], 80)]
        for head, text in zip(heads[1:], cells[1:]):
            lines.append(f"  {head:<{width}}  {text}")
    if found := gains(rows):
        lines += ["", *textwrap.wrap(_gain_reading(rows, len(found)), 80)]
    for gain in found:
        lines += ["", *textwrap.wrap(_gain_label(gain, rows), 80)]
        for name, each in gain.rows.items():
            lines.append(f"  {name:<10}  {_gain_text(each)}")
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
        "% held by the pool": by_decile(lambda s: s.deciles(POOL)),
        "% of the gradient norm": by_decile(lambda s: s.deciles(GRADIENT)),
        "% of the segment’s images": by_decile(
            lambda s: s.deciles("set_share_by_decile")
        ),
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
        _gain_label(gain, rows): {
            name: each[:3] for name, each in gain.rows.items() if each is not None
        }
        for gain in gains(rows)
    }


def summary_of(rows: list[Row]) -> dict[str, Any]:
    """What the tables round, as plain JSON."""
    return {
        **rows[0].setup._asdict(),
        "seeds": sorted({row.seed for row in rows}),
        "segments": [
            {"segment": segment.label, "ipc": segment.ipc}
            | {
                head: [None if math.isnan(v) else v for v in value(segment)]
                for head, value, _ in COLUMNS
            }
            for segment in segments_of(rows)
        ],
        "gains": [
            {"run": gain.run, "first": gain.first, "ipc": gain.ipc, "seeds": gain.seeds}
            | {name: each and each._asdict() for name, each in gain.rows.items()}
            for gain in gains(rows)
        ],
    }
