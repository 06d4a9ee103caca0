"""The one style of all figures: sizes, colours that colour-blind readers can distinguish, and axes in readers' units.

Tables hold fractions and samples; percent and k, M, B appear on axes only.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's palette
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#767676"
SKY, BLACK = "#56B4E9", "#000000"
CORRECT, WRONG = GREEN, ORANGE
# Inches: a column and the full width of a page of two columns, so that figures are printed at their own size.
COLUMN, PAGE = 3.35, 6.9
SMALL = 6.5  # points, of direct labels and captions


@contextmanager
def figure(width: float, height: float, points: float = 9) -> Iterator[Figure]:
    """A figure of this size in inches, to be filled in the style; it belongs to no window and no global list.

    Args: points: size of its text; ticks and legends are a point smaller.
    """
    settings = matplotlib.rc_context(
        {
            "font.size": points,
            "axes.titlesize": points,
            "axes.labelsize": points,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.4,
            "legend.frameon": False,
            "xtick.labelsize": points - 1,
            "ytick.labelsize": points - 1,
            "legend.fontsize": points - 1,
            "pdf.fonttype": 42,  # text stays text
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


def draw_caption(drawn: Figure, caption: str) -> None:
    """Writes the caption under the figure, in lines as long as the figure is wide; nothing where it is empty."""
    if not caption:
        return
    characters = int(drawn.get_figwidth() * 72 / (0.56 * SMALL))
    lines = "\n".join(textwrap.wrap(caption, characters))
    drawn.supxlabel(lines, x=0.01, ha="left", fontsize=SMALL, color=GREY, linespacing=1.25, parse_math=False)


def percent_axis(axes: Axes, which: str = "y") -> None:
    """The axis holds fractions and shows percent."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def label_points(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    labels: Sequence[str],
    color: str = BLACK,
    size: float = SMALL,
    line: np.ndarray | None = None,
) -> None:
    """Writes each label beside its point, where it covers the fewest other points and labels.

    Call it when the axes have their limits; it lays the figure out first, since places are compared in pixels.

    Args:
        line: points [n, 2] of a line that labels should not cover either.
    """
    drawn = axes.get_figure(root=True)
    assert drawn is not None
    drawn.draw_without_rendering()
    (left, bottom), (right, top) = axes.get_window_extent().get_points()
    points = axes.transData.transform(np.column_stack([x, y]))
    taken = [np.concatenate([points - 4, points + 4], axis=1)]
    if line is not None:
        along = axes.transData.transform(line)
        taken.append(np.concatenate([along - 1, along + 1], axis=1))
    pixel = drawn.dpi / 72
    for k in sorted(range(len(labels)), key=lambda k: -points[k, 1]):
        text = axes.annotate(labels[k], (x[k], y[k]), fontsize=size, parse_math=False, annotation_clip=False)
        extent = text.get_window_extent()
        text.remove()
        extents = np.array([extent.width, extent.height])
        others = np.concatenate([np.delete(taken[0], k, axis=0), *taken[1:]])
        costs = []
        for distance, across, up in _PLACES:
            middle = points[k] + pixel * distance * np.array([across, up])
            low = middle + 0.5 * (np.array([across, up]) - 1) * extents
            box = np.concatenate([low, low + extents])
            inside = _common(box, np.array([[left, bottom, right, top]]))
            outside = extent.width * extent.height - inside
            costs.append((distance + 3 * outside + _common(box, others), (distance, across, up), box))
        _, (distance, across, up), box = min(costs, key=lambda cost: cost[0])
        thread = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            labels[k], (x[k], y[k]), (across * distance, up * distance), textcoords="offset points",
            ha={1: "left", 0: "center", -1: "right"}[across], va={1: "bottom", 0: "center", -1: "top"}[up],
            fontsize=size, color=color, parse_math=False, annotation_clip=False,
            arrowprops=thread if distance > _PLACES[0][0] else None,
        ).set_in_layout(False)  # fmt: skip
        taken.append(box[None])


# Where a label may be: distance from its point in points, and the direction.
_PLACES = [
    (distance, across, up)
    for distance in (4, 8, 13)
    for across, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


def _common(box: np.ndarray, others: np.ndarray) -> float:
    """Area that a box [4] shares with others [n, 4], in pixels; a box is its lower left and upper right corner."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.prod(np.maximum(sides, 0), axis=1).sum())
