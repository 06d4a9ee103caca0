"""Figures of one run over its samples: the loss, and zero-shot accuracy of each task."""

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from clip_lightning.errors import UserError
from clip_lightning.plots.style import BLUE, GREY, RED, figure, percent, samples_axis
from clip_lightning.records import EMA

MAX_COLUMNS = 4


def loss_curve(records: pd.DataFrame) -> Figure:
    """The training loss as a line; the validation loss as points with 95 % intervals, and the loss of guessing.

    The training loss depends on the batch, the validation loss on its own number of candidates only.

    Args:
        records: `records.to_frame` of a run; used are `loss` and `val_loss_*`.
    Raises: UserError when no loss was recorded.
    """
    training = _over_samples(records, records.what == "loss")
    validation = _over_samples(records, records.what.str.startswith("val_loss_") & (records.weights == ""))
    if training.empty and validation.empty:
        raise UserError("the records hold no loss, so there is no curve to draw; train for at least one step.")
    with figure(6, 3.6) as drawn:
        axes = drawn.subplots()
        if len(training):
            axes.plot(training.samples_seen, training.value, color=BLUE, label="training")
        if len(validation):
            candidates = validation.what.iloc[-1].removeprefix("val_loss_")
            ends = [validation.value - validation.low, validation.high - validation.value]
            label = f"validation, {int(candidates):,} candidates"
            axes.errorbar(
                validation.samples_seen, validation.value, ends, color=RED, fmt="o", ms=4, capsize=2, label=label
            )
            chance = validation.chance.iloc[-1]
            axes.axhline(chance, color=RED, linestyle=":", linewidth=1, label=f"validation by guessing: {chance:.2f}")
        axes.set_ylabel("contrastive loss (nats)")
        axes.set_ylim(bottom=0)
        samples_axis(axes)
        axes.legend()
    return drawn


def zero_shot_curves(records: pd.DataFrame) -> Figure:
    """Top-1 accuracy of every task over samples, one panel each: line, 95 % band, dashed chance.

    Where the average of weights was measured too, it is a second line; the title's number is that of the raw weights.

    Args:
        records: `records.to_frame` of a run; used is `acc1`.
    Raises: UserError when no accuracy was recorded.
    """
    accuracies = _over_samples(records, (records.what == "acc1") & (records.variant == ""))
    if accuracies.empty:
        raise UserError("the records hold no acc1, so there is nothing to draw; set eval.tasks or eval.folders.")
    tasks = list(dict.fromkeys(accuracies.task))
    columns = min(MAX_COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    with figure(2.4 * columns + 0.6, 2.1 * rows + 0.3) as drawn:
        panels = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            of_task = accuracies[accuracies.task == task]
            for weights, points in of_task.groupby("weights"):
                color = RED if weights == EMA else BLUE
                axes.fill_between(points.samples_seen, points.low, points.high, color=color, alpha=0.2, linewidth=0)
                axes.plot(points.samples_seen, points.value, color=color, marker="o", ms=3, label=weights or "raw")
            last = of_task[of_task.weights == of_task.weights.min()].iloc[-1]
            axes.axhline(last.chance, color=GREY, linestyle="--", linewidth=1)
            half = (last.high - last.low) / 2
            axes.set_title(f"{task}\n{percent(last.value)} ± {percent(half)} %  (n={int(last.n):,})")
            axes.text(1, last.chance + 0.01, f"chance {percent(last.chance)} %", transform=axes.get_yaxis_transform(),
                      ha="right", va="bottom", fontsize=7, color=GREY)  # fmt: skip
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: percent(y, 0)))
            samples_axis(axes)
            axes.label_outer()
        if (accuracies.weights == EMA).any():
            panels[0].legend(loc="lower right", fontsize=7)
        for axes in panels[len(tasks) :]:
            axes.remove()
        drawn.supylabel("zero-shot top-1 (%)", fontsize=9)
    return drawn


def _over_samples(records: pd.DataFrame, wanted: pd.Series) -> pd.DataFrame:
    """The wanted rows by samples seen; of two measured at the same place the later one."""
    return (
        records[wanted]
        .drop_duplicates(["what", "task", "weights", "samples_seen"], keep="last")
        .sort_values("samples_seen")
    )
