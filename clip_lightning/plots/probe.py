"""Zero-shot beside probes on labelled images: Figures 6 and 8 of Radford et al. 2021."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from clip_lightning.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SMALL,
    draw_caption,
    figure,
    label_points,
    percent_axis,
)

_COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)


def zero_shot_over_probe(rows: pd.DataFrame, slope: float, intercept: float, r: float, caption: str = "") -> Figure:
    """Zero-shot score over linear-probe score, one labelled point per data set, with y = x and the fitted line.

    Args:
        rows: task, probe, zero_shot (fractions).
        slope, intercept: of least squares of zero_shot over probe.
    """
    with figure(COLUMN * 1.35, 4.6, 8) as drawn:
        draw_caption(drawn, caption)
        axes = drawn.subplots()
        low = np.floor(10 * min(rows.probe.min(), rows.zero_shot.min())) / 10 - 0.02
        ends = np.array([max(0.0, low), 1.05])
        axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1)
        axes.plot(ends, intercept + slope * ends, color=BLUE, linewidth=1)
        axes.plot(rows.probe, rows.zero_shot, "o", color=BLUE, markersize=3.5)
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_aspect("equal")
        percent_axis(axes)
        percent_axis(axes, "x")
        axes.set_xlabel("linear probe (%)")
        axes.set_ylabel("zero-shot (%)")
        axes.text(0.03, 0.97, f"r = {r:.3f}\nslope {slope:.2f}", transform=axes.transAxes, va="top", color=BLUE)
        at = ends[0] + 0.12 * np.ptp(ends)
        axes.text(at, at + 0.01, "zero-shot = probe", rotation=45, rotation_mode="anchor", color=GREY, fontsize=SMALL)
        along = np.linspace(ends[0], ends[-1], 200)
        lines = np.concatenate([np.column_stack([along, along]), np.column_stack([along, intercept + slope * along])])
        label_points(axes, rows.probe.to_list(), rows.zero_shot.to_list(), rows.task.to_list(), size=6, line=lines)
    return drawn


def few_shot_curves(means: pd.DataFrame, caption: str = "") -> Figure:
    """Mean score over labelled images of a class, one line per model, with zero-shot as a star at 0.

    Args:
        means: model, shots, value (fractions); shots = 0 is zero-shot.
    """
    with figure(COLUMN, 3.0, 8) as drawn:
        draw_caption(drawn, caption)
        axes = drawn.subplots()
        for k, (model, rows) in enumerate(means.sort_values("shots").groupby("model", sort=False)):
            color = _COLORS[k % len(_COLORS)]
            zero, some = rows[rows.shots == 0], rows[rows.shots > 0]
            axes.plot(_place(some.shots), some.value, color=color, marker="o", markersize=3.5)
            axes.plot(_place(zero.shots), zero.value, color=color, marker="*", markersize=10, linestyle="none")
            if len(zero):
                axes.axhline(zero.value.iloc[0], color=color, linewidth=0.6, linestyle=":")
            last = (some if len(some) else zero).iloc[-1]
            axes.annotate(str(model), (_place(last.shots), last.value), (0, -4), textcoords="offset points", ha="right",
                          va="top", fontsize=SMALL, color=color, parse_math=False)  # fmt: skip
        shots = sorted(set(means.shots))
        axes.xaxis.set_major_locator(FixedLocator([_place(k) for k in shots]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{0 if place < 0 else 2**place:.3g}"))
        axes.set_xlabel("labelled images of a class (0: zero-shot)")
        axes.set_ylabel("mean score (%)")
        percent_axis(axes)
    return drawn


def _place(shots: "pd.Series | float") -> "pd.Series | float":
    """Where so many shots are on the axis: log2, with 0 one step before 1."""
    return np.where(np.asarray(shots) > 0, np.log2(np.maximum(shots, 1e-9)), -1.0)
