"""``report.html``: all that a run wrote, in one page that needs nothing else.

The page holds no script and asks for nothing outside itself, which its own
Content-Security-Policy enforces. It is a function of the other files of the workdir:
the same files give the same bytes.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from dasm_jax import plots
from dasm_jax import report_parts as parts
from dasm_jax.errors import CannotRead, UserError
from dasm_jax.files import is_there, not_ours, read_json, write_atomically
from dasm_jax.npz import DAMAGE, open_npz
from dasm_jax.report_parts import NOT_METHODS, Records, percent
from dasm_jax.workdir import REPORT

TEMPLATES = Path(__file__).parent / "templates"
CELL = 40  # px of an image on the page, about


def write_report(workdir: Path) -> None:
    """Write ``report.html`` from the files of a run, as far as they are there.

    Raises:
      CannotRead: one of them cannot be read now.
      UserError: one is damaged, or the page cannot be written.
    """
    try:
        page = render(
            config=_json(workdir / "config.json"),
            summary=_json(workdir / "summary.json"),
            manifest=_json(workdir / "manifest.json"),
            records=_records(workdir / "metrics.jsonl"),
            arrays=_arrays(workdir / "synthetic.npz"),
            markdown=_text(workdir / "table.md"),
            files=_files(workdir),
        )
    except UserError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
        jinja2.TemplateError,
    ) as error:
        raise UserError(
            f"{workdir} holds files that no run writes, so there is no {REPORT}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    # A name may hold half of a surrogate pair, which no encoding has.
    content = page.encode("utf-8", errors="replace")
    write_atomically(workdir / REPORT, lambda file: file.write(content))


def render(
    *,
    config: dict[str, Any],
    summary: dict[str, Any],
    manifest: dict[str, Any],
    records: Records,
    arrays: Mapping[str, np.ndarray],
    markdown: str,
    files: list[tuple[str, str]],
) -> str:
    """The page, of whatever is not empty."""
    rows = summary.get("table", [])
    segments, left_out = parts.segments_of(arrays) if arrays else ([], "")
    measures, cells = _of_kind(records, "measures"), _of_kind(records, "cell")
    # Rows of other tables, such as one of networks, are shown as they are.
    sized = rows if all({"set", "ipc", "mean"} <= row.keys() for row in rows) else []
    accuracies = parts.accuracies_of(sized) if sized else None
    names = [_dataset(config, summary), _method(config, sized)]
    numbers = sorted({s.number for s in segments} | _numbers(records))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = parts.cell
    return environment.get_template(REPORT).render(
        title=" · ".join(filter(None, names)),
        headline=_headline(sized),
        facts=_facts(config, summary, manifest),
        table=parts.accuracy_table(accuracies) if accuracies else None,
        full_text=percent(*accuracies.full) if accuracies and accuracies.full else "",
        # Seeds are means already in the rows of a curve.
        seeds=len(summary.get("seeds", ())) or (accuracies.seeds if accuracies else 1),
        # Its own table.md says more of them than their scalars do.
        all_rows=parts.table_of(rows) if sized or (rows and not markdown) else None,
        networks=summary.get("evaluation_networks"),
        steps=summary.get("evaluation_steps"),
        markdown=[
            part
            for part in (parts.markdown_parts(markdown) if markdown.strip() else [])
            if not (accuracies and isinstance(part, parts.Table))  # as shown above
        ],
        cells=parts.table_of(cells) if cells else None,
        accuracy=_accuracy_svg(accuracies),
        deciles=_decile_svg(sized),
        distance=_distance_svg(records),
        segments=[
            {
                "number": number,
                "title": parts.title(records, number),
                "pool": parts.pool_text(records, number),
                "histograms": parts.histograms(records, number),
                "pictures": next((s for s in segments if s.number == number), None),
            }
            for number in numbers
        ],
        left_out=left_out,
        image=_image_facts(arrays),
        measures=parts.table_of(measures) if measures else None,
        time=_time(summary, manifest),
        command=_command(manifest.get("argv", [])),
        origin=[
            (name, manifest[key])
            for name, key in (("commit", "git_commit"), ("data", "data_hash"))
            if manifest.get(key)
        ],
        versions=list(manifest.get("versions", {}).items()),
        config=parts.flatten(config),
        files=files,
    )


def _of_kind(records: Records, kind: str) -> Records:
    return [
        {key: value for key, value in r.items() if key not in ("kind", "seconds")}
        for r in records
        if r["kind"] == kind
    ]


def _numbers(records: Records) -> set[int]:
    kinds = (*parts.MATCHED, "measures")
    return {r["segment"] for r in records if r["kind"] in kinds}


def _dataset(config: dict[str, Any], summary: dict[str, Any]) -> str:
    return str(summary.get("dataset") or config.get("data", {}).get("name") or "a run")


def _method(config: dict[str, Any], rows: Records) -> str:
    methods = dict.fromkeys(row["set"] for row in rows if row["set"] not in NOT_METHODS)
    if 0 < len(methods) <= 3:
        return ", ".join(methods)
    return str(config.get("experiment", ""))


def _headline(rows: Records) -> list[tuple[str, str]]:
    """Accuracy of the largest set of each kind, where there are few kinds."""
    last = {row["set"]: row for row in sorted(rows, key=lambda row: row["ipc"])}
    if not 0 < len(last) <= 4 or len(last) * 20 < len(rows):
        return []
    return [
        (
            "Full" if name == "Full" else f"{name} at IPC {row['ipc']}",
            percent(row["mean"], row["std"]) + " %",
        )
        for name, row in last.items()
    ]


def _facts(
    config: dict[str, Any], summary: dict[str, Any], manifest: dict[str, Any]
) -> list[tuple[str, Any]]:
    makes_a_set = config.get("experiment") in ("distill", "recover")
    distils = config.get("experiment") == "distill"
    facts = {
        "Dataset": _dataset(config, summary),
        "Experiment": config.get("experiment"),
        "Matcher": config.get("matcher", {}).get("name") if distils else None,
        "Images per class": config.get("ipc") if makes_a_set else None,
        "Segments": config.get("dasm", {}).get("segments") if distils else None,
        "Seed": summary.get("seed", config.get("seed")) if makes_a_set else None,
        "Date": manifest.get("date", "")[:16].replace("T", " ") or None,
        "Device": ", ".join(dict.fromkeys(manifest.get("devices", []))) or None,
        "CPU cores": manifest.get("cpu_count"),
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _command(argv: list[str]) -> str:
    """The command line, as a shell takes it: an option a line."""
    if not argv:
        return ""
    words = [shlex.quote(word) for word in argv]
    if argv[0].endswith(".py"):
        words[0] = f"python {words[0]}"
    return " \\\n    ".join(words)


def _time(summary: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    phases = manifest.get("wall_seconds", {})
    total = sum(phases.values())
    inside = {
        name.removeprefix("seconds_"): value
        for name, value in summary.items()
        if name.startswith("seconds_")
    }
    peaks = manifest.get("peak_memory_bytes", {})
    return {
        "total": total,
        "phases": [(n, s, 100 * s / total if total else 0) for n, s in phases.items()],
        "inside": list(inside.items()),
        "peaks": [(name, peak) for name, peak in peaks.items() if peak],
    }


def _image_facts(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if not arrays:
        return {}
    _, height, width, channels = arrays["stored_pixels"].shape
    return {
        "height": height,
        "width": width,
        "colour": "colour" if channels >= 3 else "grey",
        "cell": width * max(1, round(CELL / width)),
        "factor": int(arrays["factor"]),
        "stored": len(arrays["stored_pixels"]),
        "decoded": len(arrays["labels"]),
    }


def _accuracy_svg(accuracies: parts.Accuracies | None) -> str:
    if accuracies is None:
        return ""
    series, full, _ = accuracies
    if max(map(len, series.values()), default=0) < 2:
        return ""
    said = [
        f"{name}: "
        + ", ".join(f"{percent(mean, std)} at {ipc:g}" for ipc, mean, std in points)
        for name, points in series.items()
    ]
    said += [f"Full: {percent(*full)}"] if full else []
    label = "Test accuracy in % over images per class. " + "; ".join(said)
    return plots.to_svg(plots.accuracy_curves(series, full), "accuracy", label)


def _decile_svg(rows: Records) -> str:
    series = parts.decile_series(rows)
    if not series:
        return ""
    said = [f"{n}: {p[0][1]:.1f} to {p[-1][1]:.1f}" for n, p in series.items() if p]
    figure = plots.line_curves(
        series,
        x_label="difficulty decile of the test images, easiest first",
        y_label="accuracy, %",
    )
    label = "Accuracy in % from the easiest to the hardest decile. " + "; ".join(said)
    return plots.to_svg(figure, "deciles", label)


def _distance_svg(records: Records) -> str:
    series = parts.distance_series(records)
    if not series:
        return ""
    said = [f"{n}: {p[0][1]:.4g} to {p[-1][1]:.4g}" for n, p in series.items()]
    figure = plots.line_curves(
        series,
        x_label="outer iteration",
        y_label="matching distance",
        markers=max(map(len, series.values())) <= 20,
        log_y=True,
    )
    label = "Matching distance over outer iterations. " + "; ".join(said)
    return plots.to_svg(figure, "distance", label)


# --- files ----------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if is_there(path) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _records(path: Path) -> Records:
    records = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            record = json.loads(line)
            record["kind"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"line {number} of {path} is damaged; remove that line"
            ) from None
        records.append(record)
    return records


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not is_there(path):
        return {}
    names = ("pixels", "labels", "segments")
    wanted = ("labels", "factor", "class_names", *(f"stored_{name}" for name in names))
    try:
        with open_npz(path) as reader:
            return {name: reader.array(name) for name in wanted}
    except CannotRead:
        raise
    except DAMAGE as error:
        raise not_ours(path, error, path.with_name("summary.json")) from None


def _files(workdir: Path) -> list[tuple[str, str]]:
    """Names and sizes, without the report itself and what is hidden."""
    found = []
    for path in sorted(workdir.iterdir()):
        if path.name == REPORT or path.name.startswith("."):
            continue
        try:
            if path.is_dir():
                count = sum(1 for _ in path.iterdir())
                found.append((f"{path.name}/", f"{count} file{'s' * (count != 1)}"))
            else:
                found.append((path.name, f"{parts.cell(path.stat().st_size)} bytes"))
        except OSError:  # a link to a disk that is not there
            found.append((path.name, "cannot be read"))
    return found
