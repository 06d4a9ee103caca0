"""Predictions on single images, laid out like Figure 21 of Radford et al. 2021."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure, SubFigure

from clip_lightning.errors import UserError
from clip_lightning.plots.style import CORRECT, WRONG, draw_caption, figure, percent

MAX_COLUMNS = 3
NUM_BARS = 5


class Prediction(Protocol):
    """A row: one image, its most probable classes (the best first), and the rank of the correct one."""

    @property
    def task(self) -> str:
        """Name of the data set."""

    @property
    def image(self) -> np.ndarray | None:
        """Pixels, uint8 [S, S, 3]; None: the panel has text and bars alone."""

    @property
    def label(self) -> str:
        """Name of the correct class."""

    @property
    def rank(self) -> int:
        """Of the correct class, 1 the best."""

    @property
    def probability(self) -> float:
        """Of the correct class, 0..1."""

    @property
    def num_classes(self) -> int:
        """Number of classes to choose from."""

    @property
    def prompts(self) -> list[str]:
        """Full prompts of the most probable classes."""

    @property
    def probabilities(self) -> list[float]:
        """Theirs, 0..1."""

    @property
    def correct(self) -> int | None:
        """Index of the correct class among the prompts."""


def prediction_panels(rows: Sequence[Prediction], caption: str = "") -> Figure:
    """One panel per row: task, correct label with its rank and probability, the image, and up to five bars of 0-100 %.

    The bar of the correct class is green, the others are orange. Raises UserError without rows.
    """
    if not rows:
        raise UserError("there are no predictions to draw; set eval.tasks or eval.folders.")
    columns = min(MAX_COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    width, height = (4.4, 2.0) if any(row.image is not None for row in rows) else (3.2, 1.55)
    with figure(width * columns, height * lines) as drawn:
        draw_caption(drawn, caption)
        panels = drawn.subfigures(lines, columns, squeeze=False).ravel()
        for panel, row in zip(panels, rows, strict=False):
            _draw(panel, row)
    return drawn


def _draw(panel: SubFigure, row: Prediction) -> None:
    if row.image is None:
        bars = panel.subplots()
    else:
        picture, bars = panel.subplots(1, 2, width_ratios=(1, 2.2))
        picture.imshow(row.image, interpolation="nearest")
        picture.set_axis_off()
    fits = row.image is not None or len(row.task) <= 34
    panel.suptitle(row.task, fontsize=10 if fits else 7, fontweight="bold", x=0.02, ha="left")
    label = row.label if len(row.label) <= 24 else row.label[:23] + "…"
    bars.set_title(
        f"correct label: {label}\ncorrect rank: {row.rank}/{row.num_classes}   "
        f"correct probability: {percent(row.probability, 2)}%",
        loc="left",
        fontsize=7,
    )
    places = range(len(row.prompts))
    colors = [CORRECT if k == row.correct else WRONG for k in places]
    bars.barh(places, [100 * probability for probability in row.probabilities], color=colors, height=0.8, alpha=0.75)
    for place, prompt in zip(places, row.prompts, strict=True):
        shown = prompt if len(prompt) <= 48 else prompt[:47] + "…"
        bars.text(1.5, place, shown, va="center", ha="left", fontsize=7.5, parse_math=False)
    bars.set_xlim(0, 100)
    bars.set_ylim(NUM_BARS - 0.5, -0.5)
    bars.set_yticks([])
    bars.set_xticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])
    bars.tick_params(labelsize=7)
    bars.grid(axis="y", visible=False)
