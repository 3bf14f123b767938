"""Accuracy over images per class (the paper's Figure 1): methods × sizes × seeds."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dasm_jax.experiments import sets
from dasm_jax.experiments.cells import (
    FULL,
    Cell,
    Result,
    Source,
    check_results,
    check_sources,
    failures_of,
    fill,
    full_source,
)
from dasm_jax.experiments.common import load_data, written
from dasm_jax.experiments.curve_table import (
    Entry,
    entries_of,
    render_markdown,
    render_text,
)
from dasm_jax.experiments.document import (
    as_text,
    check_document,
    dataset_slug,
    renew_section,
)
from dasm_jax.files import write_atomically, write_json
from dasm_jax.plan import is_polished
from dasm_jax.schema import Settings
from dasm_jax.workdir import PhaseClock


def sources_of(settings: Settings) -> list[Source]:
    """What makes every cell, in the order in which they are made.

    Raises:
      UserError: settings of a run do not hold together.
    """
    c, sources = settings.curve, []
    segments, polished = settings.dasm.segments, is_polished(settings)
    for seed in c.seeds:
        for method in c.methods:
            for run in sets.runs_for(method, c.ipcs, segments, polished=polished):
                cells = tuple(Cell(method, n, seed, run.ipc) for n in run.prefixes)
                own = sets.settings_for(settings, method, run.ipc, seed)
                made = own if method in sets.DISTILLED else None
                sources.append(Source(made, cells))
        sources.append(full_source(seed))
    return sources


def run(settings: Settings, workdir: Path) -> str:
    """Make and evaluate what is missing; returns the table for the terminal.

    Raises:
      UserError: settings and data do not fit, or something cannot be written.
    """
    c, clock = settings.curve, PhaseClock()
    with clock.phase("data"):
        dataset = load_data(settings)
    sources = sources_of(settings)
    check_sources(settings, sources, dataset)
    document = Path(c.document).expanduser()
    if c.document:
        check_document(document, "config.curve.document")
    results = fill(settings, workdir, dataset, sources, clock)
    text = _publish(settings, workdir, document, results)
    check_results(results, "curve")
    return text


def _publish(
    settings: Settings,
    workdir: Path,
    document: Path,
    results: dict[Cell, Result],
) -> str:
    from dasm_jax import plots  # here, for matplotlib takes a while to import

    failures = failures_of(results)
    entries = entries_of([cell._asdict() | r for cell, r in results.items()])
    title = f"{settings.data.name}: accuracy over images per class"
    full = next(((e.mean, e.std) for e in entries if e.method == FULL), None)
    figure = plots.accuracy_curves(_series(entries), full, title=title)
    markdown = render_markdown(settings, entries, list(results.values()), failures)
    plots.save_png(figure, workdir / "curve.png")
    write_atomically(
        workdir / "cells.csv", lambda file: file.write(_csv(results).encode())
    )
    write_atomically(workdir / "table.md", lambda file: file.write(markdown.encode()))
    write_json(workdir / "summary.json", _summary(settings, entries, failures))
    text = render_text(settings, entries, failures)
    paths = written(workdir, "curve.png", "table.md", "cells.csv", "sets")
    if settings.curve.document:
        picture = document.parent / f"curve_{dataset_slug(settings.data.name)}.png"
        plots.save_png(figure, picture)
        shown = f"![{as_text(title)}]({picture.name})\n\n{markdown}"
        renew_section(document, f"curve: {settings.data.name}", shown)
        paths += f"\n      {document}\n      {picture}"
    return f"{text}\n\n{paths}"


def _series(entries: list[Entry]) -> dict[str, list[tuple[int, float, float | None]]]:
    """Lines of the figure, by the name of the method."""
    series: dict[str, list[tuple[int, float, float | None]]] = {}
    for entry in entries:
        if entry.method != FULL:
            points = series.setdefault(sets.LABELS[entry.method], [])
            points.append((entry.ipc, entry.mean, entry.std))
    return series


def _csv(results: dict[Cell, Result]) -> str:
    columns = ["mean", "std", "matching_flops", "seconds_making", "commit", "date"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Cell._fields, *columns, "networks"])
    for cell, result in results.items():
        if "failure" not in result:
            networks = " ".join(f"{a:.4f}" for a in result["networks"])
            writer.writerow([*cell, *(result[name] for name in columns), networks])
    return text.getvalue()


def _summary(
    settings: Settings, entries: Iterable[Entry], failures: list[str]
) -> dict[str, Any]:
    return {
        "dataset": settings.data.name,
        "seeds": list(settings.curve.seeds),
        "evaluation_networks": settings.evaluate.networks,
        "evaluation_steps": settings.evaluate.steps,
        "table": [
            {
                "set": sets.LABELS.get(entry.method, "Full"),
                "ipc": entry.ipc,
                "mean": entry.mean,
                "std": entry.std,
                "seeds": list(entry.means),
                "matching_flops": entry.flops,
                "seconds_making": entry.seconds,
            }
            for entry in entries
        ],
        "failures": failures,
    }
