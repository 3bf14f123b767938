"""Tables and figures of a study, made of its rows alone."""

import itertools
import statistics
import textwrap
from typing import Any, NamedTuple

import numpy as np

from dasm_jax.bootstrap import Difference, paired_difference
from dasm_jax.experiments.cells import FULL
from dasm_jax.experiments.common import percent
from dasm_jax.experiments.document import as_text
from dasm_jax.experiments.study_rows import Row, changes_of

NOT_SEEN = "no difference seen"


class Entry(NamedTuple):
    """An arm at one size, over all seeds."""

    arm: str
    ipc: int  # 0 for the full set
    made_as: int
    networks: dict[int, list[float]]  # accuracies by seed, in order of the networks
    flops: float  # counted matching FLOPs
    seconds: float  # mean over seeds

    @property
    def label(self) -> str:
        """The name of its row."""
        if self.arm == FULL:
            return "Full"
        whole = self.made_as == self.ipc
        return self.arm if whole else f"{self.arm}, first {self.ipc} of {self.made_as}"

    @property
    def means(self) -> list[float]:
        """Of every seed, over networks."""
        return [statistics.mean(accuracies) for accuracies in self.networks.values()]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.mean(self.means)

    @property
    def std(self) -> float | None:
        """Over seeds; of a single one over its networks."""
        values = self.means
        if len(values) == 1:
            (values,) = self.networks.values()
        return statistics.stdev(values) if len(values) > 1 else None


def entries_of(rows: list[Row]) -> list[Entry]:
    """Rows of one arm and size put together, in order of appearance; none failed."""
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        if not row.failure:
            groups.setdefault(row.place, []).append(row)
    entries = []
    for place, group in groups.items():
        networks: dict[int, dict[int, float]] = {}
        seconds = {row.seed: row.seconds for row in group}
        for row in group:
            networks.setdefault(row.seed, {})[row.network] = row.accuracy
        by_seed = {
            seed: [found[number] for number in sorted(found)]
            for seed, found in sorted(networks.items())
        }
        spent = statistics.mean(seconds.values())
        entries.append(Entry(*place, by_seed, group[0].flops, spent))
    return entries


def difference(one: Entry, other: Entry) -> Difference | None:
    """Of accuracies, over the seeds and networks both have; None where none are."""
    seeds = [seed for seed in one.networks if seed in other.networks]
    if not seeds:
        return None
    pairs = [(one.networks[seed], other.networks[seed]) for seed in seeds]
    count = min(len(accuracies) for pair in pairs for accuracies in pair)
    values = [np.subtract(a[:count], b[:count]) for a, b in pairs]
    return paired_difference(np.stack(values))


def verdict(found: Difference | None) -> str:
    """``+0.8 [0.3, 1.2]`` in points, and in words as well where zero is inside."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.1f} (one seed)"
    low, high = 100 * found.low, 100 * found.high
    text = f"{100 * found.mean:+.1f} [{low:.1f}, {high:.1f}]"
    return text if found.seen else f"{text}, {NOT_SEEN}"


class Versus(NamedTuple):
    """An entry beside a baseline of its size."""

    found: Difference | None  # None of the baseline itself, and where it is not there
    text: str


class Line(NamedTuple):
    """An entry beside the baselines of its size."""

    entry: Entry
    against: dict[str, Versus]  # by baseline
    ratio: float | None  # of matching FLOPs to the first one's; None where one has none


class Table(NamedTuple):
    """One size, all arms."""

    ipc: int
    lines: list[Line]


def tables_of(rows: list[Row], baselines: tuple[str, ...]) -> list[Table]:
    """A table per size; the full set is in each."""
    entries = entries_of(rows)
    full = [entry for entry in entries if entry.arm == FULL]
    made = _made_for_their_size(entries)
    tables = []
    for ipc in sorted({row.ipc for row in rows} - {0}):
        bases = {name: made.get((name, ipc)) for name in baselines}
        first = bases[baselines[0]]
        lines = []
        for entry in [e for e in entries if e.ipc == ipc] + full:
            against = {name: _versus(entry, base) for name, base in bases.items()}
            ratio = None
            if first and first.flops and entry.flops:
                ratio = entry.flops / first.flops
            lines.append(Line(entry, against, ratio))
        tables.append(Table(ipc, lines))
    return tables


def _versus(entry: Entry, base: Entry | None) -> Versus:
    if entry is base:
        return Versus(None, "baseline")
    found = None if base is None else difference(entry, base)
    return Versus(found, verdict(found))


def _made_for_their_size(entries: list[Entry]) -> dict[tuple[str, int], Entry]:
    return {(e.arm, e.ipc): e for e in entries if e.made_as == e.ipc}


def prefixes_of(rows: list[Row]) -> list[tuple[Entry, Difference | None]]:
    """Every prefix, against the run that its arm made for its size."""
    entries = entries_of(rows)
    made = _made_for_their_size(entries)
    return [
        (entry, difference(entry, made[entry.arm, entry.ipc]))
        for entry in entries
        if entry.made_as != entry.ipc and (entry.arm, entry.ipc) in made
    ]


def prefix_notes(rows: list[Row]) -> list[str]:
    """``prefixes_of`` in words."""
    return [
        f"{entry.label}, against {entry.arm} made for it: {verdict(found)}"
        for entry, found in prefixes_of(rows)
    ]


def _polish_notes(rows: list[Row]) -> list[str]:
    """What the FLOPs of prefixes leave out, of arms that polish their sets."""
    arms = dict.fromkeys(
        row.arm
        for row in rows
        if row.made_as != row.ipc
        for word in row.changes.split()
        if word.startswith("dasm.polish=") and word != "dasm.polish=0.0"
    )
    return [
        f"{arm}: its prefixes exist only after the polish of the whole set, of which "
        "their FLOPs and seconds hold a share by size"
        for arm in arms
    ]


def _notes(rows: list[Row]) -> list[str]:
    return [*prefix_notes(rows), *_polish_notes(rows), *_failures(rows)]


def _failures(rows: list[Row]) -> list[str]:
    return [
        f"{row.arm}, IPC {row.ipc}, seed {row.seed} failed: {row.failure}"
        for row in rows
        if row.failure
    ]


def _head(rows: list[Row], baselines: tuple[str, ...]) -> str:
    def every(name: str) -> str:
        found = {getattr(row, name) for row in rows if not row.failure}
        return ", ".join(sorted(map(str, found)))

    networks = max(row.network for row in rows)
    split = rows[0].setup.split("; ")[3].split(" ")[0]
    return (
        f"{rows[0].setup}. {split.capitalize()} accuracy in %, mean ± std over seeds "
        f"({every('seed')}) of the mean over {networks} networks. Difference to "
        f"{' and to '.join(baselines)} in points with its 95 % interval, paired by "
        f"seed and network; '{NOT_SEEN}' where that holds zero. FLOPs: counted "
        f"matching FLOPs over those of {baselines[0]}. {every('date')}, "
        f"{every('device')}, commit "
        f"{every('commit')}."
    )


def _seeds(entry: Entry, rows: list[Row]) -> str:
    """The number of seeds, where it is not that of the table."""
    every = {row.seed for row in rows}
    return "" if {*entry.networks} == every else f" ({len(entry.networks)})"


def _accuracy(entry: Entry, rows: list[Row]) -> str:
    return percent(entry.mean, entry.std) + _seeds(entry, rows)


def render_text(rows: list[Row], baselines: tuple[str, ...]) -> str:
    """The tables for a terminal of 80 columns: one baseline below the other."""
    lines = textwrap.wrap(_head(rows, baselines), 80)
    tables = tables_of(rows, baselines)
    shown = [line.entry for table in tables for line in table.lines]
    width = max((len(entry.label) for entry in shown), default=0)
    wide = max((len(_accuracy(entry, rows)) for entry in shown), default=0)
    for table, name in itertools.product(tables, baselines):
        named = f", against {name}" if len(baselines) > 1 else ""
        lines += ["", f"IPC {table.ipc}{named}"]
        for entry, against, _ in table.lines:
            accuracy = f"{_accuracy(entry, rows):<{wide}}"
            text = f"{entry.label:<{width}}  {accuracy}  {against[name].text}"
            lines.append(text.rstrip())
    for note in _notes(rows):
        lines += ["", *textwrap.wrap(note, 80, subsequent_indent="  ")]
    return "\n".join(lines)


def render_markdown(rows: list[Row], baselines: tuple[str, ...]) -> str:
    """The tables for a document, with what one must know to repeat them."""
    lines = textwrap.wrap(as_text(_head(rows, baselines)), 80)
    columns = [f"against {as_text(name)}" for name in baselines]
    for table in tables_of(rows, baselines):
        heads = [f"IPC {table.ipc}", "accuracy", *columns, "FLOPs", "seconds"]
        lines += ["", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for entry, against, times in table.lines:
            texts = [versus.text for versus in against.values()]
            ratio = "" if times is None else f"{times:.3f}"
            seconds = f"{entry.seconds:.0f}" if entry.arm != FULL else ""
            accuracy = _accuracy(entry, rows)
            cells = (as_text(entry.label), accuracy, *texts, ratio, seconds)
            lines.append("| " + " | ".join(cells) + " |")
    notes = _notes(rows)
    notes += [f"{arm}: {text}" for arm, text in changes_of(rows).items()]
    lines += [""] * bool(notes)
    for note in notes:
        lines += textwrap.wrap(f"- {as_text(note)}", 80, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def _plain(found: Difference) -> dict[str, Any]:
    ends = {"low": found.low, "high": found.high}
    return {"difference": found.mean, **ends, "seen": found.seen}


def summary_of(rows: list[Row], baselines: tuple[str, ...]) -> dict[str, Any]:
    """Everything that the tables round, as plain JSON."""
    against = {
        (line.entry.arm, table.ipc, line.entry.made_as): line.against
        for table in tables_of(rows, baselines)
        for line in table.lines
    }
    own = {(e.arm, e.ipc, e.made_as): found for e, found in prefixes_of(rows)}
    table = []
    for entry in entries_of(rows):
        place = (entry.arm, entry.ipc, entry.made_as)
        beside = against.get(place, {})
        line = {
            "set": entry.label,
            "ipc": entry.ipc,
            "mean": entry.mean,
            "std": entry.std,
            "seeds": entry.means,
            "matching_flops": entry.flops,
            "seconds_making": entry.seconds,
        }
        differences = {n: _plain(v.found) for n, v in beside.items() if v.found}
        line |= differences.pop(baselines[0], {})
        if differences:
            line["against"] = differences
        if (found := own.get(place)) is not None:
            line["against_made_for_it"] = _plain(found)
        table.append(line)
    return {
        "dataset": rows[0].setup.split(";")[0],
        "setup": rows[0].setup,
        "baseline": ", ".join(baselines),
        "seeds": sorted({row.seed for row in rows}),
        "evaluation_networks": max(row.network for row in rows),
        "table": table,
        "failures": _failures(rows),
    }


def curves_of(
    rows: list[Row],
) -> tuple[
    dict[str, list[tuple[float, float, float | None]]],
    tuple[float, float | None] | None,
]:
    """Lines of accuracy over IPC by arm, and Full; for ``plots.accuracy_curves``."""
    series: dict[str, list[tuple[float, float, float | None]]] = {}
    full = None
    for entry in entries_of(rows):
        if entry.arm == FULL:
            full = entry.mean, entry.std
        else:
            whole = entry.made_as == entry.ipc
            name = entry.arm if whole else f"{entry.arm}, prefixes"
            series.setdefault(name, []).append((entry.ipc, entry.mean, entry.std))
    return series, full


def panels_of(
    rows: list[Row], baseline: str
) -> dict[str, dict[str, tuple[float, float | None, float | None]]]:
    """Differences to one baseline by size and arm; for ``plots.intervals``."""
    return {
        f"IPC {table.ipc}": {
            line.entry.label: found[:3]
            for line in table.lines
            if (found := line.against[baseline].found) is not None
            and line.entry.arm != FULL
        }
        for table in tables_of(rows, (baseline,))
    }
