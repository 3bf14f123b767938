"""How accuracy over images per class is printed."""

import statistics
import textwrap
from typing import Any, NamedTuple

from dasm_jax.experiments.cells import FULL
from dasm_jax.experiments.common import percent
from dasm_jax.experiments.document import as_text
from dasm_jax.experiments.sets import LABELS
from dasm_jax.plan import is_polished
from dasm_jax.schema import Settings


class Entry(NamedTuple):
    """A method at one size, over all seeds."""

    method: str
    ipc: int  # 0 for the full set
    mean: float
    std: float | None  # over seeds; with one seed over networks
    means: tuple[float, ...]  # of every seed
    flops: float  # matching FLOPs of one seed
    seconds: float  # of making the set, mean over seeds


def entries_of(results: list[dict[str, Any]]) -> list[Entry]:
    """Put the seeds of every method and size together, in order of appearance.

    A cell that failed leaves its entry to the other seeds; with none left there is no
    entry.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in results:
        if "failure" not in result:
            groups.setdefault((result["method"], result["ipc"]), []).append(result)
    entries = []
    for (method, ipc), group in groups.items():
        means = [result["mean"] for result in group]
        entries.append(
            Entry(
                method,
                ipc,
                statistics.mean(means),
                statistics.stdev(means) if len(means) > 1 else group[0]["std"],
                tuple(means),
                group[0]["matching_flops"],
                statistics.mean(result["seconds_making"] for result in group),
            )
        )
    return entries


def _grid(settings: Settings, entries: list[Entry]) -> list[list[str]]:
    """Header and a row per method; an accuracy per size."""
    of = {(entry.method, entry.ipc): entry for entry in entries}
    ipcs = sorted(settings.curve.ipcs)
    rows = [["", *(f"IPC {ipc}" for ipc in ipcs)]]
    seeds = len(settings.curve.seeds)

    def cell(method: str, ipc: int) -> str:
        entry = of.get((method, ipc))
        if entry is None:
            return "failed"
        missing = "" if len(entry.means) == seeds else f" ({len(entry.means)})"
        return percent(entry.mean, entry.std) + missing

    for method in settings.curve.methods:
        rows.append([LABELS[method], *(cell(method, ipc) for ipc in ipcs)])
    # The full set has one accuracy, whatever the size of the others.
    rows.append(["Full", cell(FULL, 0), *([""] * (len(ipcs) - 1))])
    return rows


def _spread(settings: Settings) -> str:
    if len(settings.curve.seeds) > 1:
        return f"{len(settings.curve.seeds)} seeds"
    return f"{settings.evaluate.networks} networks"


def render_text(settings: Settings, entries: list[Entry], failures: list[str]) -> str:
    """The table for a terminal of 80 columns."""
    s = settings
    head = (
        f"{s.data.name}: {s.data.tested_on} accuracy in %, mean ± std over "
        f"{_spread(s)}; {s.evaluate.networks} networks of {s.evaluate.steps} steps each"
    )
    lines = [*textwrap.wrap(head, 80), ""]
    rows = _grid(s, entries)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    for failure in failures:
        lines += textwrap.wrap(failure, 80, subsequent_indent="  ")
    if failures:
        lines += ["", "in brackets: the number of seeds, where some failed"]
    return "\n".join(lines)


def _smaller(settings: Settings) -> str:
    if is_polished(settings):
        return "runs of their own"
    return "its prefixes where a segment ends there"


def render_markdown(
    settings: Settings,
    entries: list[Entry],
    results: list[dict[str, Any]],
    failures: list[str],
) -> str:
    """The table for a document, with what one must know to repeat it."""
    s, c = settings, settings.curve

    def every(name: str) -> str:
        return ", ".join(sorted({str(r[name]) for r in results if name in r}))

    dataset = as_text(s.data.name)
    head = (
        f"{dataset}, {s.network.name} of width {s.network.width} and depth "
        f"{s.network.depth}, factor {s.factor}: {s.data.tested_on} accuracy in %, mean "
        f"± std over {_spread(s)} (seeds {', '.join(map(str, c.seeds))}), "
        f"{s.evaluate.networks} networks of {s.evaluate.steps} steps each per seed. "
        f"DASM: {s.dasm.segments} segments at IPC {max(c.ipcs)}, smaller sets are "
        f"{_smaller(s)}. {every('date')}, {every('device')}, commit {every('commit')}."
    )
    grid = _grid(s, entries)
    lines = [*textwrap.wrap(head, 80), ""]
    lines.append("| " + " | ".join(["method", *grid[0][1:]]) + " |")
    lines.append("|" + "---|" * len(grid[0]))
    lines += ["| " + " | ".join(row) + " |" for row in grid[1:]]
    lines += ["", *textwrap.wrap(_cost_note(s, entries), 80)]
    lines += [f"- {as_text(failure)}" for failure in failures]
    return "\n".join(lines) + "\n"


def _cost_note(settings: Settings, entries: list[Entry]) -> str:
    largest = max(settings.curve.ipcs)
    parts = [
        f"{LABELS[e.method]} {e.seconds:.0f} s"
        + (f" ({e.flops:.2g} matching FLOPs)" if e.flops else "")
        for e in entries
        if e.ipc == largest
    ]
    return (
        f"Making a set of IPC {largest}, scoring included, compiling left out; "
        "networks that select are trained once per seed, and counted with the first "
        "method and size that need them: " + ", ".join(parts) + "."
    )
