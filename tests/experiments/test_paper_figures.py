"""The figures from the paper's printed numbers: each number, and the printed tables against each other."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from experiments.figures import (
    appendix_tables,
    fig05_probe,
    fig07_efficiency,
    fig08_zero_shot_and_probe,
    fig09_scaling,
    fig10_models,
    fig11_probe_difference,
    fig13_robustness,
    fig14_adaptation,
    fig21_predictions,
    gallery,
    paper_tables,
    testbed,
)
from experiments.figures.command import Command, Drawn, write
from experiments.figures.scores import averages

TESTBED = Path(__file__).parents[3] / "shared/reference/peer_imagenet_testbed_natural_shifts.csv"


def drawn(command: Command, *words: str) -> Drawn:
    return command.draw(command.parser().parse_args(["--paper", *words]))


def printed(command: Command, *words: str) -> str:
    found = drawn(command, *words)
    return "\n".join([*found.numbers, found.caption])


# The tables against each other


def test_the_tables_have_the_papers_sizes() -> None:
    assert paper_tables.linear_probe().groupby("model").size().eq(27).all()
    assert paper_tables.linear_probe().model.nunique() == 66
    assert paper_tables.zero_shot().groupby("model").size().eq(27).all()
    assert len(paper_tables.read("figure21")) == 36
    assert len(paper_tables.read("figure7")) == 26
    values = pd.concat([paper_tables.linear_probe(), paper_tables.zero_shot(), paper_tables.shifts()])
    assert values.value.between(0, 1).all()
    assert values[["n", "metric", "split"]].notna().all().all()


@pytest.mark.parametrize("path", sorted(paper_tables.FOLDER.glob("*.csv")), ids=lambda path: path.stem)
def test_every_file_names_its_source(path: Path) -> None:
    line = paper_tables.source(path.stem)
    assert re.search(r"(Table|Figure) \d+", line)
    assert path.stem == "models" or "arXiv 2103.00020" in line


def test_table_11_has_the_sizes_of_figure_9_and_models_csv_the_same() -> None:
    known = paper_tables.read("models").set_index("model").gflops
    for row in paper_tables.read("table11").dropna(subset="figure9_gflops").itertuples():
        assert known[f"CLIP-{row.model}"] == row.figure9_gflops


def test_figure_14_is_the_difference_of_rows_of_table_16() -> None:
    shifts = paper_tables.shifts().pivot_table("value", "task", "model")
    probe, zero = (shifts.filter(like=name).iloc[:, 0] for name in ("Linear Probe", "Zero-Shot"))
    rows = paper_tables.read("figure14").assign(task=lambda rows: rows.dataset.map(paper_tables.SHIFT_NAMES))
    to_imagenet, to_classes = (
        rows[rows.adaptation == kind].set_index("task").difference for kind in ("to ImageNet", "to class shift")
    )
    apart = (100 * (probe - zero) - (to_imagenet - to_classes)).abs()
    assert apart[apart > 0.16].index.to_list() == ["ImageNet-Vid", "Youtube-BB"]  # the two means of pm-0 and pm-10
    assert apart.max() < 0.36


def test_figure_13_and_table_16_differ_only_in_imagenet_a() -> None:
    zero = paper_tables.shifts().pivot_table("value", "task", "model").filter(like="Zero-Shot").iloc[:, 0]
    rows = paper_tables.read("figure13")
    rows = rows[rows.model.str.startswith("Zero-shot")]
    differing = [
        row.dataset
        for row in rows.itertuples()
        if abs(row.value / 100 - zero[paper_tables.SHIFT_NAMES[row.dataset]]) > 1e-9
    ]
    assert differing == ["IN-A"]


# The numbers


def test_figure_9_has_the_slope_intercept_and_r() -> None:
    text = printed(fig09_scaling.COMMAND)
    assert "slope -0.0755, intercept 1.7193, r -0.993" in text
    assert "27 data sets" in text
    assert "split: test" in text


def test_figure_5_counts_16_of_27_and_names_the_two_misprints() -> None:
    text = printed(fig05_probe.COMMAND)
    assert "is better on 16 of 27 data sets" in text
    assert "2 of 27 differences" in text
    assert "KITTI: the figure prints -34.0, the tables give -45.2" in text
    assert "UCF101: the figure prints +7.7, the tables give +5.7" in text
    assert text.count("the figure prints") == 2


def test_figure_11_equals_the_tables() -> None:
    text = printed(fig11_probe_difference.COMMAND)
    assert "all 27 differences that the paper's figure prints equal the table's within 0.1 points" in text
    assert "is better on 20 of 27 data sets, equal on 1" in text


def test_figure_8_has_the_correlation_and_explains_the_papers_slope() -> None:
    text = printed(fig08_zero_shot_and_probe.COMMAND)
    assert "27 data sets: r 0.814, slope 1.32 (95 % interval 0.95 to 1.88)" in text
    assert "implies (UCF101 78.9, KITTI 33.1): r 0.822, slope 1.28 (95 % interval 0.94 to 1.78)" in text
    assert "the paper's text: r 0.82, slope 1.28 (95 % interval 0.93 to 1.79)" in text


def test_figure_7_has_mean_and_median() -> None:
    assert "mean 20.8, median 5.4 labelled images of a class, over 26 data sets" in printed(fig07_efficiency.COMMAND)


def test_figure_10_has_the_papers_leads() -> None:
    text = printed(fig10_models.COMMAND)
    assert "difference +2.64 points" in text  # 2.6 in the paper's text
    assert "difference +4.73 points" in text  # 5


def test_figure_13_has_the_printed_pairs_and_the_means_of_table_16() -> None:
    text = printed(fig13_robustness.COMMAND)
    for number in ("+74.4", "+51.2", "78.97", "72.58"):
        assert number in text


@pytest.mark.skipif(not TESTBED.is_file(), reason="imagenet-testbed's results are not beside this checkout")
def test_figure_13_over_the_testbed_has_the_fit_and_its_intervals() -> None:
    command = fig13_robustness.COMMAND
    text = "\n".join(command.draw(command.parser().parse_args(["--testbed", str(TESTBED)])).numbers)
    assert "80 standard models: slope 0.860 (95 % interval 0.816 to 0.922), intercept -2.077" in text
    assert "r2 0.962" in text
    assert "4.87 times as many errors as the ideal model" in text
    assert "CLIP ViT-B/32: 81.3 without, 54.0 under the shifts; effective robustness +23.3 points" in text
    points = testbed.read_testbed(TESTBED)
    wide = pd.read_csv(TESTBED).set_index("model")
    means = wide.loc[points.model, ["avg_class_subsampled_imagenet", "avg_7_natural_shifts"]].to_numpy() / 100
    assert np.abs(points[["accuracy", "shifted"]].to_numpy() - means).max() < 2e-5


def test_figure_14_agrees_with_table_16() -> None:
    text = printed(fig14_adaptation.COMMAND)
    assert "adapt to ImageNet -1.04 points, adapt to class shift +5.36 points" in text
    assert "Table 16: zero-shot 78.97 with own class names, linear probe 72.58" in text


@pytest.mark.slow
def test_figure_21_has_36_panels_with_the_bar_at_its_rank() -> None:
    found = drawn(fig21_predictions.COMMAND)
    assert found.figure is not None
    panels = [panel for panel in found.figure.subfigs if panel.axes]
    assert len(panels) == 36
    assert panels[4].axes[0].get_title(loc="left") == (
        "correct label: healthy lymph node tiss…\ncorrect rank: 2/2   correct probability: 22.81%"
    )
    assert [bar.get_width() for bar in panels[4].axes[0].patches] == pytest.approx([0, 22.81])
    assert found.numbers[-1] == "the correct class is the most probable of 26 of 36 images"


def test_the_appendix_tables_are_as_printed() -> None:
    found = drawn(appendix_tables.COMMAND)
    for number, name in ((11, "ImageNet"), (10, "ImageNet")):
        rows = pd.read_csv(paper_tables.FOLDER / f"table{number}.csv", comment="#", dtype=str)
        text = found.texts[f"_table{number}.csv"]
        for row in rows.itertuples():
            line = next(line for line in text.splitlines() if line.startswith(f"{row.model},"))
            assert line.replace("*", "").split(",")[-1] == getattr(row, name)
    # The paper prints L/14-336 bold in 21 columns; the interval of each column's best is that of its n.
    line = next(line for line in found.texts["_table10.csv"].splitlines() if line.startswith("CLIP-ViT-L/14-336px"))
    assert 15 <= line.count("*") <= 25
    assert "\\textbf{95.9}" in found.texts[".tex"]
    assert "Zero-Shot CLIP" in "\n".join(found.numbers)


def test_the_interval_of_the_best_is_clopper_and_pearsons() -> None:
    # Clopper and Pearson 1934: the quantile of Beta(hits, misses + 1).
    assert appendix_tables.least_of_best(0.9, 100) == pytest.approx(beta.ppf(0.0025, 90, 11))
    assert appendix_tables.least_of_best(0.9, None) == 0.9


# The files


@pytest.mark.slow
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write("fig07_efficiency", drawn(fig07_efficiency.COMMAND), tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"fig07_efficiency{suffix}" for suffix in (".csv", ".pdf", ".png", ".txt")]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a/fig07_efficiency.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a/fig07_efficiency.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in gallery.COMMANDS if command.paper], ids=lambda c: c.name)
def test_the_committed_numbers_are_current(command: Command, root: Path) -> None:
    """`make figures` draws them again."""
    found = drawn(command)
    committed = (root / "docs/figures" / f"{command.name}.txt").read_text(encoding="utf-8")
    assert committed == "\n".join([*found.numbers, found.caption, ""])


@pytest.mark.slow
@pytest.mark.parametrize("command", gallery.COMMANDS, ids=lambda command: command.name)
def test_every_caption_states_list_metric_split_and_n(command: Command) -> None:
    if command.paper is None:
        return
    caption = drawn(command).caption
    assert re.search(r"\d+ (natural|data sets|panels)|data sets", caption)
    assert re.search(r"top-1|metric|softmax", caption)
    assert "split: test" in caption
    assert re.search(r"n = [\d,]+", caption)


def test_averages_of_the_paper_are_its_own() -> None:
    means = averages(paper_tables.zero_shot()).set_index("model").value
    assert (100 * means).round(2).to_dict()["ViT-L/14-336px"] == 67.58
