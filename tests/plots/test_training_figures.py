"""The curves of a run show what its records say, in readers' units, and do not change matplotlib's global state."""

import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from clip_lightning.errors import UserError
from clip_lightning.plots.style import short_count
from clip_lightning.plots.training import loss_curve, zero_shot_curves
from clip_lightning.records import Record, to_frame


def records_of_a_run(tasks: tuple[str, ...] = ("shape", "color")) -> pd.DataFrame:
    records = []
    for step in range(1, 11):
        seen = step * 1000
        records.append(Record(what="loss", value=5 / step, samples_seen=seen))
        if step % 5 == 0:
            records.append(
                Record(what="val_loss_1024", value=6 / step, low=5 / step, high=8 / step, n=1024,
                       chance=math.log(1024), samples_seen=seen, task="validation")
            )  # fmt: skip
            for k, task in enumerate(tasks):
                value = step / 20 + k / 10
                records.append(
                    Record(what="acc1", value=value, low=value - 0.02, high=value + 0.03, n=1797, chance=0.1,
                           samples_seen=seen, task=task)
                )  # fmt: skip
    return to_frame(records)


def test_loss_curve_shows_training_and_validation() -> None:
    (axes,) = loss_curve(records_of_a_run()).axes
    training, points, chance = axes.lines[0], axes.containers[0].lines[0], axes.lines[-1]
    assert training.get_xdata().tolist() == [1000 * step for step in range(1, 11)]
    assert training.get_ydata().tolist() == [5 / step for step in range(1, 11)]
    assert points.get_ydata().tolist() == [6 / 5, 6 / 10]
    assert chance.get_ydata()[0] == math.log(1024)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(labels) == {"training", "validation, 1,024 candidates", "validation by guessing: 6.93"}
    assert axes.get_ylim()[0] == 0


def test_a_run_without_validation_has_a_curve() -> None:
    records = records_of_a_run()
    (axes,) = loss_curve(records[records.what == "loss"]).axes
    assert len(axes.lines) == 1


def test_every_task_has_a_panel_with_its_last_value_and_chance() -> None:
    figure = zero_shot_curves(records_of_a_run(("shape", "color", "digits", "flowers", "birds")))
    assert [axes.get_title() for axes in figure.axes] == [
        "shape\n50.0 ± 2.5 %  (n=1,797)",
        "color\n60.0 ± 2.5 %  (n=1,797)",
        "digits\n70.0 ± 2.5 %  (n=1,797)",
        "flowers\n80.0 ± 2.5 %  (n=1,797)",
        "birds\n90.0 ± 2.5 %  (n=1,797)",
    ]
    first = figure.axes[0]
    assert first.lines[0].get_ydata().tolist() == [0.25, 0.5]
    assert first.lines[1].get_ydata()[0] == 0.1
    assert first.yaxis.get_major_formatter()(0.5) == "50"


def test_a_repeated_measurement_replaces_the_earlier_one() -> None:
    records = records_of_a_run(("shape",))
    again = records[(records.what == "acc1") & (records.samples_seen == 5000)].assign(value=0.3)
    axes = zero_shot_curves(pd.concat([records, again])).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.3, 0.5]


def test_nothing_to_draw_is_reported() -> None:
    nothing = to_frame([])
    with pytest.raises(UserError, match="no loss"):
        loss_curve(nothing)
    with pytest.raises(UserError, match="no acc1"):
        zero_shot_curves(nothing)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (950, "950"), (32_768, "32.8k"), (999_999, "1000k"), (12.8e6, "12.8M"), (2e9, "2B")]
)
def test_samples_are_written_short(count: float, text: str) -> None:
    assert short_count(count) == text


@pytest.mark.slow
def test_figures_are_written_without_a_display_or_global_state(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    loss_curve(records_of_a_run()).savefig(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, clip_lightning.plots.training, clip_lightning.plots.predictions; "
        "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_the_average_of_weights_is_a_second_line() -> None:
    raw = records_of_a_run(("shape",))
    average = raw[raw.task != ""].assign(weights="ema", value=lambda rows: rows.value + 0.1)
    both = pd.concat([raw, average])
    (axes,) = zero_shot_curves(both).axes
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[0.25, 0.5], [0.35, 0.6]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["raw", "ema"]
    assert axes.get_title() == "shape\n50.0 ± 2.5 %  (n=1,797)"
    assert loss_curve(both).axes[0].containers[0].lines[0].get_ydata().tolist() == [6 / 5, 6 / 10]
