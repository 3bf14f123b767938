"""How the evaluation of sets is scored and printed."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dasm_jax import ranking
from dasm_jax.evaluate import Accuracy
from dasm_jax.experiments.common import percent
from dasm_jax.experiments.document import as_text

Row = dict[str, Any]

LABEL = 18  # columns of what a row is of

HEAD = (
    f"{'images':<{LABEL}}{'accuracy':>12}{'HLR':>7}{'IOR':>7}{'LRS':>7}{'ARS':>7}"
    f"{'seconds':>10}{'peak MB':>10}"
)


def add_scores(rows: list[Row]) -> None:
    """Add HLR, IOR, LRS and ARS to the rows of sets that have what they need.

    As DD-Ranking does, per network first: network n starts from the same weights on
    every set. ``row["hlr"]`` holds mean and std over the networks, in fractions.
    """
    iors: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        random, full = (_beside(row, rows, kind) for kind in ("Random", "Full"))
        if row["images"] != "set" or random is None or full is None:
            continue
        synthetic = row["networks"]
        pairs = zip(full["networks"], synthetic)
        hlr = [ranking.hard_label_recovery(*pair) for pair in pairs]
        pairs = zip(synthetic, random["networks"])
        ior = [ranking.improvement_over_random(*pair) for pair in pairs]
        lrs = [ranking.label_robust_score(h, i) for h, i in zip(hlr, ior)]
        for name, values in (("hlr", hlr), ("ior", ior), ("lrs", lrs)):
            row[name] = _moments(values)
        iors[_place(row)] = ior
    for row in rows:
        architecture, augmentation, *rest = _place(row)
        ours = iors.get(_place(row))
        without = iors.get((architecture, "none", *rest))
        if augmentation == "none" or ours is None or without is None:
            continue
        both = zip(ours, without)
        row["ars"] = _moments([ranking.augmentation_robust_score(*b) for b in both])


def _moments(values: list[float]) -> list[float | None]:
    of_networks = Accuracy(tuple(values))
    return [of_networks.mean, of_networks.std]


def _place(row: Row) -> tuple[Any, ...]:
    return row["architecture"], row["augmentation"], row["images"], tuple(row["sets"])


def _beside(row: Row, rows: list[Row], kind: str) -> Row | None:
    """Random or Full for a set, unless it is missing or any of the two failed."""
    if "failure" in row:
        return None
    for other in rows:
        if (
            other["images"] == kind
            and _place(other)[:2] == _place(row)[:2]
            and set(row["sets"]) <= set(other["sets"])
            and "failure" not in other
        ):
            return other
    return None


def _label(row: Row, summary: Row) -> str:
    """What a row is of: the number of a set, or a baseline and which sets it is for."""
    numbers = _ranges(row["sets"])
    if row["images"] == "set":
        return f"set {numbers}"
    everyone = len(row["sets"]) == len(summary["sets"])
    return row["images"] if everyone else f"{row['images']} for {numbers}"


def _ranges(numbers: list[int]) -> str:
    """Rising numbers as ``1-4,6``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _named(row: Row, summary: Row) -> str:
    """The label of a row with the name of its file, where there is room for it."""
    label = _label(row, summary)
    if row["images"] != "set":
        return label
    path = Path(summary["sets"][row["sets"][0] - 1]["path"])
    # Every workdir calls its set the same.
    name = path.parent.name if path.name == "synthetic.npz" else path.stem
    return f"{label}, {as_text(name)}"


def _shown_path(path: str) -> str:
    here = Path.cwd()
    return (
        str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
    )


def _describe_sets(summary: Row) -> list[str]:
    return [
        f"set {number}: {_shown_path(s['path'])}, {s['stored_images']:,} stored images "
        f"of {s['stored_bytes']:,} bytes, {s['decoded_images']:,} decoded (f = "
        f"{s['factor']}), {s['steps']:,} steps"
        for number, s in enumerate(summary["sets"], 1)
    ]


def _describe_recipe(name: str, recipe: dict[str, Any]) -> str:
    cutmix = f"CutMix {recipe['cutmix']:g}" if recipe["cutmix"] else "no CutMix"
    return (
        f"{name}: {recipe['augment']}, {cutmix}, batch {recipe['batch']}, lr "
        f"{recipe['lr']:g}"
    )


def _groups(summary: Row) -> Iterator[tuple[str, str, list[Row]]]:
    """Rows by augmentation and architecture."""
    rows = summary["table"]
    for augmentation in summary["recipes"]:
        for architecture in dict.fromkeys(row["architecture"] for row in rows):
            place = (architecture, augmentation)
            yield (
                augmentation,
                architecture,
                [row for row in rows if _place(row)[:2] == place],
            )


def _notes(summary: Row) -> list[str]:
    return [
        f"{summary['dataset']}: {summary.get('split', 'test')} accuracy in % at the "
        "last step, mean ± std of "
        f"{summary['evaluation_networks']} networks per cell, hard labels. Random: "
        "real images, as many of each class as the set stores; Full: all of them; both "
        "for as many steps as the set. HLR = Full − set and IOR = set − Random in "
        "points, LRS and ARS in [0, 1] (DD-Ranking). Seconds are with compiling; peak "
        "memory is the highest of the process so far. *: kept, not run again.",
    ]


def _cells(row: Row) -> dict[str, str]:
    """The columns of a row as text."""
    if "failure" in row:
        return {"accuracy": "failed"}
    texts = {"accuracy": percent(row["mean"], row["std"])}
    for name in ("hlr", "ior"):
        if name in row:
            texts[name] = f"{100 * row[name][0]:.1f}"
    for name in ("lrs", "ars"):
        if name in row:
            texts[name] = f"{row[name][0]:.3f}"
    texts["seconds"] = f"{row['wall_seconds']:.1f}" + "*" * row["reused"]
    texts["peak"] = f"{row['peak_bytes'] / 1e6:,.0f}"
    return texts


def render(summary: Row) -> str:
    """The table for a terminal, at most 80 columns."""
    lines = textwrap.wrap(_notes(summary)[0], 80)
    for text in _describe_sets(summary):
        lines += textwrap.wrap(text, 80, subsequent_indent="  ")
    above = None
    for augmentation, architecture, rows in _groups(summary):
        if augmentation != above:
            recipe = _describe_recipe(augmentation, summary["recipes"][augmentation])
            lines += ["", *textwrap.wrap(recipe, 80), HEAD]
            above = augmentation
        lines += textwrap.wrap(architecture, 80)
        for row in rows:
            texts = _cells(row)
            label = _cut(f"  {_label(row, summary)}", LABEL)
            line = f"{label:<{LABEL}}{texts['accuracy']:>12}"
            for name, width in (("hlr", 7), ("ior", 7), ("lrs", 7), ("ars", 7)):
                line += f"{texts.get(name, ''):>{width}}"
            line += f"{texts.get('seconds', ''):>10}{texts.get('peak', ''):>10}"
            lines.append(line.rstrip())
    for text in _failures(summary):
        lines += textwrap.wrap(text, 80, subsequent_indent="  ")
    lines += ["", _best_head(summary)]
    for text in _best(summary):
        lines += textwrap.wrap(f"  {text}", 80, subsequent_indent="    ")
    return "\n".join(lines)


def _failures(summary: Row) -> list[str]:
    return [
        f"failed: {row['architecture']}, {row['augmentation']}, "
        f"{_label(row, summary)}: {row['failure']}"
        for row in summary["table"]
        if "failure" in row
    ]


def _best(summary: Row) -> Iterator[str]:
    """The best looks of every group of rows."""
    for augmentation, architecture, rows in _groups(summary):
        cells = [
            f"{_label(row, summary)} {percent(row['best_mean'], row['best_std'])}"
            for row in rows
            if "failure" not in row
        ]
        yield f"{augmentation}, {architecture}: {'; '.join(cells)}"


def _best_head(summary: Row) -> str:
    return f"best of {summary['looks']} looks: best on the test split, not a result"


def markdown(summary: Row) -> str:
    """The table as Markdown: networks beside each other, then every cell in full."""
    lines = [*textwrap.wrap(as_text(_notes(summary)[0]), 80), ""]
    for text in map(as_text, _describe_sets(summary)):
        lines += textwrap.wrap(f"- {text}", 80, subsequent_indent="  ")
    architectures = list(dict.fromkeys(row["architecture"] for row in summary["table"]))
    for augmentation, recipe in summary["recipes"].items():
        lines += ["", f"Augmentation {_describe_recipe(augmentation, recipe)}", ""]
        lines.append("| images | " + " | ".join(architectures) + " |")
        lines.append("|---" * (len(architectures) + 1) + "|")
        by_label: dict[str, dict[str, str]] = {}
        for _, architecture, rows in _groups(summary):
            for row in rows:
                if row["augmentation"] == augmentation:
                    cells = by_label.setdefault(_named(row, summary), {})
                    cells[architecture] = _cells(row)["accuracy"]
        for label, cells in by_label.items():
            texts = [cells.get(name, "") for name in architectures]
            lines.append(f"| {label} | " + " | ".join(texts) + " |")
    lines += [
        "",
        "| augmentation | network | images | steps | accuracy | HLR | IOR | LRS | ARS "
        "| stored bytes | seconds | peak MB |",
        "|---" * 12 + "|",
    ]
    for augmentation, architecture, rows in _groups(summary):
        for row in rows:
            texts = _cells(row)
            names = ("accuracy", "hlr", "ior", "lrs", "ars")
            cells = [
                augmentation,
                architecture,
                _label(row, summary),
                f"{row['steps']:,}",
                *(texts.get(name, "") for name in names),
                f"{row['stored_bytes']:,}",
                texts.get("seconds", ""),
                texts.get("peak", ""),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- {as_text(text)}" for text in _failures(summary))]
    lines += ["", f"{_best_head(summary)}:", ""]
    for text in _best(summary):
        lines += textwrap.wrap(f"- {text}", 80, subsequent_indent="  ")
    return "\n".join(lines) + "\n"
