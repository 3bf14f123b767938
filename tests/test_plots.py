"""Figures: curves with bands and every name, as PNG and as SVG."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dasm_jax import plots
from dasm_jax.errors import UserError


@pytest.fixture(scope="module")
def ten():
    series = {
        f"method_{i} $_^$": [(ipc, 0.1 * i, 0.02) for ipc in (1, 10, 20, 50)]
        for i in range(10)
    }
    return plots.accuracy_curves(series, (0.95, 0.01), title="<t> $^$")


def test_curves_show_bands_full_and_every_name(ten):
    (axes,) = ten.axes
    lines = {line.get_linestyle() for line in axes.lines}
    assert lines == {"-", "--"}
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "10", "20", "50"]
    assert axes.get_xscale() == "log"
    assert len(axes.collections) == 10
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 11
    svg = ElementTree.fromstring(plots.to_svg(ten, "p", "said"))
    words = [element.text for element in svg.iter("text")]
    assert {"Full", "<t> $^$", *(f"method_{i} $_^$" for i in range(10))} <= set(words)


def test_curves_as_a_small_png(ten, tmp_path):
    plots.save_png(ten, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size < 150_000
    first = (tmp_path / "curve.png").read_bytes()
    plots.save_png(ten, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == first
    with pytest.raises(UserError, match="cannot write"):
        plots.save_png(ten, tmp_path / "no" / "curve.png")


def test_odd_names_and_values_are_drawn():
    figure = plots.accuracy_curves(
        {"_hidden": [(5, 0.5, None)], "\x00鳥\ud800": [(5, 0.5, 0.1)], "": []}, None
    )
    svg = plots.to_svg(figure, "p", "\x07")
    words = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert "_hidden" in words
    assert "\ufffd鳥\ufffd" in words
    flat = {"a": [(1.0, 0.0)]}
    plots.to_svg(plots.line_curves(flat, x_label="x", y_label="y", log_y=True), "q", "")


def test_starting_does_not_wait_for_matplotlib():
    code = "import sys, dasm_jax.run; print('matplotlib' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert found.stdout.strip() == "False"
