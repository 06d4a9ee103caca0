"""The drawing functions of the paper's figures: what is drawn where, and labels that do not cover each other."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from clip_lightning.plots.bars import difference_bars, shots_bars
from clip_lightning.plots.compute import error_over_compute, nice_steps, prompt_gain, score_over_compute
from clip_lightning.plots.overlap import overlap_effect
from clip_lightning.plots.probe import few_shot_curves, zero_shot_over_probe
from clip_lightning.plots.robustness import (
    ADAPTED,
    STANDARD,
    ZERO_SHOT,
    adaptation,
    class_gallery,
    paired_scores,
    robustness,
)
from clip_lightning.plots.style import BLUE, ORANGE, draw_caption, figure, label_points


def test_bars_are_sorted_and_coloured_by_sign() -> None:
    rows = pd.DataFrame({"task": ["a", "b", "c"], "value": [-0.1, 0.3, 0.05]})
    (axes,) = difference_bars([("title", rows)], "points").axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([30, 5, -10])
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [to_rgb(BLUE), to_rgb(BLUE), to_rgb(ORANGE)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    assert [text.get_text() for text in axes.texts] == ["+30.0", "+5.0", "-10.0"]


def test_shots_that_were_never_enough_have_no_bar() -> None:
    rows = pd.DataFrame({"task": ["a", "b"], "shots": [4.0, float("inf")]})
    (axes,) = shots_bars(rows, 4, 4).axes
    assert [text.get_text() for text in axes.texts[:2]] == ["not reached", "4"]


def test_the_error_is_drawn_with_its_fit() -> None:
    means = pd.DataFrame({"model": ["a", "b"], "gflops": [1.0, 100.0], "error": [0.4, 0.4 / 100**0.1]})
    each = pd.DataFrame({"task": ["x", "x"], "gflops": [1.0, 100.0], "error": [0.5, 0.3]})
    (axes,) = error_over_compute(means, each, -0.1, np.log10(0.4)).axes
    faint, fit, points = axes.lines
    assert faint.get_alpha() < 0.5
    x, y = fit.get_data()
    assert y == pytest.approx(0.4 * x**-0.1)
    assert points.get_ydata().tolist() == means.error.to_list()
    assert axes.yaxis.get_major_formatter()(0.35) == "35"


def test_labels_of_small_models_do_not_touch() -> None:
    gflops = [0.000809984, 0.00312934, 0.00695808, 0.0122962, 0.0275005]
    means = pd.DataFrame({"model": list("abcde"), "gflops": gflops, "error": [0.54, 0.43, 0.42, 0.44, 0.46]})
    drawn = error_over_compute(means, means.assign(task="x"), -0.05, -0.4)
    (axes,) = drawn.axes
    drawn.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.00081", "0.0031", "0.007", "0.012", "0.028"]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_families_have_a_line_each_and_no_two_the_same_look() -> None:
    rows = pd.DataFrame(
        {"model": range(28), "family": [f"f{k // 2}" for k in range(28)], "gflops": range(1, 29), "value": 0.5}
    )
    (axes,) = score_over_compute([("title", rows)]).axes
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(axes.lines) == len(looks) == 14


def test_prompt_gain_names_the_sets_and_the_factor() -> None:
    means = pd.DataFrame(
        {
            "model": ["a", "b"] * 2,
            "prompts": ["bare"] * 2 + ["own"] * 2,
            "gflops": [1.0, 10] * 2,
            "value": [0.3, 0.4, 0.35, 0.45],
        }
    )
    (axes,) = prompt_gain(means, "bare", "own", 4.0).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["bare", "own", "+5.0 points\n= 4 times the compute"]


def test_zero_shot_is_a_star_at_0_shots() -> None:
    means = pd.DataFrame({"model": ["a"] * 4, "shots": [0, 1, 2, 4], "value": [0.4, 0.2, 0.3, 0.5]})
    (axes,) = few_shot_curves(means).axes
    line, star = axes.lines[:2]
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert (star.get_marker(), star.get_xdata().tolist()) == ("*", [-1])
    assert [axes.xaxis.get_major_formatter()(place) for place in (-1, 0, 2)] == ["0", "1", "4"]


def test_zero_shot_over_probe_has_the_ideal_line() -> None:
    rows = pd.DataFrame({"task": ["a", "b", "c"], "probe": [0.5, 0.7, 0.9], "zero_shot": [0.3, 0.6, 0.85]})
    (axes,) = zero_shot_over_probe(rows, 1.2, -0.3, 0.99).axes
    ideal = axes.lines[0]
    assert ideal.get_xdata().tolist() == ideal.get_ydata().tolist()
    assert {"a", "b", "c"} <= {text.get_text() for text in axes.texts}


def robustness_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    points = pd.DataFrame(
        {
            "model": ["a", "b", "z"],
            "group": [STANDARD, STANDARD, ZERO_SHOT],
            "accuracy": [0.7, 0.9, 0.8],
            "shifted": [0.3, 0.5, 0.7],
        }
    )
    curve = pd.DataFrame({"accuracy": [0.7, 0.9], "shifted": [0.3, 0.5], "low": [0.28, 0.45], "high": [0.33, 0.52]})
    return points, curve


def test_robustness_is_drawn_on_logit_axes_with_the_ideal() -> None:
    points, curve = robustness_tables()
    paired = pd.DataFrame({"task": ["x"], "first": [0.2], "second": [0.6]})
    paired.attrs["names"] = ["one", "two"]
    left, right = robustness(points, curve, "reference", "shifted", paired, ["z"]).axes
    assert (left.get_xscale(), left.get_yscale()) == ("logit", "logit")
    assert left.get_xlabel() == "reference (%)"
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["ideal: y = x", "fit over standard, 95 % band", "standard (2)", "zero-shot (1)"]
    assert [text.get_text() for text in right.texts] == ["+40.0"]
    assert len(paired_scores(paired).axes) == 1


def test_the_gallery_of_a_class_has_a_row_for_each_data_set() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    drawn = class_gallery([("a", "1 | 2", [image, image]), ("b", "", [image])], "banana")
    assert [len(axes.images) for axes in drawn.axes] == [0, 1, 1, 0, 1, 0]


def test_labels_cover_neither_points_nor_each_other() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.uniform(0, 1, 15), generator.uniform(0, 1, 15)
    with figure(5, 5) as drawn:
        axes = drawn.subplots()
        axes.plot(x, y, "o", markersize=3)
        label_points(axes, x.tolist(), y.tolist(), [f"name {k}" for k in range(15)])
    drawn.canvas.draw()
    boxes = np.array([text.get_tightbbox().extents for text in axes.texts if text.arrow_patch is None])
    assert len(boxes) >= 10
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    np.fill_diagonal(shared, 0)
    assert (shared > 0).sum() == 0


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.52), (1.0, 500.0), (5.0, 270.0), (1e-3, 1e4)])
def test_steps_are_few_and_inside(low: float, high: float) -> None:
    steps = nice_steps(low, high)
    assert 2 <= len(steps) <= 8
    assert all(low <= step <= high for step in steps)


def test_a_caption_is_wrapped_to_the_width_of_the_figure() -> None:
    for width in (3.35, 6.9):
        with figure(width, 2) as drawn:
            drawn.subplots()
            draw_caption(drawn, "Mean over 27 data sets; split: test; n = 500 to 50,000 images. " * 4)
        drawn.canvas.draw()
        box = drawn._supxlabel.get_window_extent()
        assert box.x1 <= drawn.bbox.x1
        assert box.width > 0.75 * drawn.bbox.width


@pytest.mark.slow
def test_the_drawing_functions_need_no_display_and_no_torch() -> None:
    names = ("bars", "compute", "probe", "robustness")
    code = f"import sys; {'; '.join(f'import clip_lightning.plots.{name}' for name in names)}; "
    code += "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_the_overlap_of_each_data_set_has_a_point_and_its_interval() -> None:
    rows = pd.DataFrame(
        {
            "task": ["a", "b", "c"],
            "share": [0.0, 0.02, 0.2],
            "difference": [np.nan, 0.05, -0.01],
            "low": [np.nan, -0.02, -0.05],
            "high": [np.nan, 0.1, 0.03],
            "gain": [0.0, 0.001, -0.002],
            "kind": ["none", "corrected", "none"],
        }
    )
    drawn = overlap_effect(rows, "A caption.")
    left, right = drawn.axes
    drawn.draw_without_rendering()
    for axes in (left, right):
        label = axes.yaxis.label.get_window_extent()
        assert drawn.bbox.y0 <= label.y0
        assert label.y1 <= drawn.bbox.y1
        assert axes.get_xlim()[0] < 0  # points at 0 are whole
    assert len(left.collections) == 2  # intervals; a data set without overlap has none
    shown = sorted(float(x) for line in right.lines if line.get_marker() in "oD" for x in line.get_xdata())
    assert shown == pytest.approx([0, 2, 20])
    assert {text.get_text() for text in right.texts} == {"a", "b", "c"}
    low, high = right.get_ylim()
    assert low < -0.2
    assert high > 0.1


def test_no_overlap_is_said_and_drawn_on_an_axis_of_tenths() -> None:
    rows = pd.DataFrame({"task": ["a"], "share": 0.0, "difference": np.nan, "low": np.nan, "high": np.nan, "gain": 0.0})
    left, right = overlap_effect(rows.assign(kind="none")).axes
    assert [text.get_text() for text in left.texts] == ["no overlap found"]
    assert np.ptp(right.get_ylim()) >= 0.2


@pytest.mark.parametrize("with_fit", [True, False])
def test_adaptations_are_named_among_standard_models(with_fit: bool) -> None:
    points = pd.DataFrame(
        {
            "model": ["zero-shot", "linear probe", "a", "b"],
            "group": [ZERO_SHOT, ADAPTED, STANDARD, STANDARD],
            "accuracy": [0.6, 0.8, 0.7, 0.9],
            "shifted": [0.5, 0.45, 0.3, 0.5],
        }
    )
    curve = pd.DataFrame({"accuracy": [0.6, 0.9], "shifted": [0.2, 0.5], "low": [0.1, 0.4], "high": [0.3, 0.6]})
    rows = pd.DataFrame({"task": ["x", "y"], "value": [0.1, -0.2]})
    left, right = adaptation(points, curve if with_fit else None, "shape", "shifted", [("adapt", rows)]).axes
    assert {text.get_text() for text in left.texts} == {"zero-shot", "linear probe"}
    assert len(left.collections) == int(with_fit)
    assert [label.get_text() for label in right.get_yticklabels()] == ["x", "y"]
