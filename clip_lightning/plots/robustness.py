"""Accuracy under natural distribution shift: Figure 13 of Radford et al. 2021."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from clip_lightning.plots.bars import draw_differences
from clip_lightning.plots.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    PURPLE,
    RED,
    SMALL,
    draw_caption,
    figure,
    label_points,
    percent_axis,
)

STANDARD, ROBUST, MORE_DATA, ZERO_SHOT = "standard", "robustness intervention", "trained with more data", "zero-shot"
ADAPTED = "adapted"
_STYLES = {
    STANDARD: (GREY, "o"),
    ROBUST: (ORANGE, "^"),
    MORE_DATA: (GREEN, "s"),
    ZERO_SHOT: (PURPLE, "*"),
    ADAPTED: (RED, "D"),
}
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def robustness(
    points: pd.DataFrame,
    curve: pd.DataFrame,
    reference: str,
    shifted: str,
    paired: pd.DataFrame | None = None,
    labelled: Sequence[str] = (),
    caption: str = "",
) -> Figure:
    """Accuracy under shifts over accuracy without them on logit axes, the fit with its band, and the ideal y = x.

    Args:
        points: one row per model: model, group (one of this module's), accuracy, shifted (fractions).
        curve: the fit over standard models: accuracy, shifted, low, high (fractions, accuracy ascending).
        reference, shifted: what the two axes measure, without unit.
        paired: the right panel, two models data set by data set: task, first, second (fractions); the models' names
            are `paired.attrs["names"]`.
        labelled: models whose names are written beside their points.
    """
    with figure(PAGE if paired is not None else COLUMN * 1.2, 3.6, 8) as drawn:
        draw_caption(drawn, caption)
        if paired is None:
            left = drawn.subplots()
        else:
            left, right = drawn.subplots(1, 2, width_ratios=(1.15, 1))
            _draw_pairs(right, paired)
        _draw_scatter(left, points, curve)
        left.set_xlabel(f"{reference} (%)")
        left.set_ylabel(f"{shifted} (%)")
        if labelled:
            rows = points[points.model.isin(labelled)]
            ringed = rows[rows.group != ZERO_SHOT]
            left.plot(
                ringed.accuracy, ringed.shifted, "o", markersize=9, fillstyle="none", color="black", markeredgewidth=0.6
            )
            others = points[["accuracy", "shifted"]].to_numpy()
            label_points(left, rows.accuracy.to_list(), rows.shifted.to_list(), rows.model.to_list(), line=others)
    return drawn


def adaptation(
    points: pd.DataFrame,
    curve: pd.DataFrame | None,
    reference: str,
    shifted: str,
    panels: Sequence[tuple[str, pd.DataFrame]],
    caption: str = "",
) -> Figure:
    """Figure 14: left the ways of adapting one model among standard models, right what each changes by data set.

    Args:
        points, reference, shifted: as in `robustness`; zero-shot models and adapted ones have their names beside them.
        curve: None where there are too few standard models for a fit.
        panels: title and rows: task, value (fractions of 1).
    """
    with figure(PAGE + 0.4, 3.6, 8) as drawn:
        draw_caption(drawn, caption)
        left, *bars = drawn.subplots(1, 1 + len(panels), width_ratios=[1.4] + [1.0] * len(panels))
        _draw_scatter(left, points, curve)
        left.set_xlabel(f"{reference} (%)")
        left.set_ylabel(f"{shifted} (%)")
        named = points[points.group.isin([ZERO_SHOT, ADAPTED])]
        others = points[["accuracy", "shifted"]].to_numpy()
        label_points(left, named.accuracy.to_list(), named.shifted.to_list(), named.model.to_list(), line=others)
        for axes, (title, rows) in zip(bars, panels, strict=True):
            draw_differences(axes, rows.sort_values("value", ascending=False, kind="stable"))
            axes.set_title(title)
            axes.set_xlabel("change (points)")
    return drawn


def paired_scores(paired: pd.DataFrame, caption: str = "") -> Figure:
    """Two models data set by data set, without the panel of all models; see `robustness`."""
    with figure(COLUMN, 0.3 * len(paired) + 1.1, 8) as drawn:
        draw_caption(drawn, caption)
        _draw_pairs(drawn.subplots(), paired)
    return drawn


def _draw_scatter(axes: Axes, points: pd.DataFrame, curve: pd.DataFrame | None) -> None:
    axes.set_xscale("logit")
    axes.set_yscale("logit")
    low_x, high_x = _ends(points.accuracy)
    low_y, high_y = _ends(points.shifted)
    high_y = max(high_y, min(0.96, high_x))
    ends = np.array([max(low_x, low_y), min(high_x, high_y)])
    axes.plot(ends, ends, color="black", linestyle="--", linewidth=1, label="ideal: y = x")
    if curve is not None:
        axes.fill_between(curve.accuracy, curve.low, curve.high, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(curve.accuracy, curve.shifted, color=BLUE, linewidth=1, label="fit over standard, 95 % band")
    for group, (color, marker) in _STYLES.items():
        rows = points[points.group == group]
        if len(rows):
            size = {"*": 9, "D": 5}.get(marker, 3)
            axes.plot(rows.accuracy, rows.shifted, marker, color=color, markersize=size, alpha=0.8, linestyle="none",
                      markeredgewidth=0, label=f"{group} ({len(rows)})")  # fmt: skip
    axes.set_xlim(low_x, high_x)
    axes.set_ylim(low_y, high_y)
    for which, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        low, high = axis.get_view_interval()
        axis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
        axis.set_minor_locator(NullLocator())
        percent_axis(axes, which)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=SMALL, handlelength=1.4, columnspacing=1
    )


def _ends(fractions: pd.Series) -> tuple[float, float]:
    """The range of an axis: the points with some space in logits."""
    logits = np.log(fractions / (1 - fractions))
    space = max(0.25, 0.06 * float(np.ptp(logits)))
    low, high = (float(1 / (1 + np.exp(-end))) for end in (logits.min() - space, logits.max() + space))
    return low, high


def _draw_pairs(axes: Axes, paired: pd.DataFrame) -> None:
    first, second = paired.attrs["names"]
    for place, row in enumerate(paired.itertuples()):
        axes.plot([row.first, row.second], [place, place], color="#BBBBBB", linewidth=2, zorder=1)
        axes.annotate(
            f"{100 * (row.second - row.first):+.1f}", (max(row.first, row.second), place), (6, 0),
            textcoords="offset points", va="center", fontsize=SMALL,
        )  # fmt: skip
    places = range(len(paired))
    axes.plot(paired["first"], places, "o", color=GREY, markersize=5, label=first, zorder=2)
    axes.plot(paired["second"], places, "*", color=PURPLE, markersize=9, label=second, zorder=2)
    axes.set_yticks(places, paired.task, fontsize=7)
    axes.set_ylim(len(paired) - 0.5, -0.5)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    percent_axis(axes, "x")
    axes.set_xlabel("top-1 (%)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=SMALL)


def class_gallery(rows: Sequence[tuple[str, str, Sequence[np.ndarray]]], title: str, caption: str = "") -> Figure:
    """Images of one class in several data sets, one row each.

    Args:
        rows: name of the data set, a line about scores on it, and images uint8 [H, W, 3].
        title: the class.
    """
    columns = max(len(images) for _, _, images in rows)
    with figure(1.5 + 0.95 * columns, 0.95 * len(rows) + 0.6, 8) as drawn:
        draw_caption(drawn, caption)
        drawn.suptitle(title, fontsize=9)
        grid = drawn.subplots(len(rows), columns + 1, squeeze=False, width_ratios=[1.5] + [1] * columns)
        for line, (name, score, images) in zip(grid, rows, strict=True):
            for axes in line:
                axes.set_axis_off()
            line[0].text(0, 0.5, f"{name}\n{score}", va="center", fontsize=7, transform=line[0].transAxes)
            for axes, image in zip(line[1:], images, strict=False):
                axes.imshow(image)
    return drawn
