"""The figures from directories of runs: what they read, draw and refuse."""

from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from clip_lightning.config import compose
from clip_lightning.errors import UserError
from clip_lightning.records import Record, RecordWriter
from experiments.figures import (
    appendix_tables,
    fig04_prompts,
    fig05_probe,
    fig06_fewshot,
    fig07_efficiency,
    fig08_zero_shot_and_probe,
    fig09_scaling,
    fig10_models,
    fig11_probe_difference,
    fig13_robustness,
    fig14_adaptation,
    gallery,
)
from experiments.figures.command import Command, Drawn
from experiments.figures.fig04_prompts import compute_equivalent
from experiments.figures.fig07_efficiency import shots_to_match
from experiments.figures.run_tables import parse, read_runs

MODELS = {"tiny_half": 0.5, "tiny": 0.6, "tiny_double": 0.7}


@cache
def config_of(model: str) -> str:
    return compose.dump(compose.load("train", [f"model={model}"], check=False))


def run_directory(folder: Path, model: str, records: list[Record], name: str | None = None) -> Path:
    """A run's directory as far as figures read it: the frozen config and the records."""
    run = folder / (name or f"{model}-scenes")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config_of(model), encoding="utf-8")
    with closing(RecordWriter(run / "metrics.jsonl", run=run.name, model=model, samples_seen=1000)) as writer:
        writer.write([Record(what="loss", value=2.0), *records])
    return run


def score(value: float, task: str = "shape", what: str = "acc1", **fields: object) -> Record:
    settings = {"split": "test", "prompts": "scenes", "prompts_hash": f"hash_of_{task}", "n": 960, "chance": 0.125}
    return Record(what=what, value=value, task=task, **{**settings, **fields})  # type: ignore[arg-type]


def three_runs(folder: Path, **fields: object) -> list[Path]:
    return [
        run_directory(folder, model, [score(value, **fields), score(value - 0.1, "color", **fields)])  # type: ignore[arg-type]
        for model, value in MODELS.items()
    ]


def draw(command: Command, *words: object) -> Drawn:
    return command.draw(command.parser().parse_args([str(word) for word in words]))


# What is read


@pytest.mark.parametrize(
    ("what", "parsed"),
    [
        ("acc1", ("zero_shot", None, "acc1")),
        ("mean_per_class", ("zero_shot", None, "mean_per_class")),
        ("linear_probe_acc1", ("linear_probe", None, "acc1")),
        ("few_shot_16_acc1", ("few_shot", 16, "acc1")),
        ("supervised_acc1", ("supervised", None, "acc1")),
    ],
)
def test_the_name_of_a_record_has_its_method(what: str, parsed: tuple[str, int | None, str]) -> None:
    assert parse(what) == parsed


@pytest.mark.slow
def test_the_last_measurement_counts_and_that_of_evaluate_replaces_it(tmp_path: Path) -> None:
    run = run_directory(tmp_path, "tiny", [score(0.2, samples_seen=500), score(0.4), score(0.9, weights="ema")])
    assert read_runs([run]).value.to_list() == [0.4]
    with closing(RecordWriter(run / "evaluation.jsonl", model="tiny", samples_seen=1000)) as writer:
        writer.write([score(0.45)])
    assert read_runs([run, run]).value.to_list() == [0.45]
    assert read_runs([run], weights="ema").value.to_list() == [0.9]


def test_runs_of_one_model_have_names_that_differ(tmp_path: Path) -> None:
    runs = [
        run_directory(tmp_path, "tiny", [score(0.4, samples_seen=seen)], name)
        for name, seen in (("a", 8000), ("b", 16000), ("c", 16000))
    ]
    assert list(dict.fromkeys(read_runs(runs[:2]).model)) == ["tiny, 8k samples", "tiny, 16k samples"]
    assert list(dict.fromkeys(read_runs(runs).model)) == ["tiny, 8k samples", "b", "c"]


# What is drawn


@pytest.mark.slow
def test_figure_9_of_runs_counts_their_own_operations(tmp_path: Path) -> None:
    found = draw(fig09_scaling.COMMAND, *three_runs(tmp_path))
    means = found.table[found.table.task == "mean"]
    assert means.model.to_list() == list(MODELS)  # ordered by operations
    assert means.gflops.is_monotonic_increasing
    assert (1 - means.error).to_list() == pytest.approx([0.45, 0.55, 0.65])
    assert "shape, color; top-1; split: test; prompts: scenes; n = 960 images." in found.caption


@pytest.mark.slow
def test_figure_4_has_the_gain_of_prompts_and_its_compute(tmp_path: Path) -> None:
    runs = []
    for model, value in MODELS.items():
        bare = {"prompts": "contextless", "prompts_hash": "bare"}
        scores = [
            score(value),
            score(value - 0.1, "color"),
            score(value - 0.2, **bare),
            score(value - 0.3, "color", **bare),
        ]
        runs.append(run_directory(tmp_path, model, scores))
    found = draw(fig04_prompts.COMMAND, *runs)
    assert found.numbers[1] == "scenes minus contextless: +20.00 points on average over 3 models"
    assert "times the compute gives the same gain" in found.numbers[2]
    with pytest.raises(UserError, match="--better own: the runs have only prompts=scenes, contextless"):
        draw(fig04_prompts.COMMAND, *runs, "--better", "own")


def test_figure_6_and_7_of_a_run(tmp_path: Path) -> None:
    few = [score(0.3 + 0.05 * k, what=f"few_shot_{2**k}_acc1", prompts="") for k in range(5)]
    run = run_directory(tmp_path, "tiny", [score(0.425), *few])
    curves = draw(fig06_fewshot.COMMAND, run).table
    assert curves.shots.to_list() == [0, 1, 2, 4, 8, 16]
    assert curves.value.to_list() == pytest.approx([0.425, 0.3, 0.35, 0.4, 0.45, 0.5])
    assert draw(fig07_efficiency.COMMAND, run).table.shots.to_list() == pytest.approx([2**2.5])
    never = run_directory(tmp_path, "tiny", [score(0.9), *few], "never")
    with pytest.raises(UserError, match="no number of labelled images matched"):
        draw(fig07_efficiency.COMMAND, never)
    twice = run_directory(tmp_path, "tiny", [score(0.425), score(0.2, prompts="contextless"), *few], "twice")
    with pytest.raises(UserError, match="one average would mix the prompts of shape"):
        draw(fig07_efficiency.COMMAND, twice)
    assert draw(fig07_efficiency.COMMAND, twice, "--prompts", "scenes").table.shots.to_list() == pytest.approx([2**2.5])


@pytest.mark.slow
def test_figures_5_8_10_11_of_runs_with_probes(tmp_path: Path) -> None:
    runs = []
    for model, value in MODELS.items():
        tasks = {"shape": 0.0, "color": 0.1, "digits": 0.15}
        zero = [score(value - below, task) for task, below in tasks.items()]
        probe = [score(value + 0.2 - 1.2 * b, task, "linear_probe_acc1", prompts="") for task, b in tasks.items()]
        runs.append(run_directory(tmp_path, model, [*zero, *probe]))
    assert "is better on 0 of 3 data sets" in "\n".join(draw(fig05_probe.COMMAND, runs[0]).numbers)
    assert "is better on 3 of 3 data sets" in "\n".join(draw(fig11_probe_difference.COMMAND, runs[2], runs[0]).numbers)
    numbers = "\n".join(draw(fig08_zero_shot_and_probe.COMMAND, runs[0]).numbers)
    assert "r 1.000, slope 0.83" in numbers
    assert "distance to the ideal line: mean -18.3 points" in numbers  # below it, as in the rows: -20, -18 and -17
    few = [
        score(0.5),
        score(0.6, "color"),
        *(score(1.0, k, "linear_probe_acc1", prompts="") for k in ("shape", "color")),
    ]
    with pytest.raises(
        UserError, match=r"needs three with different probe scores; there are color 100\.0, shape 100\.0"
    ):
        draw(fig08_zero_shot_and_probe.COMMAND, run_directory(tmp_path, "tiny", few, "few"))
    with pytest.raises(UserError, match="perfect has no errors on average"):
        draw(fig09_scaling.COMMAND, *runs, run_directory(tmp_path, "tiny", [score(1.0, k) for k in tasks], "perfect"))
    bare = [score(0.4, task, prompts="contextless") for task in ("shape", "color", "digits")]
    both = run_directory(
        tmp_path, "tiny", [score(0.5), *bare, score(0.6, what="linear_probe_acc1", prompts="")], "both"
    )
    for figure in (fig05_probe, fig08_zero_shot_and_probe, appendix_tables):
        with pytest.raises(UserError, match=r"mix the prompts of shape .*scenes; .*contextless.*choose with --prompts"):
            draw(figure.COMMAND, both)
    assert draw(fig10_models.COMMAND, *runs).table.value.to_list() == pytest.approx([0.6, 0.7, 0.8])
    assert draw(fig14_adaptation.COMMAND, runs[0]).table.value.to_list() == pytest.approx([0.2, 0.18, 0.17])
    tables = draw(appendix_tables.COMMAND, *runs, "--reference", "shape", "--shifts", "color", "digits").texts
    assert {"_table9.csv", "_table10.csv", "_table11.csv", "_table16.csv", ".tex"} == set(tables)
    assert tables["_table16.csv"].splitlines()[1] == "tiny_half,50.0,40.0,35.0"


def test_figure_13_of_runs_fits_the_supervised_ones(tmp_path: Path) -> None:
    def both(what: str, accuracy: float, shifted: float) -> list[Record]:
        prompts = "scenes" if what == "acc1" else ""
        return [score(accuracy, "shape", what, prompts=prompts), score(shifted, "sketch", what, prompts=prompts)]

    standard = [
        run_directory(tmp_path, "tiny", both("supervised_acc1", accuracy, accuracy - 0.3), f"standard{k}")
        for k, accuracy in enumerate((0.6, 0.7, 0.8, 0.9))
    ]
    zero = run_directory(tmp_path, "tiny", both("acc1", 0.8, 0.78), "zero")
    words = ["--reference", "shape", "--shifts", "sketch"]
    found = draw(fig13_robustness.COMMAND, *standard, zero, *words)
    assert found.table.group.value_counts().to_dict() == {"standard": 4, "zero-shot": 1}
    assert "4 standard models" in found.numbers[0]
    slope, intercept = np.polyfit(logit([0.6, 0.7, 0.8, 0.9]), logit([0.3, 0.4, 0.5, 0.6]), 1)
    above = 78 - 100 * expit(intercept + slope * logit(0.8))
    assert f"effective robustness {above:+.1f} points" in found.numbers[1]
    assert found.table[found.table.group == "standard"].model.str.endswith(", supervised").all()
    texts = [text.get_text() for text in found.figure.axes[0].texts]
    assert len(texts) == 1, "the zero-shot model alone has its name beside it"
    perfect = run_directory(tmp_path, "tiny", both("supervised_acc1", 1.0, 0.9), "perfect")
    more = draw(fig13_robustness.COMMAND, *standard, perfect, zero, *words)
    assert more.numbers[-1] == "left out, since 0 and 1 have no logit: perfect, supervised (standard)"
    assert more.numbers[0] == found.numbers[0]
    with pytest.raises(UserError, match="needs at least 3 models, and there are 2"):
        draw(fig13_robustness.COMMAND, *standard[:2], zero, *words)
    with pytest.raises(UserError, match="needs standard models, trained on labels"):
        draw(fig13_robustness.COMMAND, zero, *words)


@pytest.mark.slow
def test_the_gallery_has_every_figure_or_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = three_runs(tmp_path)
    assert gallery.main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/gallery.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == len(gallery.COMMANDS)
    assert '<img src="fig09_scaling.png"' in page
    assert (tmp_path / "out/fig09_scaling.png").is_file()
    assert "fig04_prompts: not drawn: " in capsys.readouterr().out
    runs = [
        run_directory(tmp_path / "both", model, [score(value), score(value - 0.1, prompts="contextless")])
        for model, value in MODELS.items()
    ]
    assert gallery.main([*map(str, runs), "--out", str(tmp_path / "both"), "--prompts", "scenes"]) == 0
    printed = capsys.readouterr().out
    assert "fig04_prompts: not drawn" not in printed
    assert "fig09_scaling: not drawn" not in printed


# Rules


def test_shots_are_interpolated_in_their_logarithm() -> None:
    shots, scores = np.array([1.0, 2, 4, 8]), np.array([0.2, 0.4, 0.5, 0.6])
    assert shots_to_match(shots, scores, 0.4) == pytest.approx(2)
    assert shots_to_match(shots, scores, 0.45) == pytest.approx(2**1.5)
    assert shots_to_match(shots, scores, 0.1) == pytest.approx(2**-0.5)  # below one, as EuroSAT's 0.9
    assert shots_to_match(shots, scores, 0.7) == float("inf")


def test_the_compute_equivalent_inverts_the_fit() -> None:
    assert compute_equivalent(0.4, 0.4 * 4**-0.0755, -0.0755) == pytest.approx(4)
    assert compute_equivalent(0.4, 0.3, 0.01) is None


# What is refused


def test_a_path_that_is_not_a_run_and_a_run_without_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the directory of a run: it has no metrics\.jsonl"):
        draw(fig09_scaling.COMMAND, tmp_path)
    run = run_directory(tmp_path, "tiny", [])
    with pytest.raises(UserError, match=f"no measurement on a task; make them: python evaluate.py run={run}"):
        draw(fig09_scaling.COMMAND, run)


def test_fewer_than_three_models_have_no_fit() -> None:
    with pytest.raises(UserError, match="at least 3 models, and there are 2"):
        fig09_scaling.fit_error(pd.DataFrame({"gflops": [1.0, 2.0], "error": [0.4, 0.3]}))


def adapted_run(folder: Path) -> Path:
    """A run with zero-shot scores and a probe on `shape` and a shifted set."""
    zero, probe = {"shape": 0.7, "sketch": 0.5, "blurred": 0.3}, {"shape": 0.9, "sketch": 0.6, "blurred": 0.2}
    records = [score(value, task) for task, value in zero.items()]
    records += [score(value, task, "linear_probe_acc1") for task, value in probe.items()]
    return run_directory(folder, "tiny", records, "adapted")


@pytest.mark.slow
def test_adaptation_is_shown_among_standard_models(tmp_path: Path) -> None:
    drops = {"shape": 0.0, "sketch": 0.3, "blurred": 0.5}
    standard = []
    for value in (0.6, 0.7, 0.9):
        records = [score(value - drop, task, "supervised_acc1") for task, drop in drops.items()]
        standard.append(run_directory(tmp_path, "tiny", records, f"standard{value}"))
    run = adapted_run(tmp_path)
    words = ["--reference", "shape", "--shifts", "sketch", "blurred"]
    found = draw(fig14_adaptation.COMMAND, run, *words, "--standard", *standard)
    text = "\n".join(found.numbers)
    assert "zero-shot: 70.0 on shape, 40.0 under the shifts" in text
    assert "linear probe: 90.0 on shape, 40.0 under the shifts" in text
    assert "3 standard models" in text
    assert "adapt to shape" in text
    two = draw(fig14_adaptation.COMMAND, run, *words, "--standard", *standard[:2])
    assert not any("slope" in line for line in two.numbers)  # too few for a fit
    assert two.caption.endswith("Left: 2 standard models, trained on labels.")
    with pytest.raises(UserError, match="needs both --reference TASK and --shifts"):
        draw(fig14_adaptation.COMMAND, run, "--reference", "shape")
    with pytest.raises(UserError, match=r"--standard needs models trained on labels; .* --supervised --tasks shape"):
        draw(fig14_adaptation.COMMAND, run, *words, "--standard", run)


@pytest.mark.parametrize(
    ("column", "fields"),
    [("split", {"split": "train"}), ("prompts", {"prompts": "contextless"}), ("prompts_hash", {"prompts_hash": "x"})],
)
def test_a_mixed_average_is_refused_with_the_rows_that_differ(
    tmp_path: Path, column: str, fields: dict[str, str]
) -> None:
    runs = three_runs(tmp_path)
    other = run_directory(tmp_path, "tiny", [score(0.5, **fields), score(0.4, "color")], "other")
    with pytest.raises(UserError) as refused:
        draw(fig09_scaling.COMMAND, *runs[:2], other)
    (sentence,) = refused.value.problems
    assert f"would mix the {column} of shape" in sentence
    assert f": {next(iter(fields.values()))}" in sentence


def test_metrics_are_not_mixed_over_data_sets_outside_a_list(tmp_path: Path) -> None:
    runs = [
        run_directory(tmp_path, model, [score(value), score(value, "OxfordPets", "mean_per_class")])
        for model, value in MODELS.items()
    ]
    with pytest.raises(
        UserError, match=r"would mix the metric over data sets \(.*shape: acc1; .*OxfordPets: mean_per_class"
    ):
        draw(fig09_scaling.COMMAND, *runs)


@pytest.mark.slow
def test_a_data_set_that_one_run_lacks_is_named(tmp_path: Path) -> None:
    runs = [*three_runs(tmp_path)[:2], run_directory(tmp_path, "tiny", [score(0.5)], "other")]
    with pytest.raises(UserError, match="other was not measured on color, which other models were"):
        draw(fig09_scaling.COMMAND, *runs)


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (fig04_prompts.COMMAND, "experiments.figures.measure .* --prompts"),
        (fig05_probe.COMMAND, "experiments.figures.measure .* --probe"),
        (fig06_fewshot.COMMAND, "experiments.figures.measure .* --shots 1 2 4 8 16"),
        (fig07_efficiency.COMMAND, "experiments.figures.measure .* --shots"),
        (fig08_zero_shot_and_probe.COMMAND, "experiments.figures.measure .* --probe"),
        (fig10_models.COMMAND, "experiments.figures.measure .* --probe"),
        (fig11_probe_difference.COMMAND, "experiments.figures.measure .* --probe"),
        (fig14_adaptation.COMMAND, "experiments.figures.measure .* --probe"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_missing_records_are_reported_with_the_command_that_makes_them(
    tmp_path: Path, command: Command, needed: str
) -> None:
    with pytest.raises(UserError, match=needed):
        draw(command, run_directory(tmp_path, "tiny", [score(0.5)]))


def test_arguments_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--paper draws the paper's printed numbers and takes no runs"):
        draw(fig09_scaling.COMMAND, tmp_path, "--paper")
    with pytest.raises(UserError, match="there is nothing to draw: name directories of runs or --paper"):
        draw(fig09_scaling.COMMAND)
    with pytest.raises(UserError, match="does not exist; name the results file of imagenet-testbed"):
        draw(fig13_robustness.COMMAND, "--testbed", tmp_path / "none.csv")


def test_a_results_file_without_its_columns_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    pd.DataFrame({"model": ["a"], "val": [76.1]}).to_csv(file, index=False)
    with pytest.raises(UserError, match="lacks the columns imagenetv2-matched-frequency, imagenet-a"):
        draw(fig13_robustness.COMMAND, "--testbed", file)


def test_a_wrong_task_metric_or_set_of_prompts_is_named(tmp_path: Path) -> None:
    runs = three_runs(tmp_path)
    for option, value in (("--tasks", "shapes"), ("--metric", "acc5"), ("--prompts", "own")):
        with pytest.raises(UserError, match=f"{option} {value}: the runs have no such measurement; they have"):
            draw(fig09_scaling.COMMAND, *runs, option, value)
