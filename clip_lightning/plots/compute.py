"""Scores over the compute of a forward pass: Figures 4, 9 and 10 of Radford et al. 2021.

Compute is billions of multiply-adds of the image tower for one image, the unit of the paper's axes.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from clip_lightning.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    PURPLE,
    RED,
    SKY,
    SMALL,
    draw_caption,
    figure,
    label_points,
    percent_axis,
)

GFLOPS = "image tower, GFLOPs (multiply-adds) of one image"
# Colours and markers of model families, in turn: no two families have both.
_COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
_MARKERS = "os^Dv<>P*Xphd"


def error_over_compute(
    means: pd.DataFrame, each: pd.DataFrame, slope: float, intercept: float, caption: str = ""
) -> Figure:
    """Mean zero-shot error over compute on logarithmic axes with its fit, and a faint line per data set.

    Args:
        means: one row per model: model, gflops, error (fractions).
        each: one row per model and data set: task, gflops, error; lines beyond the range of the means are cut off.
        slope, intercept: of log10(error) over log10(gflops).
    """
    with figure(COLUMN, 2.9, 8) as drawn:
        draw_caption(drawn, caption)
        axes = drawn.subplots()
        for _, line in each.sort_values("gflops").groupby("task", sort=False):
            axes.plot(line.gflops, line.error, color=BLUE, alpha=0.15, linewidth=0.8)
        ends = np.array([means.gflops.min() / 1.4, means.gflops.max() * 1.4])
        axes.plot(ends, 10**intercept * ends**slope, color=GREY, linestyle="--", linewidth=1, zorder=2.5)
        axes.plot(means.gflops, means.error, "o", color=BLUE, markersize=5, zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_ylim(means.error.min() / 1.12, means.error.max() * 1.12)
        log_ticks(axes, means.gflops.to_list())
        axes.yaxis.set_major_locator(FixedLocator(nice_steps(*axes.get_ylim())))
        axes.yaxis.set_minor_locator(NullLocator())
        percent_axis(axes)
        axes.set_xlabel(GFLOPS)
        axes.set_ylabel("mean zero-shot error (%)")
        along = np.geomspace(ends[0], ends[-1], 200)
        line = np.column_stack([along, 10**intercept * along**slope])
        label_points(axes, means.gflops.to_list(), means.error.to_list(), means.model.to_list(), BLUE, line=line)
    return drawn


def score_over_compute(panels: Sequence[tuple[str, pd.DataFrame]], caption: str = "") -> Figure:
    """Mean linear-probe score over compute, one line per family of models, one panel per list of data sets.

    Args:
        panels: title and rows: model, family, gflops, value (fractions).
    """
    with figure(PAGE, 4.1, 8) as drawn:
        draw_caption(drawn, caption)
        row = drawn.subplots(1, len(panels), squeeze=False)[0]
        families = list(dict.fromkeys(pd.concat([rows for _, rows in panels]).family))
        for axes, (title, rows) in zip(row, panels, strict=True):
            for k, family in enumerate(families):
                line = rows[rows.family == family].sort_values("gflops")
                style = {"color": _COLORS[k % len(_COLORS)], "marker": _MARKERS[k % len(_MARKERS)]}
                strong = "CLIP" in family
                axes.plot(
                    line.gflops, line.value, label=family, markersize=4.5 if strong else 3.5,
                    linewidth=1.6 if strong else 0.9, **style,
                )  # fmt: skip
            axes.set_xscale("log")
            log_ticks(axes, rows.gflops.to_list())
            axes.set_title(title)
            axes.set_xlabel("GFLOPs (multiply-adds) of one image")
            percent_axis(axes)
        row[0].set_ylabel("mean linear-probe score (%)")
        handles, labels = row[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside right center", fontsize=SMALL, labelspacing=0.7)
    return drawn


def prompt_gain(means: pd.DataFrame, baseline: str, better: str, factor: float | None, caption: str = "") -> Figure:
    """Mean score over compute with bare class names and with prompts, and the compute of the same gain.

    Args:
        means: one row per model and set of prompts: model, prompts, gflops, value (fractions). A line joins the means
            of the sizes.
        baseline, better: the sets of prompts that are compared.
        factor: how many times the compute gives the gain that prompts give; None where it has no value.
    """
    with figure(COLUMN, 2.9, 8) as drawn:
        draw_caption(drawn, caption)
        axes = drawn.subplots()
        kinds = [baseline, *(kind for kind in dict.fromkeys(means.prompts) if kind not in (baseline, better)), better]
        for kind, color, marker in zip(
            kinds, (*(GREY, ORANGE, GREEN, BLUE)[: len(kinds) - 1], BLUE), "sD^o", strict=False
        ):
            points = means[means.prompts == kind]
            of_size = points.groupby("gflops").value.mean()  # several runs of one size differ by length or seed
            axes.plot(points.gflops, points.value, color=color, marker=marker, markersize=4, linestyle="none")
            axes.plot(of_size.index, of_size, color=color)
            place = (-3, -11) if kind == baseline else (-3, 6)
            axes.annotate(kind, (of_size.index[-1], of_size.iloc[-1]), place, textcoords="offset points",
                          ha="right", fontsize=SMALL + 0.5, color=color, parse_math=False)  # fmt: skip
        axes.set_xscale("log")
        log_ticks(axes, means.gflops.to_list())
        axes.margins(x=0.1, y=0.15)
        percent_axis(axes)
        axes.set_xlabel(GFLOPS)
        axes.set_ylabel("mean zero-shot score (%)")
        low, high = (means[means.prompts == kind].value.mean() for kind in (baseline, better))
        same = f"\n= {factor:.2g} times the compute" if factor is not None else ""
        axes.text(0.03, 0.97, f"{100 * (high - low):+.1f} points{same}", transform=axes.transAxes, va="top", fontsize=8)
    return drawn


def log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis has its ticks at the values where these are few, and at 1, 2, 5 times powers of ten else.

    Values below 1 have two digits, since four of them would touch.
    """
    few = sorted(set(values))
    apart = all(after / before > 1.25 for before, after in itertools.pairwise(few))
    places = few if len(few) <= 6 and apart else nice_steps(*axes.get_xlim())
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}" if value >= 1 else f"{value:.2g}"))


def nice_steps(low: float, high: float) -> list[float]:
    """Round numbers between two ends of a logarithmic axis, the finest of three series that gives at most eight."""
    exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for series in (np.arange(1, 10, 0.5), np.arange(1, 10), np.array([1, 2, 5]), np.array([1, 3]), np.array([1])):
        steps = [float(step * 10.0**exponent) for exponent in exponents for step in series]
        found = [round(step, 12) for step in steps if low <= step <= high]
        if len(found) <= 8:
            break
    return found
