"""How a comparison of matchers is printed."""

import statistics
import textwrap
from typing import Any, NamedTuple

from dasm_jax.experiments.common import percent
from dasm_jax.experiments.document import as_text
from dasm_jax.schema import Settings


class Cell(NamedTuple):
    """One run of the table."""

    row: str  # of the table
    column: str  # "one segment", "DASM" or "" for rows that are neither
    ipc: int
    seed: int
    experiment: str
    changes: tuple[tuple[str, Any], ...]

    @property
    def folder(self) -> str:
        """Name of its workdir."""
        parts = (self.row, self.column, f"ipc{self.ipc}", f"seed{self.seed}")
        return "_".join(part.lower().replace(" ", "-") for part in parts if part)


class Entry(NamedTuple):
    """All seeds of one cell of the printed table."""

    mean: float
    std: float | None  # over seeds; with one seed over networks
    seconds: float
    peak_bytes: float


def _entry(results: list[dict[str, Any]], prefix: str = "") -> Entry | None:
    good = [result for result in results if "failure" not in result]
    if not good or len(good) < len(results):
        return None
    means = [result[f"{prefix}mean"] for result in good]
    std = statistics.stdev(means) if len(means) > 1 else good[0][f"{prefix}std"]
    return Entry(
        statistics.mean(means),
        std,
        statistics.mean(result["seconds"] for result in good),
        max(result["peak_bytes"] for result in good),
    )


def render(settings: Settings, results: dict[Cell, dict[str, Any]]) -> str:
    """The table as Markdown, a method per row, a table per IPC."""
    c, s = settings.compare, settings
    spread = "seeds" if len(c.seeds) > 1 else f"{s.evaluate.networks} networks"

    def every(name: str) -> str:
        return ", ".join(sorted({str(r[name]) for r in results.values() if name in r}))

    dataset = as_text(s.data.name)
    factor = f"f = {s.synthetic.factor or 'as published'}"
    head = (
        f"{dataset}, {factor}, {s.network.name} of width {s.network.width} and "
        f"depth {s.network.depth}, {s.data.tested_on} accuracy in %, mean ± std "
        f"over {spread}; seeds {', '.join(map(str, c.seeds))}, "
        f"{s.evaluate.networks} networks of {s.evaluate.steps} steps each. "
        f"{every('date')}, {every('device')}, commit {every('commit')}. "
        "Seconds of synthesis, with scoring and experts, without compiling the update, "
        "and peak memory: one segment / DASM. '≤ Random': does not beat Random."
    )
    lines = [*textwrap.wrap(head, 80), ""]
    notes: list[str] = []
    for ipc in sorted(c.ipcs):
        lines += _table_of(ipc, settings, results, notes)
    return "\n".join([*lines, *notes]) + "\n"


def _table_of(
    ipc: int,
    settings: Settings,
    results: dict[Cell, dict[str, Any]],
    notes: list[str],
) -> list[str]:
    def of(row: str, column: str) -> list[dict[str, Any]]:
        return [
            result
            for cell, result in results.items()
            if (cell.row, cell.column, cell.ipc) == (row, column, ipc)
        ]

    random, full = _entry(of("Random", "")), _entry(of("Random", ""), "full_")
    lines = [
        f"| IPC {ipc} | one segment | DASM, {settings.dasm.segments} segments "
        "| seconds | peak MB |",
        "|---|---|---|---|---|",
    ]
    for row in dict.fromkeys(cell.row for cell in results if cell.column):
        cells, seconds, peaks = [], [], []
        for column in ("one segment", "DASM"):
            found = of(row, column)
            entry = _entry(found)
            cells.append(_cell_text(entry, random, bool(found)))
            if entry:
                seconds.append(f"{entry.seconds:.0f}")
                peaks.append(f"{entry.peak_bytes / 1e6:.0f}")
            notes += _failures(f"{row}, {column}, IPC {ipc}", found)
            labelled = [result for result in found if "label_bytes" in result]
            notes += [_bytes_note(row, ipc, result) for result in labelled[:1]]
        lines.append(
            f"| {row} | {cells[0]} | {cells[1]} | {' / '.join(seconds)} "
            f"| {' / '.join(peaks)} |"
        )
    for name, entry in (("Random", random), ("Full", full)):
        cell = _cell_text(entry, None, bool(of("Random", "")))
        lines.append(f"| {name} | {cell} | | | |")
    notes += _failures(f"Random and Full, IPC {ipc}", of("Random", ""))
    return [*lines, ""]


def _failures(what: str, found: list[dict[str, Any]]) -> list[str]:
    failed = [result for result in found if "failure" in result]
    return [f"- {what}: {as_text(result['failure'])}" for result in failed]


def _cell_text(entry: Entry | None, random: Entry | None, wanted: bool) -> str:
    if entry is None:
        return "failed" if wanted else ""
    text = percent(entry.mean, entry.std)
    if random and entry.mean <= random.mean:
        text += " ≤ Random"
    return text


def _bytes_note(row: str, ipc: int, result: dict[str, Any]) -> str:
    note = (
        f"- {row} at IPC {ipc} is evaluated with soft labels: images "
        f"{result['image_bytes']:,} bytes, labels {result['label_bytes']:,} bytes; the "
        f"same images with hard labels {percent(result['hard_mean'], None)}."
    )
    return textwrap.fill(note, 80, subsequent_indent="  ")
