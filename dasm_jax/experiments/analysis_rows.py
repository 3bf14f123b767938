"""What finished runs measured of themselves, as rows of a CSV that can be committed.

Tables and figures of an analysis are made of these alone.
"""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dasm_jax.checkpoint import differences
from dasm_jax.errors import UserError
from dasm_jax.experiments.common import SUMMARY
from dasm_jax.experiments.sets import segment_ends
from dasm_jax.files import expecting_ours, read_json
from dasm_jax.schedule import DECILES

SETUP = "data; network; measured by; split"
# What must be alike in all runs, or they are measured by different rulers.
ALIKE = ("data", "network", "evaluate", "measure")
BASELINES = ("Random", "Full")  # beside the evaluated sets
OF_A_SEED = ("evaluate.seed", "data.data_dir")


class Row(NamedTuple):
    """A quantity of a segment, or of an evaluated set."""

    setup: str  # as SETUP says
    run: str  # its name in the analysis
    seed: int  # of the synthesis
    segment: int  # from 1; 0: of an evaluated set
    ipc: int  # images per class of the set, or of all segments up to this one
    quantity: str  # as in metrics.jsonl; of evaluated sets their name, then a dot
    values: tuple[float, ...]  # one, or one per difficulty decile; NaN: undefined
    commit: str
    date: str
    device: str


def rows_of(folders: dict[str, list[Path]]) -> list[Row]:
    """Read finished runs.

    Args:
      folders: workdirs by the name of what was run, one per seed.

    Raises:
      UserError: a folder holds no finished run that was measured, or one that cannot
        stand beside the others; says which and why.
    """
    rows: list[Row] = []
    first: tuple[Path, dict[str, Any]] | None = None
    for name, of_name in folders.items():
        seeds: dict[int, Path] = {}
        for folder in of_name:
            config, summary, manifest = _read(folder)
            with expecting_ours(folder / SUMMARY):
                ruler = _ruler(config, manifest)
                first = first or (folder, ruler)
                if others := differences(ruler, first[1]):
                    raise UserError(
                        f"{folder} and {first[0]} differ in {', '.join(others)}; only "
                        "runs that are measured alike can be compared"
                    )
                if (seed := config["seed"]) in seeds:
                    raise UserError(
                        f"config.analyse.runs: {folder} and {seeds[seed]} are both "
                        f"{name!r} with seed {seed}"
                    )
                seeds[seed] = folder
                origin = _origin(manifest)
                rows += [
                    Row(_setup(config, summary), name, seed, *found, *origin)
                    for found in _found(config, summary)
                ]
    return rows


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    what = f"config.analyse.runs: {folder}"
    if not (folder / SUMMARY).exists():
        raise UserError(f"{what} is no workdir of a finished run")
    names = ("config.json", SUMMARY, "manifest.json")
    config, summary, manifest = (read_json(folder / name) for name in names)
    with expecting_ours(folder / SUMMARY):
        if config["experiment"] != "distill" or not summary["measures"]:
            raise UserError(
                f"{what} has measured nothing; it must be a run of experiment=distill "
                "with config.measure.networks above 0"
            )
    return config, summary, manifest


def _ruler(config: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    ruler = {name: {**config[name]} for name in ALIKE}
    for path in OF_A_SEED:
        group, _, field = path.partition(".")
        ruler[group].pop(field, None)
    return {**ruler, "data_hash": manifest["data_hash"]}


def _setup(config: dict[str, Any], summary: dict[str, Any]) -> str:
    network, measure = config["network"], config["measure"]
    block = config["data"]["downsample"]
    averaged = f" averaged {block}×{block}" if block > 1 else ""
    return (
        f"{summary['dataset']}{averaged}; {network['name']} of width "
        f"{network['width']} and depth {network['depth']}; {measure['networks']} "
        f"networks of {measure['steps']} steps; {summary['split']}"
    )


def _origin(manifest: dict[str, Any]) -> tuple[str, str, str]:
    number, dirty, _ = (manifest["git_commit"] or "unknown").partition("+")
    devices = ", ".join(manifest["devices"])
    return (
        number[:7] + ("+dirty" if dirty else ""),
        str(manifest["date"])[:10],
        f"{manifest['cpu_count']} cores, {devices}",
    )


def _found(
    config: dict[str, Any], summary: dict[str, Any]
) -> Iterable[tuple[int, int, str, tuple[float, ...]]]:
    """Segment, ipc, quantity and values, as they come."""
    ends = segment_ends(config["ipc"], config["dasm"]["segments"])
    for record, ipc in zip(summary["measures"], ends, strict=True):
        for name, value in record.items():
            if name == "segment":
                continue
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for part, values in parts:
                quantity = f"{name}.{part}" if part else name
                yield record["segment"], ipc, quantity, _numbers(values)
    for row in summary["table"]:
        kind = row["set"] if row["set"] in BASELINES else "set"
        yield 0, row["ipc"], f"{kind}.accuracy", _numbers(row["mean"])
        if shares := row.get("accuracy_by_decile"):
            yield 0, row["ipc"], f"{kind}.accuracy_by_decile", _numbers(shares)


def _numbers(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, DECILES):
        raise ValueError(f"{len(values)} values")
    return tuple(math.nan if each is None else float(each) for each in values)


def to_csv(rows: Iterable[Row]) -> bytes:
    """One line per row; values are parted by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        values = " ".join(f"{value:.6g}" for value in row.values)
        writer.writerow(row._replace(values=values))  # type: ignore[arg-type]
    return text.getvalue().encode()


def read_csv(path: Path) -> list[Row]:
    """Rows of a file that an analysis wrote.

    Raises:
      UserError: it cannot be read, is something else, or damaged; says where.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"config.analyse.rows: cannot read {path}: {error.strerror}"
        ) from None
    rows = from_csv(content, str(path))
    if not rows:
        raise UserError(f"config.analyse.rows: {path} holds no rows")
    return rows


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
            f"config.analyse.rows: {name} is no rows.csv of an analysis: its first "
            "line must name the columns"
        )
    rows: list[Row] = []
    try:
        for setup, run, seed, segment, ipc, quantity, values, *origin in csv.reader(
            lines[1:]
        ):
            numbers = tuple(float(each) for each in values.split())
            if len(numbers) not in (1, DECILES) or len(setup.split("; ")) != 4:
                raise ValueError(quantity)
            places = int(seed), int(segment), int(ipc)
            rows.append(Row(setup, run, *places, quantity, numbers, *origin))
    except (TypeError, ValueError, csv.Error):
        raise UserError(
            f"line {len(rows) + 2} of {name} is damaged; remove it, or the file"
        ) from None
    return rows
