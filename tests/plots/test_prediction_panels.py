"""Panels like those of the paper's Figure 21: the text and bars of each, the correct class in green."""

from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from clip_lightning.errors import UserError
from clip_lightning.plots.predictions import prediction_panels
from clip_lightning.plots.style import CORRECT, WRONG


@dataclass(frozen=True)
class Row:
    task: str
    image: np.ndarray
    label: str
    rank: int
    probability: float
    num_classes: int
    prompts: list[str]
    probabilities: list[float]
    correct: int | None


def row(correct: int | None = 1, classes: int = 5) -> Row:
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    prompts = [f"a photo of a $cat_{k}$." for k in range(classes)]
    return Row("pets", image, "cat 1", 2, 0.2281, 37, prompts, [0.5, 0.2281, 0.1, 0.05, 0.02][:classes], correct)


def test_a_panel_has_the_text_of_the_papers_figure() -> None:
    figure = prediction_panels([row()])
    (panel,) = figure.subfigs
    picture, bars = panel.axes
    assert panel.get_suptitle() == "pets"
    assert bars.get_title(loc="left") == "correct label: cat 1\ncorrect rank: 2/37   correct probability: 22.81%"
    assert bars.get_xlim() == (0, 100)
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([50, 22.81, 10, 5, 2])
    assert [text.get_text() for text in bars.texts] == row().prompts
    assert np.array_equal(picture.images[0].get_array(), row().image)


@pytest.mark.parametrize("correct", [0, 1, None])
def test_only_the_correct_bar_is_green(correct: int | None) -> None:
    bars = prediction_panels([row(correct)]).subfigs[0].axes[1]
    colors = [bar.get_facecolor()[:3] for bar in bars.patches]
    assert colors == [to_rgb(CORRECT if k == correct else WRONG) for k in range(5)]


def test_fewer_classes_have_fewer_bars_and_many_rows_fill_a_grid() -> None:
    figure = prediction_panels([row(classes=2)] * 7)
    assert len(figure.subfigs) == 9
    assert [len(panel.axes) for panel in figure.subfigs] == [2] * 7 + [0] * 2
    assert len(figure.subfigs[0].axes[1].patches) == 2
    figure.canvas.draw()


def test_no_rows_are_reported() -> None:
    with pytest.raises(UserError, match="no predictions"):
        prediction_panels([])
