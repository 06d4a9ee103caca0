"""Horizontal bars, one per data set: Figures 5, 7, 11 and 14 of Radford et al. 2021."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from clip_lightning.plots.style import BLUE, COLUMN, GREY, ORANGE, SMALL, draw_caption, figure

_ROW = 0.155  # inches
_MARGIN = 0.75
_FEWEST_ROWS = 5  # a figure has space for so many: fewer leave none for its axis and caption


def difference_bars(panels: Sequence[tuple[str, pd.DataFrame]], xlabel: str, caption: str = "") -> Figure:
    """Differences of two scores by data set, the largest on top; blue where the first is better, orange where worse.

    Args:
        panels: title and rows: task, value (fractions of 1), and `low`, `high` where the difference has an interval.
    """
    num_rows = max(_FEWEST_ROWS, *(len(rows) for _, rows in panels))
    with figure(COLUMN * len(panels), _ROW * num_rows + _MARGIN + 0.35, 8) as drawn:
        draw_caption(drawn, caption)
        axes_of_panels = drawn.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, rows) in zip(axes_of_panels, panels, strict=True):
            draw_differences(axes, rows.sort_values("value", ascending=False, kind="stable"))
            axes.set_title(title)
            axes.set_xlabel(xlabel)
    return drawn


def draw_differences(axes: Axes, rows: pd.DataFrame) -> None:
    """One panel of `difference_bars`: rows in their order, from the top."""
    points = 100 * rows.value
    colors = [BLUE if value > 0 else ORANGE for value in points]
    axes.barh(range(len(rows)), points, color=colors, height=0.75)
    for place, value in enumerate(points):
        axes.annotate(f"{value:+.1f}", (value, place), (2 if value >= 0 else -2, 0), textcoords="offset points",
                      ha="left" if value >= 0 else "right", va="center", fontsize=SMALL)  # fmt: skip
    axes.set_yticks(range(len(rows)), rows.task, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(0, color=GREY, linewidth=0.8)
    span = max(points.max(), 0) - min(points.min(), 0) or 1.0
    axes.set_xlim(min(points.min(), 0) - 0.17 * span, max(points.max(), 0) + 0.17 * span)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def shots_bars(rows: pd.DataFrame, mean: float, median: float, caption: str = "") -> Figure:
    """Labelled images of a class that match zero-shot, by data set, the most on top, on a logarithmic axis.

    Args:
        rows: task, shots; a missing or infinite number of shots, where no number of images was enough, has no bar.
        mean, median: over the data sets that have a number.
    """
    with figure(COLUMN, _ROW * max(_FEWEST_ROWS, len(rows)) + _MARGIN, 8) as drawn:
        draw_caption(drawn, caption)
        axes = drawn.subplots()
        rows = rows.sort_values("shots", ascending=False, na_position="first", kind="stable")
        known = rows.shots.where(rows.shots < float("inf"))
        least = known.min() / 2
        axes.barh(range(len(rows)), known - least, left=least, color=BLUE, height=0.75)
        for place, shots in enumerate(known):
            text, at = (f"{shots:.3g}", shots) if shots == shots else ("not reached", least)
            axes.annotate(text, (at, place), (1.5, 0), textcoords="offset points", va="center",
                          fontsize=SMALL, bbox={"color": "white", "pad": 0.4})  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(least, known.max() * 2)
        axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_yticks(range(len(rows)), rows.task, fontsize=7)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        lines = ((mean, "mean", "--", 0), (median, "median", ":", 1)) if known.count() > 1 else ()
        for value, name, style, up in lines:
            axes.axvline(value, color=GREY, linestyle=style, linewidth=1, zorder=0)
            axes.text(value * 1.06, len(rows) - 1 - up, f"{name} {value:.1f}", fontsize=SMALL, color=GREY, va="center")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("labelled images of a class to match zero-shot")
    return drawn
