"""A study: arms that differ in a few settings, and their differences pair by pair.

All arms of one size get equal counted matching FLOPs and equal evaluation.
"""

from pathlib import Path
from typing import Any

import jax

from dasm_jax import records
from dasm_jax.errors import UserError
from dasm_jax.experiments import sets, study_table
from dasm_jax.experiments.arms import Arm, arms_of, settings_of
from dasm_jax.experiments.cell_files import digest
from dasm_jax.experiments.cells import (
    FULL,
    Cell,
    Source,
    check_results,
    check_sources,
    fill,
    full_source,
)
from dasm_jax.experiments.common import load_data, written
from dasm_jax.experiments.document import (
    as_text,
    check_document,
    dataset_slug,
    renew_section,
    slug,
)
from dasm_jax.experiments.study_rows import Row, from_csv, read, rows_of, to_csv
from dasm_jax.files import (
    is_there,
    make_folder,
    read_record,
    write_all,
    write_json,
)
from dasm_jax.plan import fitting_niter, plan_segments, total_flops
from dasm_jax.problem import make_problem
from dasm_jax.schema import Settings
from dasm_jax.settings import changed
from dasm_jax.source import RESULTS
from dasm_jax.types import Dataset
from dasm_jax.workdir import PhaseClock, claim_workdir, identity, manifest

# What no step's cost depends on; anything else, and what is new, is counted anew.
NO_COST = (
    "pool",
    "schedule",
    "rho",
    "high",
    "ceiling",
    "random_share",
    "gamma",
    "easiest_share",
    "coverage",
    "score",
    "scored_by",
    "networks",
    "score_steps",
    "rescore_every",
    "polish_rate",
    "polish_schedule",
    "polish_target",
)


def run(settings: Settings, workdir: Path) -> str:
    """Make and evaluate what is missing; returns the tables for the terminal.

    Raises:
      UserError: arms, settings and data do not fit, or something cannot be written.
    """
    c, clock = settings.study, PhaseClock()
    document = Path(c.document).expanduser()
    if c.document:
        check_document(document, "config.study.document")
    if c.rows:
        names = [name.strip() for name in c.rows.split(",")]
        rows = read([Path(name).expanduser() for name in names if name])
        claim_workdir(workdir, settings)
        write_json(workdir / "manifest.json", manifest("", clock.seconds))
        return _publish(settings, workdir, document, rows)
    arms = arms_of(settings)
    with clock.phase("data"):
        dataset = load_data(settings)
    plans = _Plans(settings, arms, dataset, workdir)
    # What is wrong with an arm is said before anything is counted.
    check_sources(settings, sources_of(settings, arms, plans.unplanned), dataset)
    with clock.phase("plan"):
        sources = sources_of(settings, arms, plans.planned)
    results = fill(settings, workdir, dataset, sources, clock)

    def changes(name: str) -> str:
        return "" if name == FULL else arms[name].text

    rows = rows_of(results, setup_of(settings, dataset), changes)
    # As the file has them, so that the file gives the same tables again.
    rows = from_csv(to_csv(rows), "cells.csv")
    text = _publish(settings, workdir, document, rows)
    check_results(results, "study")
    return text


def sources_of(settings: Settings, arms: dict[str, Arm], made: Any) -> list[Source]:
    """What makes every cell, in the order in which they are made.

    Args:
      settings: of the study.
      arms: by name.
      made: ``made(arm, ipc, seed) -> Settings`` of a run.

    Raises:
      UserError: settings of an arm do not hold together.
    """
    c, sources = settings.study, []
    largest = max(c.ipcs)
    for seed in c.seeds:
        for ipc in sorted(c.ipcs):
            for arm in arms.values():
                own = None if arm.selected else made(arm, ipc, seed)
                sizes = [ipc]
                if own is not None and c.prefixes and ipc == largest:
                    ends = sets.segment_ends(ipc, own.dasm.segments)
                    sizes = [n for n in ends if n in c.ipcs]
                cells = tuple(Cell(arm.name, n, seed, ipc) for n in sizes)
                sources.append(Source(own, cells))
        sources.append(full_source(seed))
    return sources


class _Plans:
    """Lengths of runs that give every arm the matching FLOPs of the first baseline.

    Counting takes seconds an arm, so the workdir keeps what was counted.
    """

    def __init__(
        self,
        settings: Settings,
        arms: dict[str, Arm],
        dataset: Dataset,
        workdir: Path,
    ):
        self._settings, self._dataset = settings, dataset
        self._baseline = arms[settings.study.baselines[0]]
        self._path = workdir / "plans.json"
        self._found = read_record(self._path) if is_there(self._path) else {}

    def unplanned(self, arm: Arm, ipc: int, seed: int) -> Settings:
        """Settings of an arm's run, as long as they say."""
        return settings_of(arm, self._settings, ipc, seed)

    def planned(self, arm: Arm, ipc: int, seed: int) -> Settings:
        """Settings of an arm's run, as long as they have to be."""
        s = self.unplanned(arm, ipc, seed)
        if arm is self._baseline:
            return s
        niter = self._plan(s, self.target(ipc))["niter"]
        return changed(s, {f"matcher.{s.matcher.name}.loop.niter": niter})

    def target(self, ipc: int) -> float:
        """Matching FLOPs of the baseline's run."""
        return self._plan(self.unplanned(self._baseline, ipc, 0), None)["flops"]

    def _plan(self, s: Settings, target: float | None) -> dict[str, Any]:
        depends = identity(s)
        for name in ("seed", "evaluate", "measure"):
            depends.pop(name)
        for name in NO_COST:
            depends["dasm"].pop(name, None)
        depends["matcher"][s.matcher.name].pop("image")
        depends["target"] = target
        depends["data_hash"] = self._dataset.content_hash
        depends["counted_by"] = RESULTS, jax.__version__
        if target is not None:
            depends["matcher"][s.matcher.name].pop("loop", None)
            depends["inner"] = s.matcher.active.loop.inner
        name = digest(depends)
        if not _is_plan(self._found.get(name)):
            problem = make_problem(s, self._dataset)
            if target is None:
                niter = s.matcher.active.loop.niter
                flops = total_flops(plan_segments(problem))
            else:
                niter, flops = fitting_niter(problem, target)
            self._found[name] = {"niter": niter, "flops": flops}
            write_json(self._path, self._found)
        return self._found[name]


def _is_plan(known: Any) -> bool:
    return (
        isinstance(known, dict)
        and type(known.get("niter")) is int
        and known["niter"] > 0
        and records.is_amount(known.get("flops"))
    )


def setup_of(settings: Settings, dataset: Dataset) -> str:
    """What all cells have in common: data; network; evaluation; split; its digest.

    The digest is of every setting that no row names, and of the images.
    """
    s = settings
    common = identity(s)
    common["data"].pop("data_dir")  # another machine has it elsewhere
    common["evaluate"].pop("networks")
    common["data_hash"] = dataset.content_hash
    common["results"] = RESULTS
    share = f" {s.data.validation:g}" if s.data.validation else ""
    name = dataset_slug(s.data.name)
    return (
        f"{name} {dataset.image_shape[0]}px; {s.network.name} of width "
        f"{s.network.width} and depth {s.network.depth}; {s.evaluate.steps} steps; "
        f"{s.data.tested_on}{share}; {digest(common)[:8]}"
    )


def _publish(settings: Settings, workdir: Path, document: Path, rows: list[Row]) -> str:
    from dasm_jax import plots  # here, for matplotlib takes a while to import

    c = settings.study
    known = {row.arm for row in rows}
    for name in c.baselines:
        if name not in known:
            raise UserError(
                f"config.study.baseline={name!r} is no arm of config.study.rows"
            )
    # A figure of two baselines would be twice as wide: the first one's alone.
    first = c.baselines[0]
    dataset = rows[0].setup.split(";")[0]
    title = f"{c.name}, {dataset}"
    markdown = study_table.render_markdown(rows, c.baselines)
    panels = study_table.panels_of(rows, first)
    forest = plots.intervals(panels, f"points against {first}", title=title)
    files = {"cells.csv": to_csv(rows), "table.md": markdown.encode()}
    if len({row.ipc for row in rows if row.arm != FULL}) > 1:  # or there are no lines
        curves = plots.accuracy_curves(*study_table.curves_of(rows), title=title)
        files["accuracy.png"] = plots.to_png(curves)
    files["differences.png"] = plots.to_png(forest)
    write_all(workdir, files)
    write_json(workdir / "summary.json", study_table.summary_of(rows, c.baselines))
    paths = written(workdir, *files)
    if c.document:
        name = slug(f"{c.name}_{dataset}")
        folder = document.parent / "study"
        make_folder(folder)
        pictures = {f"{name}_{n}": files[n] for n in files if n.endswith(".png")}
        write_all(folder, {f"{name}.csv": files["cells.csv"], **pictures})
        shown = [f"![{as_text(title)}](study/{picture})" for picture in pictures]
        text = "\n".join(shown)
        source = f"Rows: [{name}.csv](study/{name}.csv).\n"
        renew_section(document, f"study: {title}", f"{text}\n\n{markdown}\n{source}")
        paths += f"\n      {document}\n      {folder / name}.csv"
    return f"{study_table.render_text(rows, c.baselines)}\n\n{paths}"
