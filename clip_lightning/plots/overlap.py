"""What images that training data holds as well change in a score: Figure 17 of Radford et al. 2021."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_lightning.plots.style import (
    BLUE,
    GREY,
    ORANGE,
    PAGE,
    SMALL,
    draw_caption,
    figure,
    label_points,
)

# Colour, marker and meaning of a row by its significance.
_KINDS = {
    "corrected": (ORANGE, "D", "p < 0.05, Bonferroni"),
    "alone": (ORANGE, "o", "p < 0.05 alone"),
    "none": (BLUE, "o", "p >= 0.05"),
}


def overlap_effect(rows: pd.DataFrame, caption: str = "") -> Figure:
    """Left: accuracy on Overlap minus that on Clean, with its interval; right: what the overlap adds to the accuracy.

    Args:
        rows: one for each data set: task, share (of its images in Overlap), difference (Overlap minus Clean), low, high
            (its interval), gain (All minus Clean), kind (corrected, alone or none); fractions of 1. A data set of which
            all images overlap has no Clean part and no difference.
    """
    with figure(PAGE, 2.9, 8) as drawn:
        draw_caption(drawn, caption)
        left, right = drawn.subplots(1, 2)
        known = rows[rows.difference.notna()]
        if known.empty:
            left.text(0.5, 0.5, "no overlap found", transform=left.transAxes, ha="center", va="center", color=GREY)
        for _, row in known.iterrows():
            at, value = 100 * row.share, 100 * row.difference
            below, above = value - 100 * row.low, 100 * row.high - value
            left.errorbar(at, value, yerr=[[below], [above]], color=_KINDS[row.kind][0], linewidth=0.8, capsize=2)
        _points(left, known, "difference")
        left.set_ylabel("top-1, Overlap minus Clean (points)")
        _points(right, rows, "gain")
        right.set_ylabel("top-1, All minus Clean (points)")
        for kind, (color, marker, meaning) in _KINDS.items():
            if (rows.kind == kind).any():
                right.plot([], [], marker, color=color, markersize=4, label=meaning)
        right.legend(loc="best", fontsize=SMALL, handletextpad=0.2)
        label_points(
            right, (100 * rows.share).to_list(), (100 * rows.gain.fillna(0)).to_list(), rows.task.to_list(), size=6
        )
    return drawn


def _points(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    for kind, (color, marker, _) in _KINDS.items():
        some = rows[rows.kind == kind]
        axes.plot(100 * some.share, 100 * some[column], marker, color=color, markersize=4, zorder=3)
    axes.set_xlabel("images of the data set in Overlap (%)")
    axes.margins(x=0.3, y=0.15)
    right = max(axes.get_xlim()[1], 1.0)
    axes.set_xlim(-0.03 * right, right)
    low, high = axes.get_ylim()
    if high - low < 0.2:  # points that are all at 0 would be drawn on an axis of thousandths
        axes.set_ylim(min(low, -0.1), max(high, 0.1))
