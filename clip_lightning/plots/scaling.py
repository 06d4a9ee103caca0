"""One page of a scaling study: the law with its interval, isoFLOP parabolas, residuals, back-tests."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from clip_lightning.errors import UserError
from clip_lightning.plots.style import BLUE, GREY, ORANGE, RED, figure


def study(tables: dict[str, pd.DataFrame], answer: str, title: str) -> Figure:
    """The panels for which there are tables, two in a row.

    Args:
        tables: `points` (budget, value, residual), `curve` (budget, value, low, high, reach), and where they exist
            `isoflop` (budget, n, value), `vertices` (budget, n, value, reason), `back_tests` (reach, relative_error,
            coverage, name).
        answer: what the values are, for the axes.
        title: of the page.
    Raises: UserError: there are no points.
    """
    if tables["points"].empty:
        raise UserError("show: there are no points to draw; fit a table that has rows")
    panels = [_law, _residuals]
    if "isoflop" in tables:
        panels.insert(1, _isoflop)
    if len(tables.get("back_tests", [])):
        panels.append(_back_tests)
    rows = -(-len(panels) // 2)
    with figure(9.5, 3.4 * rows + 0.4) as drawn:
        drawn.suptitle(title, fontsize=10)
        axes = drawn.subplots(rows, 2, squeeze=False).ravel()
        for draw, one in zip(panels, axes, strict=False):
            draw(one, tables, answer)
        for one in axes[len(panels) :]:
            one.remove()
    return drawn


def _law(axes: Axes, tables: dict[str, pd.DataFrame], answer: str) -> None:
    points, curve = tables["points"], tables["curve"]
    inside = curve[curve.reach <= 1]
    outside = curve[curve.reach >= inside.reach.max()]
    axes.scatter(points.budget, points.value, s=12, color=GREY, label="runs", zorder=3)
    axes.plot(inside.budget, inside.value, color=BLUE, label="law at the best split of the budget")
    axes.plot(outside.budget, outside.value, color=BLUE, linestyle="--", label="extrapolated")
    if curve.low.notna().all():
        axes.fill_between(curve.budget, curve.low, curve.high, color=BLUE, alpha=0.2, linewidth=0, label="95 %")
    axes.set_xscale("log")
    axes.set_xlabel("training compute (FLOPs)")
    axes.set_ylabel(answer)
    axes.legend()


def _isoflop(axes: Axes, tables: dict[str, pd.DataFrame], answer: str) -> None:
    points, vertices = tables["isoflop"], tables["vertices"]
    colors = [BLUE, ORANGE, RED, GREY]
    for k, (budget, rows) in enumerate(points.groupby("budget")):
        rows = rows.sort_values("n")
        axes.plot(rows.n, rows.value, marker="o", ms=3, color=colors[k % 4], linewidth=0.8, label=f"{budget:.2g}")
    good = vertices[vertices.reason == ""]
    if len(good):
        axes.scatter(good.n, good.value, marker="*", s=60, color="black", zorder=3, label="minimum inside the ladder")
    _log_axis(axes)
    axes.set_xlabel("size n")
    axes.set_ylabel(answer)
    axes.legend(fontsize=6, title="FLOPs", title_fontsize=6)


def _residuals(axes: Axes, tables: dict[str, pd.DataFrame], answer: str) -> None:
    points = tables["points"]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.scatter(points.budget, 100 * points.residual, s=12, color=ORANGE)
    _log_axis(axes)
    axes.set_xlabel("training compute (FLOPs)")
    axes.set_ylabel("residual (%)")
    spread = float(np.abs(100 * points.residual).max()) or 1.0
    axes.set_ylim(-1.15 * spread, 1.15 * spread)


def _back_tests(axes: Axes, tables: dict[str, pd.DataFrame], answer: str) -> None:
    tests = tables["back_tests"]
    axes.plot(tests.reach, 100 * tests.relative_error, marker="o", ms=4, color=RED)
    for row in tests.itertuples():
        covered = "" if pd.isna(row.coverage) else f"{100 * row.coverage:.0f} % covered"
        axes.annotate(
            covered, (row.reach, 100 * row.relative_error), (0, 5), textcoords="offset points", fontsize=7, ha="center"
        )
    _log_axis(axes)
    axes.margins(x=0.2)
    axes.set_xticks(tests.reach, [f"{reach:.3g}" for reach in tests.reach])
    axes.set_xlabel("largest budget tested, as a factor of the largest fitted")
    axes.set_ylabel("mean error (%)")
    axes.set_ylim(bottom=0)


def _log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())  # labels of less than a decade would overlap
