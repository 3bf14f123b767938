"""What a report shows, assembled from what a run wrote; nothing is read or written.

A part that a run has nothing for is empty, and the page leaves it out.
"""

import base64
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dasm_jax.errors import printable

MOST_PIXELS = 2_000_000  # of all images in a page: at most 8 MB in colour
MOST_PER_SEGMENT = 50  # images of a class
STRIP_COLUMNS = 10
FULL = "Full"
NOT_METHODS = ("Random", FULL)
MATCHED = ("segment", "polish")  # records of what has a pool
MOST_COLUMNS = 4  # sets beside each other in a table

Row = dict[str, Any]
Records = list[dict[str, Any]]


class Strip(NamedTuple):
    """The images of a class in a segment, side by side in one picture."""

    name: str  # of the class
    uri: str  # PNG
    images: int
    columns: int
    rows: int


class Segment(NamedTuple):
    """One segment of the synthetic set."""

    number: int
    images: int  # per class, all of them
    shown: int  # per class
    strips: list[Strip]


class Table(NamedTuple):
    """Cells as text; ``numeric`` columns are set right."""

    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]


class Bullets(NamedTuple):
    """A list of points."""

    points: list[str]


def percent(mean: float | None, std: float | None) -> str:
    """Accuracy in %, or a dash."""
    if mean is None:
        return "–"
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def cell(value: Any) -> str:
    """Text of a value in a table."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    return str(value)


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows with whatever scalars they hold, a column per name."""
    names: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            if name != "std" and not isinstance(value, list | dict):
                number = isinstance(value, int | float | None)
                names[name] = names.get(name, True) and number

    def text(row: Mapping[str, Any], name: str) -> str:
        if name == "mean":
            return percent(row.get("mean"), row.get("std"))
        return cell(row.get(name, ""))

    columns = ["accuracy, %" if n == "mean" else n.replace("_", " ") for n in names]
    body = [[text(row, name) for name in names] for row in rows]
    return Table(columns, body, list(names.values()))


class Accuracies(NamedTuple):
    """Accuracy of kinds of sets over images per class."""

    series: dict[str, list[tuple[float, float, float | None]]]  # ipc, mean, std
    full: tuple[float, float | None] | None
    seeds: int  # behind a point, at most


def accuracies_of(rows: Records) -> Accuracies | None:
    """Rows by set and whatever else has a name (an architecture, an augmentation).

    Seeds are averaged, and give the spread; None where rows differ in something else.
    """
    groups: dict[str, dict[float, Records]] = {}
    seen, full = set(), []
    for row in rows:
        names = [v for k, v in row.items() if k != "set" and isinstance(v, str)]
        name = ", ".join([row["set"], *names])
        place = (name, row["ipc"], row.get("seed"))
        if place in seen:
            return None
        seen.add(place)
        if row["set"] == FULL and row["mean"] is not None:
            full.append(row)
        elif row["set"] != FULL:
            groups.setdefault(name, {}).setdefault(float(row["ipc"]), []).append(row)
    series = {
        name: [
            (ipc, *_spread(found))
            for ipc, found in sorted(by_ipc.items())
            if all(row["mean"] is not None for row in found)
        ]
        for name, by_ipc in groups.items()
    }
    everywhere = {name for name, *_ in seen if name.startswith(f"{FULL}, ")}
    seeds = max((len(f) for g in groups.values() for f in g.values()), default=1)
    return Accuracies(series, _spread(full) if full and not everywhere else None, seeds)


def accuracy_table(accuracies: Accuracies) -> Table:
    """A row per IPC and a column per set; where those are many, a row per set."""
    series, full, _ = accuracies
    ipcs = sorted({point[0] for points in series.values() for point in points})
    cells = [
        [{p[0]: percent(p[1], p[2]) for p in points}.get(ipc, "") for ipc in ipcs]
        for points in series.values()
    ]
    heads, sides = [cell(int(ipc)) for ipc in ipcs], list(series)
    corner = "set, at IPC"
    if len(series) <= MOST_COLUMNS:
        if full is not None:
            heads, sides = [*heads, "all"], [*sides, FULL]
            cells = [[*row, ""] for row in cells]
            cells.append([*[""] * len(ipcs), percent(*full)])
        heads, sides, corner = sides, heads, "images per class"
        cells = [list(row) for row in zip(*cells)]
    body = [[side, *row] for side, row in zip(sides, cells)]
    return Table([corner, *heads], body, [False] + [True] * len(heads))


def _spread(rows: Records) -> tuple[float, float | None]:
    means = [row["mean"] for row in rows]
    std = statistics.stdev(means) if len(means) > 1 else rows[0]["std"]
    return statistics.mean(means), std


def distance_series(records: Records) -> dict[str, list[tuple[float, float]]]:
    """Matching distance of each segment over the outer iterations of the whole run."""
    series: dict[str, list[tuple[float, float]]] = {}
    outer = [r for r in records if r["kind"] == "outer" and r["distance"] is not None]
    for i, record in enumerate(outer):
        name = record.get("part") or f"segment {record['segment']}"
        series.setdefault(name, []).append((i + 1, record["distance"]))
    return series


def decile_series(rows: Records) -> dict[str, list[tuple[float, float]]]:
    """Accuracy by difficulty of the test images, of the largest set of each kind."""
    last = {row["set"]: row for row in sorted(rows, key=lambda row: row["ipc"])}
    return {
        name if name == FULL else f"{name} {row['ipc']}": [
            (i + 1, 100 * value)
            for i, value in enumerate(row["accuracy_by_decile"])
            if value is not None
        ]
        for name, row in last.items()
        if row.get("accuracy_by_decile")
    }


def histograms(records: Records, segment: int) -> list[dict[str, Any]]:
    """Difficulty of a pool, and of what the gradient is made of there."""
    found: dict[str, Any] = {}
    for record in records:
        if record.get("segment") == segment and record["kind"] in MATCHED:
            found["pool, by the run’s own score"] = record.get(
                "pool_share_by_difficulty_decile"
            )
        if record.get("segment") == segment and record["kind"] == "measures":
            found["pool, by real data’s networks"] = record.get("pool_share_by_decile")
            gradients = record.get("gradient_norm_share_by_decile") or {}
            for network, shares in gradients.items():
                found[f"gradient norm, {network} network"] = shares
    return [
        {"title": title, "bars": shares, "top": _top(shares)}
        for title, shares in found.items()
        if shares and None not in shares
    ]


def title(records: Records, segment: int) -> str:
    """What is said above a segment, or the polish that comes after the last one."""
    polishes = [r["segment"] for r in records if r["kind"] == "polish"]
    return "Polish of all segments" if segment in polishes else f"Segment {segment}"


def pool_text(records: Records, segment: int) -> str:
    """How many real images of a class a segment, or the polish, is matched with."""
    for record in records:
        if record["kind"] in MATCHED and record.get("segment") == segment:
            sizes = record.get("pool_sizes")
            if sizes:
                low, high = min(sizes), max(sizes)
                count = str(low) if low == high else f"{low} to {high}"
                return f"pool of {count} real images per class"
    return ""


def _top(shares: Sequence[float]) -> float:
    highest = max(shares)
    return next(top for top in (0.2, 0.25, 0.5, 1, highest) if highest <= top)


def segments_of(arrays: Mapping[str, np.ndarray]) -> tuple[list[Segment], str]:
    """Pictures of the stored images, and what of them is left out, in words."""
    pixels, labels, segments = (
        arrays[f"stored_{name}"] for name in ("pixels", "labels", "segments")
    )
    names = [printable(str(name)) for name in arrays["class_names"]]
    numbers = [int(number) for number in np.unique(segments)]
    each = pixels.shape[1] * pixels.shape[2] * len(numbers)
    classes = min(len(names), max(1, MOST_PIXELS // each))
    most = min(MOST_PER_SEGMENT, max(1, MOST_PIXELS // (each * classes)))
    found, left_out = [], False
    for number in numbers:
        strips, sizes = [], [0]
        for label, name in enumerate(names[:classes]):
            images = pixels[(segments == number) & (labels == label)]
            sizes.append(len(images))
            if len(images):
                strips.append(_strip(name, images[:most]))
        found.append(Segment(number, max(sizes), min(max(sizes), most), strips))
        left_out |= max(sizes) > most
    said = []
    if classes < len(names):
        said.append(f"the first {classes} of {len(names)} classes")
    if left_out:
        said.append(f"the first {most} images of a class in each segment")
    return found, " and ".join(said)


def _strip(name: str, images: np.ndarray) -> Strip:
    count = len(images)
    columns = min(count, STRIP_COLUMNS)
    picture = Image.fromarray(sprite(images, columns))
    if count % columns:  # nothing is to be seen where there is no image
        picture.putalpha(
            Image.fromarray(sprite(np.ones_like(images[..., :1]), columns))
        )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    text = base64.b64encode(buffer.getvalue()).decode()
    uri = f"data:image/png;base64,{text}"
    return Strip(name, uri, count, columns, -(-count // columns))


def sprite(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay f32[n, H, W, ch] in [0, 1] out as u8[rows · H, columns · W] or with RGB."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    values = np.rint(np.clip(np.nan_to_num(images), 0, 1) * 255).astype(np.uint8)
    values = values[..., :3] if channels >= 3 else values[..., :1]
    cells = np.zeros((rows * columns, *values.shape[1:]), np.uint8)
    cells[:count] = values
    sheet = cells.reshape(rows, columns, height, width, -1).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, -1)
    return sheet if sheet.shape[-1] == 3 else sheet[..., 0]


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of a nested config."""
    flat: list[tuple[str, Any]] = []
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat += flatten(value, f"{prefix}{name}.")
        else:
            flat.append((prefix + name, value))
    return flat


def markdown_parts(text: str) -> list[Table | Bullets | str]:
    """Tables, lists and paragraphs of a Markdown file as experiments write it."""
    parts: list[Table | Bullets | str] = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        if len(lines) > 2 and all(line.startswith("|") for line in lines):
            cells = [
                [html.unescape(cell.strip()) for cell in line.strip("|").split("|")]
                for line in lines
            ]
            columns, rows = cells[0], cells[2:]
            numeric = [False] + [True] * (len(columns) - 1)
            parts.append(Table(columns, rows, numeric))
        elif lines[0].startswith("- "):
            points = ("\n" + block).split("\n- ")[1:]
            parts.append(Bullets([html.unescape(point) for point in points]))
        else:
            parts.append(html.unescape(block))
    return parts
