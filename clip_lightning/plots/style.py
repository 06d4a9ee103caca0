"""The one style of all figures: sizes, colours that colour-blind readers can distinguish, and axes in readers' units.

Tables hold fractions and samples; percent and k, M, B appear on axes only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's palette
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#767676"
CORRECT, WRONG = GREEN, ORANGE


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of this size in inches, to be filled in the style; it belongs to no window and no global list."""
    settings = matplotlib.rc_context(
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.labelsize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.4,
            "legend.frameon": False,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
        }
    )
    with settings:
        yield Figure(figsize=(width, height), dpi=150, layout="constrained")


def short_count(count: float, _position: int | None = None) -> str:
    """12800000 -> '12.8M'."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{round(count / size, 1):g}{suffix}"
    return f"{count:g}"


def samples_axis(axes: Axes) -> None:
    """The x axis counts samples from 0."""
    axes.set_xlim(left=0)
    axes.set_xlabel("samples seen")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(short_count))


def percent(fraction: float, digits: int = 1) -> str:
    """0.6143 -> '61.4'."""
    return f"{100 * fraction:.{digits}f}"
