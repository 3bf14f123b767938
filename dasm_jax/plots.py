"""Plots of results."""

import io
from typing import Any

# name -> (ipc, mean, std) of every size
Series = dict[str, list[tuple[int, float, float | None]]]


def accuracy_curves(
    series: Series, full: tuple[float, float | None] | None, *, title: str
) -> Any:
    """Accuracy over images per class: mean line, std band, the full set dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        ipcs = [ipc for ipc, _, _ in points]
        means = [100 * mean for _, mean, _ in points]
        stds = [100 * (std or 0.0) for _, _, std in points]
        (line,) = axes.plot(ipcs, means, marker="o", label=name)
        low = [mean - std for mean, std in zip(means, stds)]
        high = [mean + std for mean, std in zip(means, stds)]
        axes.fill_between(ipcs, low, high, color=line.get_color(), alpha=0.2)
    if full is not None:
        axes.axhline(100 * full[0], linestyle="--", color="black", label="Full")
    axes.set_xscale("log")
    axes.set(title=title, xlabel="images per class", ylabel="test accuracy (%)")
    axes.legend(fontsize="small")
    return figure


def as_png(figure: Any) -> bytes:
    """The figure at 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
