"""Curves, as figures for a PNG file and for the SVG of the report.

Importing it takes a third of a second: import it where something is drawn.
"""

import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dasm_jax.files import write_atomically
from dasm_jax.plot_style import COLOURS, INK, clean, look, short, style

MOST_POINTS = 300  # of a line; a screen shows no more
Point = tuple[float, float, float | None]


def accuracy_curves(
    series: Mapping[str, Sequence[Point]],
    full: tuple[float, float | None] | None,
    *,
    title: str = "",
) -> Figure:
    """Draw accuracy over images per class as Figure 1 of the DASM paper does.

    Args:
      series: name → (images per class, mean, std) with accuracies in [0, 1]; a line
        through the means with a band of ± std, where there is a std.
      full: mean and std on all real images, a dashed line.
      title: above the axes; names and titles are shown as they are, never as TeX.
    """
    with style():
        figure, axes = _axes(title, [*series, *["Full"] * (full is not None)])
        handles = {}
        for i, (name, points) in enumerate(series.items()):
            points = sorted(points)
            x = [point[0] for point in points]
            y = [100 * point[1] for point in points]
            (line,) = axes.plot(x, y, **look(i), markevery=1)
            spread = [100 * (point[2] or 0) for point in points]
            if any(spread):
                low = [mean - std for mean, std in zip(y, spread)]
                high = [mean + std for mean, std in zip(y, spread)]
                axes.fill_between(
                    x, low, high, color=line.get_color(), alpha=0.15, linewidth=0
                )
            handles[name] = line
        if full is not None:
            mean, std = 100 * full[0], 100 * (full[1] or 0)
            if std:
                axes.axhspan(mean - std, mean + std, color=INK, alpha=0.08, linewidth=0)
            handles["Full"] = axes.axhline(mean, color=INK, linestyle="--", linewidth=1)
        axes.set_xscale("log")
        _ticks_at(axes, sorted({p[0] for points in series.values() for p in points}))
        axes.set_xlabel("images per class")
        axes.set_ylabel("accuracy, %")
        _legend(figure, handles)
        return figure


def line_curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    markers: bool = True,
    log_y: bool = False,
) -> Figure:
    """Draw (x, y) lines; long ones are thinned to what a screen can show.

    ``log_y`` is taken where the values are positive and span more than a decade or so.
    """
    with style():
        figure, axes = _axes(title, list(series))
        handles = {}
        for i, (name, points) in enumerate(series.items()):
            step = max(1, math.ceil(len(points) / MOST_POINTS))
            shown = [*points[:-1:step], *points[-1:]]
            seen: Any = look(i) if markers else look(i) | {"marker": ""}
            (handles[name],) = axes.plot(
                [point[0] for point in shown], [point[1] for point in shown], **seen
            )
        values = [y for points in series.values() for _, y in points]
        if log_y and min(values, default=0) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, handles if len(handles) > 1 else {})
        return figure


def line_panels(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    x_label: str,
    title: str = "",
) -> Figure:
    """Draw (x, y) lines in panels side by side; a name looks alike in all of them.

    Args:
      panels: title → name → points.
      x_label: below each panel.
      title: above them.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    count = max(len(panels), 1)
    rows = math.ceil(len(names) / max(_columns(names), 1))
    with style():
        size = (0.4 + 2.5 * count, 2.7 + 0.19 * rows)
        figure, each = _panels(panels, size, title)
        handles = {}
        for axes, panel in zip(each, panels.values()):
            axes.grid(True)
            for name, points in panel.items():
                (handles[name],) = axes.plot(
                    [point[0] for point in points],
                    [point[1] for point in points],
                    **look(names.index(name)),
                )
            axes.set_ylim(bottom=0)
            axes.set_xlabel(x_label, parse_math=False)
        _legend(figure, handles)
        return figure


def intervals(
    panels: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]],
    x_label: str,
    *,
    title: str = "",
) -> Figure:
    """Draw differences with their intervals: a panel beside the other, a row a name.

    Args:
      panels: title → name → (value, low, high), all in [-1, 1], drawn in points; low
        and high are None where nothing is known of them.
      x_label: below the panels.
      title: above them.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    count = max(len(panels), 1)
    with style():
        size = (1.6 + 2.1 * count, 1.2 + 0.22 * len(names))
        figure, each = _panels(panels, size, title, sharey=True)
        for axes, panel in zip(each, panels.values()):
            axes.axvline(0, color=INK, linewidth=0.8)
            axes.grid(True, axis="x")
            for name, (value, low, high) in panel.items():
                row = names.index(name)
                seen = low is not None and high is not None and not low <= 0 <= high
                colour: Any = {"color": COLOURS[0] if seen else COLOURS[8]}
                if low is not None and high is not None:
                    axes.plot([100 * low, 100 * high], [row, row], **colour)
                axes.plot([100 * value], [row], marker="o", **colour)
            axes.set_xlabel(x_label, parse_math=False)
        each[0].set_yticks(range(len(names)), [short(name) for name in names])
        for label in each[0].get_yticklabels():
            label.set_parse_math(False)
        each[0].set_ylim(max(len(names), 1) - 0.5, -0.5)
        return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure at 150 dpi.

    Raises:
      UserError: it cannot be written.
    """
    content = to_png(figure)
    write_atomically(path, lambda file: file.write(content))


def to_png(figure: Figure) -> bytes:
    """A PNG file at 150 dpi; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(
            buffer,
            format="png",
            dpi=150,
            facecolor="white",
            metadata={"Software": None},
        )
    return buffer.getvalue()


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Turn a figure into an ``<svg>`` element for an HTML page.

    It has no namespaces, metadata or style sheet, and takes the colour of the text
    around it; equal figures give equal text.

    Args:
      figure: what to draw.
      name: put before every id, because a page has one set of ids.
      label: what it shows, for those who do not see it.
    """
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        old = dict(element.attrib)
        element.attrib.clear()
        for key, value in old.items():
            key = key.rpartition("}")[2]
            if key == "id":
                value = f"{name}-{value}"
            elif key == "href":
                value = f"#{name}-{value[1:]}"
            value = value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
            if key == "style":  # in the page's font
                value = re.sub(r"font-family:[^;]*;\s*", "", value)
            element.set(key, value)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": clean(label)}
    return ElementTree.tostring(root, encoding="unicode")


def _axes(title: str, names: Sequence[str]) -> tuple[Figure, Axes]:
    rows = math.ceil(len(names) / _columns(names)) if len(names) > 1 else 0
    figure = Figure(figsize=(4.6, 2.9 + 0.19 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_title(short(title, 60), loc="left", parse_math=False)
    return figure, axes


def _panels(
    titles: Collection[str],
    size: tuple[float, float],
    title: str,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(short(title, 60), fontsize=10, parse_math=False)
    columns = max(len(titles), 1)
    each = [*figure.subplots(1, columns, sharey=sharey, squeeze=False)[0]]
    for axes, panel_title in zip(each, titles):
        axes.set_title(short(panel_title, 36), loc="left", parse_math=False)
        axes.set_axisbelow(True)
    return figure, each


def _ticks_at(axes: Axes, values: list[float]) -> None:
    """Label ``values``, but none that would run into the one before."""
    span = math.log(values[-1] / values[0]) if values else 0
    shown: list[float] = []
    for value in values:
        if not shown or math.log(value / shown[-1]) > 0.045 * span:
            shown.append(value)
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.set_xticks([], minor=True)


def _columns(names: Sequence[str]) -> int:
    longest = max((len(short(name)) for name in names), default=0)
    return min(len(names), 4 if longest < 8 else 3 if longest < 15 else 2)


def _legend(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    if not handles:
        return
    legend = figure.legend(
        list(handles.values()),
        [str(i) for i in range(len(handles))],
        loc="outside lower center",
        ncols=_columns(list(handles)),
        handlelength=2.4,
        columnspacing=1.4,
    )
    # Set here, because a legend leaves out labels that begin with an underscore.
    for text, name in zip(legend.get_texts(), handles):
        text.set_parse_math(False)
        text.set_text(short(name))
