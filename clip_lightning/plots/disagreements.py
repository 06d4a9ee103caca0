"""Images on which two models disagree, each with what both predicted."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from clip_lightning.errors import UserError
from clip_lightning.plots.style import BLACK, CORRECT, GREY, RED, draw_caption, figure

COLUMNS = 6
_LETTERS = 26  # of a line


@dataclass(frozen=True)
class Disagreement:
    """One image.

    Attributes:
        image: uint8 [S, S, 3]; None where it is not at hand.
        where: data set and number.
        label, first, second: names of the classes: the correct one, and those that the models predicted.
        first_is_correct: whether the first model is the one that is right.
    """

    image: np.ndarray | None
    where: str
    label: str
    first: str
    second: str
    first_is_correct: bool


def disagreement_page(rows: Sequence[Disagreement], names: tuple[str, str], caption: str = "") -> Figure:
    """A panel per image: the correct class, and each model's prediction, green where it is correct and red elsewhere.

    Args: names: of both models. Raises UserError without rows.
    """
    if not rows:
        raise UserError("there is no image on which the two disagree, so there is no picture.")
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    with figure(1.75 * columns, 2.35 * lines + 0.5) as drawn:
        draw_caption(drawn, caption)
        panels = drawn.subplots(lines, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, row in zip(panels, rows, strict=False):
            if row.image is not None:
                axes.imshow(row.image, interpolation="nearest")
            else:
                axes.text(0.5, 0.5, "no image", transform=axes.transAxes, ha="center", color=GREY, fontsize=7)
            axes.set_title(_short(row.label), loc="left", fontsize=7.5, color=BLACK, parse_math=False)
            said = zip(names, (row.first, row.second), (row.first_is_correct, not row.first_is_correct), strict=True)
            for place, (name, predicted, is_correct) in enumerate(said):
                text = f"{textwrap.shorten(name, 12, placeholder='…')}: {predicted}"
                axes.text(
                    0, -0.03 - 0.11 * place, _short(text), transform=axes.transAxes, va="top", ha="left", fontsize=6.5,
                    color=CORRECT if is_correct else RED, parse_math=False,
                )  # fmt: skip
            axes.text(
                0,
                -0.25,
                _short(row.where),
                transform=axes.transAxes,
                va="top",
                fontsize=5.5,
                color=GREY,
                parse_math=False,
            )
    return drawn


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
