"""How all plots look: colours, markers, names that are not too long.

Importing it takes as long as matplotlib does.
"""

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib

# Each is told from the others by colour-blind readers, and by contrast from white and
# from black paper; markers say it once more.
COLOURS = (
    "#0f7bc0",
    "#d55e00",
    "#0b9370",
    "#c05a96",
    "#8a6d1b",
    "#7a64cc",
    "#b98100",
    "#4b9fb5",
    "#7f7f7f",
    "#c8473c",
)
MARKERS = "osD^vPX<>*"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
INK = "#1b1b1c"  # text and axes; the page's own text colour in SVG
LONGEST_NAME = 28
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dasm_jax",
}


@contextmanager
def style() -> Iterator[None]:
    """Nothing but what is here decides how a figure is drawn inside."""
    # A file of the user's must not change what is drawn, nor a rare glyph say a word.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def look(i: int) -> dict[str, Any]:
    """Of the i-th line: colours first, then dashes."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
    }


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """A name as it is shown, cut where it is too long."""
    name = clean(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def clean(text: str) -> str:
    """Replace what XML cannot hold: control characters and lone surrogates."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text
    )
