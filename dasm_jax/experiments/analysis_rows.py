"""What finished runs measured of themselves, as rows of a CSV that can be committed.

Tables and figures of an analysis are made of these alone.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dasm_jax.checkpoint import differences
from dasm_jax.errors import UserError
from dasm_jax.experiments.common import SUMMARY
from dasm_jax.experiments.document import dataset_slug
from dasm_jax.experiments.sets import segment_ends
from dasm_jax.files import MOST_JSON, expecting_ours, read_json, read_regular
from dasm_jax.records import LARGEST_AMOUNT
from dasm_jax.schedule import DECILES
from dasm_jax.workdir import identity_of, origin_of

# Of every segment: how many values each quantity has.
OF_SEGMENTS = {
    "pool_difficulty_mean": 1,
    "set_difficulty_mean": 1,
    "diversity": 1,
    "diversity_of_union": 1,
    "diversity_of_random": 1,
    "pool_share_by_decile": DECILES,
    "gradient_norm_share_by_decile.random": DECILES,
    "gradient_norm_share_by_decile.trained": DECILES,
    "set_share_by_decile": DECILES,
}
OF_SETS = {"accuracy": 1, "accuracy_by_decile": DECILES}  # of every evaluated one
BASELINES = ("Random", "Full")  # beside them
# What must be alike in all runs, or they are measured by different rulers.
RULER = ("data", "network", "evaluate", "measure")
NO_RULER = ("seed", "prefixes", "baselines", "at_once")
MOST_SEGMENTS = 1000


class Setup(NamedTuple):
    """What all runs of an analysis have in common, in words."""

    dataset: str
    network: str
    ruler: str
    split: str


class Row(NamedTuple):
    """A quantity of a segment, or of an evaluated set."""

    dataset: str  # the first four as in ``Setup``
    network: str
    ruler: str
    split: str
    run: str  # its name in the analysis
    seed: int  # of the synthesis
    segment: int  # from 1; 0: of an evaluated set
    ipc: int  # images per class of the set, or of all segments up to this one
    quantity: str
    values: tuple[float, ...]  # one, or one per difficulty decile; NaN: undefined
    commit: str
    date: str
    device: str

    @property
    def setup(self) -> Setup:
        """The first four fields."""
        return Setup(*self[:4])


class _Run(NamedTuple):
    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    manifest: dict[str, Any]


def rows_of(folders: dict[str, list[Path]]) -> list[Row]:
    """Read finished runs.

    Args:
      folders: workdirs by the name of what was run, one per seed.

    Raises:
      UserError: a folder holds no finished run that was measured, or one that cannot
        stand beside the others; says which and why.
    """
    rows: list[Row] = []
    first: _Run | None = None
    judged: dict[int, tuple[Path, int]] = {}  # by seed, who has which evaluate.seed
    for name, of_name in folders.items():
        seeds: dict[int, _Run] = {}
        judges: dict[int, Path] = {}
        for folder in of_name:
            found = _read(folder)
            with expecting_ours(folder / "config.json", folder / SUMMARY):
                first = first or found
                rule = "only runs that are measured alike can stand side by side"
                _check_alike(found, first, _ruler, rule)
                like = next(iter(seeds.values()), found)
                rule = f"runs of one name, here {name!r}, differ in their seed alone"
                _check_alike(found, like, _made_by, rule)
                seed, judge = found.config["seed"], found.config["evaluate"]["seed"]
                if not (type(seed) is int and type(judge) is int):
                    raise TypeError("seed")
            if seed in seeds:
                raise UserError(
                    f"config.analyse.runs: {folder} and {seeds[seed].folder} are both "
                    f"{name!r} with seed {seed}; leave one of them out"
                )
            other, known = judged.setdefault(seed, (folder, judge))
            if judge != known:
                raise UserError(
                    f"config.analyse.runs: {folder} and {other} have one seed, but "
                    f"config.evaluate.seed={judge} and {known}; leave one of them out"
                )
            if judge in judges:
                raise UserError(
                    f"config.analyse.runs: {folder} and {judges[judge]} have one "
                    f"config.evaluate.seed={judge}; what evaluates and measures must "
                    "differ with the seed, or their spread is too small"
                )
            seeds[seed], judges[judge] = found, folder
            # Whatever is in the files, nothing of it gets further unchecked.
            with expecting_ours(folder / SUMMARY):
                rows += [_checked(row) for row in _rows(name, found)]
    _check_complete(rows, "config.analyse.runs")
    return rows


def _read(folder: Path) -> _Run:
    what = f"config.analyse.runs: {folder}"
    try:
        there = (folder / SUMMARY).exists()
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}") from None
    if not there:
        raise UserError(f"{what} is no workdir of a finished run")
    names = ("config.json", SUMMARY, "manifest.json")
    found = _Run(
        folder, *(read_json(folder / name, folder / SUMMARY) for name in names)
    )
    with expecting_ours(folder / "config.json", folder / SUMMARY):
        experiment = found.config["experiment"]
        networks = found.config["measure"]["networks"]
    with expecting_ours(folder / SUMMARY):
        measured = found.summary.get("measures")
    if experiment != "distill" or not networks:
        raise UserError(
            f"{what} has measured nothing; it must be a run of experiment=distill with "
            "config.measure.networks above 0"
        )
    if not measured:
        raise UserError(
            f"{what} has measured nothing, for its networks on real images diverged "
            "(log.txt); leave it out"
        )
    return found


def _check_alike(
    one: _Run, other: _Run, part: Callable[[_Run], dict[str, Any]], rule: str
) -> None:
    if names := differences(part(one), part(other)):
        raise UserError(
            f"config.analyse.runs: {one.folder} and {other.folder} differ in "
            f"{', '.join(names)}; {rule}"
        )


def _ruler(found: _Run) -> dict[str, Any]:
    config = identity_of(found.config)
    ruler = {name: {**config[name]} for name in RULER}
    ruler["data"].pop("data_dir")
    for field in NO_RULER:
        ruler["evaluate"].pop(field, None)
    return {**ruler, "data_hash": found.manifest["data_hash"]}


def _made_by(found: _Run) -> dict[str, Any]:
    config = identity_of(found.config)
    return {n: v for n, v in config.items() if n not in (*RULER, "seed")}


def _rows(name: str, found: _Run) -> Iterator[Row]:
    folder, config, summary, manifest = found
    network, measure = config["network"], config["measure"]
    block = config["data"]["downsample"]
    averaged = f" averaged {block}×{block}" if block > 1 else ""
    setup = Setup(
        f"{dataset_slug(summary['dataset'])}{averaged}",
        f"{network['name']} of width {network['width']} and depth {network['depth']}",
        f"{measure['networks']} × {measure['steps']} steps of training",
        summary["split"],
    )
    with expecting_ours(folder / "manifest.json", folder / SUMMARY):
        origin = origin_of(manifest).values()
    for segment, ipc, quantity, values in _quantities(config, summary):
        place = name, config["seed"], segment, ipc, quantity
        yield Row(*setup, *place, _numbers(values), *origin)


def _quantities(
    config: dict[str, Any], summary: dict[str, Any]
) -> Iterator[tuple[int, int, str, Any]]:
    """Segment, ipc, quantity and values, as they come."""
    measures = summary["measures"]
    if not len(measures) == config["dasm"]["segments"] <= MOST_SEGMENTS:
        raise ValueError("segments")
    ends = segment_ends(config["ipc"], len(measures))
    for number, (record, ipc) in enumerate(zip(measures, ends, strict=True), start=1):
        if record["segment"] != number:
            raise ValueError("segment")
        for quantity in OF_SEGMENTS:
            group, _, part = quantity.partition(".")
            values = record.get(group)
            if part and isinstance(values, dict):
                values = values.get(part)
            if group in record:
                yield record["segment"], ipc, quantity, values
    for row in summary["table"]:
        if row["set"] not in BASELINES:
            yield 0, row["ipc"], "accuracy", row["mean"]
            yield 0, row["ipc"], "accuracy_by_decile", row["accuracy_by_decile"]


def _numbers(values: Any) -> tuple[float, ...]:
    values = values if isinstance(values, list) else [values]
    if not all(type(each) in (int, float, type(None)) for each in values):
        raise TypeError("a number or null")
    return tuple(math.nan if each is None else float(each) for each in values)


def _checked(row: Row) -> Row:
    """A row as it can be written, shown and read again.

    Raises:
      ValueError: it is no such row.
    """
    known = OF_SEGMENTS if row.segment else OF_SETS
    if len(row.values) != known.get(row.quantity):
        raise ValueError(row.quantity)
    if row.quantity == "accuracy" and not 0 <= row.values[0] <= 1:  # NaN neither
        raise ValueError("accuracy")
    counts = row.seed, row.segment, row.ipc
    if not all(type(n) is int and 0 <= n < 2**31 for n in counts):
        raise ValueError("counts")
    if not all(math.isnan(v) or abs(v) < LARGEST_AMOUNT for v in row.values):
        raise ValueError("values")
    for text in (*row.setup, row.run, row.commit, row.date, row.device):
        if type(text) is not str:
            raise TypeError(text)
        text.encode()  # a lone surrogate cannot be written
    return row


def _check_complete(rows: list[Row], what: str) -> None:
    """See that nothing is missing or there twice, and that all rows have one setup."""
    if not rows:
        raise UserError(f"{what}: there are no rows")
    if len({row.setup for row in rows}) > 1:
        raise UserError(f"{what}: rows of several setups cannot stand in one analysis")
    runs: dict[tuple[str, int], dict[tuple[int, int], list[str]]] = {}
    for row in rows:
        of_run = runs.setdefault((row.run, row.seed), {})
        of_run.setdefault((row.segment, row.ipc), []).append(row.quantity)
    for (run, seed), places in runs.items():
        one = f"{what}: {run!r} with seed {seed}"
        segments = sorted(segment for segment, _ in places if segment)
        if segments != [*range(1, len(segments) + 1)] or len(places) == len(segments):
            raise UserError(f"{one} lacks segments, or evaluated sets; run it again")
        for (segment, ipc), found in places.items():
            known = OF_SEGMENTS if segment else OF_SETS
            where = f"segment {segment}" if segment else f"its set of IPC {ipc}"
            if missing := [name for name in known if name not in found]:
                raise UserError(
                    f"{one} has no {missing[0]} in {where}; an earlier version may not "
                    "have measured it: run it again"
                )
            if len(found) > len(known):
                raise UserError(f"{one} has {where} twice; leave one of them out")


def to_csv(rows: Iterable[Row]) -> str:
    """One line per row; values are parted by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        values = " ".join(f"{value:.6g}" for value in row.values)
        writer.writerow(row._replace(values=values))  # type: ignore[arg-type]
    return text.getvalue()


def read_csv(path: Path) -> list[Row]:
    """Rows of a file that an analysis wrote.

    Raises:
      UserError: it cannot be read, is something else, or damaged; says where.
    """
    try:
        content = read_regular(path, MOST_JSON, links=True)
    except (OSError, ValueError) as error:
        raise UserError(f"config.analyse.rows: cannot read {path}: {error}") from None
    return from_csv(content, str(path))


def from_csv(content: str, name: str) -> list[Row]:
    """What ``to_csv`` wrote.

    Raises:
      UserError: something else did; names ``name`` and the line.
    """
    lines = content.splitlines()
    if lines[:1] != [",".join(Row._fields)]:
        raise UserError(
            f"{name} is no rows.csv of an analysis: its first line must name the "
            "columns"
        )
    rows: list[Row] = []
    try:
        for fields in csv.reader(lines[1:]):
            parts = dict(zip(Row._fields, fields, strict=True))
            typed: dict[str, Any] = {
                **parts,
                **{name: int(parts[name]) for name in ("seed", "segment", "ipc")},
                "values": tuple(float(each) for each in parts["values"].split()),
            }
            rows.append(_checked(Row(**typed)))
    except (TypeError, ValueError, OverflowError, csv.Error):
        raise UserError(
            f"line {len(rows) + 2} of {name} is damaged; remove it, or the file"
        ) from None
    _check_complete(rows, name)
    return rows
