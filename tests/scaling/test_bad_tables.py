"""What no law can be fitted to is refused in one sentence, with the row's number."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_lightning.errors import UserError
from clip_lightning.scaling.__main__ import main
from clip_lightning.scaling.fit import Settings, fit
from clip_lightning.scaling.table import kind_of, matches, points_of, read_table
from tests.scaling.studies import grid, points

QUICK = Settings(draws=0, with_profiles=False, starts=9)


def power_table(**changes: object) -> pd.DataFrame:
    x = np.geomspace(1e15, 1e18, 6)
    table = pd.DataFrame({"flops": x, "val_loss_1024": 1 + 4e4 * x**-0.3}).assign(**changes)
    table.index = pd.RangeIndex(1, 7)
    return table


def refusal(table: pd.DataFrame, y: str = "val_loss_1024", form: str = "power_floor") -> str:
    with pytest.raises(UserError) as caught:
        fit(points_of(table, {"x": "flops", "y": y}, form), form, QUICK)
    assert len(caught.value.problems) == 1, caught.value.problems
    return caught.value.problems[0]


def test_fewer_points_than_parameters() -> None:
    message = refusal(power_table()[:3], form="shifted_floor")
    assert "has 4 parameters (E, a, alpha, log_b) and the table only 3 points, row 3 the last" in message


def test_seeds_of_too_few_places() -> None:
    table = grid(np.array([1e18, 1e19]), 4, 2, noise=0.01, seeds=4)
    with pytest.raises(UserError, match=r"surface has 5 parameters and the 16 rows, 1 to 16, are at 4 places of n, d"):
        fit(points(table), "surface", QUICK)


def test_one_budget_only() -> None:
    losses = np.linspace(2, 3, 6)
    assert "1 budget in flops, and power_floor needs 3" in refusal(power_table(flops=1e18, val_loss_1024=losses))


def test_all_models_at_one_data_size() -> None:
    table = grid(np.array([1e18, 1e19]), 4, 3).assign(d=1e10)
    with pytest.raises(UserError, match=r"rows \(1 to 6\) have 1 data size in d, and surface needs 2"):
        fit(points(table), "surface", QUICK)


def test_all_runs_of_a_surface_at_one_budget() -> None:
    with pytest.raises(UserError, match=r"rows \(1 to 7\) have one budget, n x d"):
        fit(points(grid(np.array([1e18]), 4, 7)), "surface", QUICK)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (63.2, "row 3: acc1=63.2 is outside 0 to 1; an accuracy is a fraction, so divide percents by 100"),
        (-0.1, "row 3: acc1=-0.1 is outside 0 to 1"),
        (float("nan"), "row 3: acc1 is empty or not a number"),
    ],
)
def test_accuracy_that_is_no_fraction(value: float, words: str) -> None:
    accuracies = [0.1, 0.2, value, 0.4, 0.5, 0.6]
    assert words in refusal(power_table(acc1=accuracies), "acc1")


@pytest.mark.parametrize(("value", "words"), [(0.0, "=0, and a loss must be above 0"), (-1.0, "=-1, and a loss")])
def test_loss_that_is_not_above_zero(value: float, words: str) -> None:
    losses = [3, 2.5, 2.2, value, 2, 1.9]
    assert f"row 4: val_loss_1024{words}" in refusal(power_table(val_loss_1024=losses))


def test_empty_loss_and_infinite_budget() -> None:
    assert "row 2: val_loss_1024 is empty" in refusal(power_table(val_loss_1024=[3, None, 2.2, 2.1, 2, 1.9]))
    assert "row 6: flops is empty or not a number" in refusal(power_table(flops=[1e15, 2e15, 3e15, 4e15, 5e15, np.inf]))
    assert "row 1: flops=0, and an input must be above 0" in refusal(
        power_table(flops=[0, 2e15, 3e15, 4e15, 5e15, 6e15])
    )


def test_repeated_row() -> None:
    table = power_table()
    table.loc[5, ["flops", "val_loss_1024"]] = table.loc[2, ["flops", "val_loss_1024"]]
    assert "row 5 repeats row 2" in refusal(table)


def test_equal_runs_of_two_seeds_are_not_repeated() -> None:
    table = power_table(seed=[0, 1, 2, 3, 4, 5])
    table.loc[5, ["flops", "val_loss_1024"]] = table.loc[2, ["flops", "val_loss_1024"]]
    assert len(points_of(table, {"x": "flops", "y": "val_loss_1024"}, "power_floor")) == 6


def test_mixed_metrics_and_mixed_n() -> None:
    assert "row 4: metric is acc5, and acc1 before" in refusal(power_table(metric=["acc1"] * 3 + ["acc5"] * 3))
    mixed = power_table(val_loss_1024_n=[1024] * 5 + [512])
    assert "row 6: val_loss_1024_n is 512, and 1024 before" in refusal(mixed)


def test_training_loss_across_batches_gives_the_reason() -> None:
    table = power_table(global_batch=[128, 128, 256, 256, 512, 512]).rename(columns={"val_loss_1024": "train_loss"})
    assert "row 3: global_batch is 256, and 128 before; the training loss of a contrastive model depends on" in refusal(
        table, "train_loss"
    )
    one_batch = table.assign(global_batch=128)
    assert fit(points_of(one_batch, {"x": "flops", "y": "train_loss"}, "power"), "power", QUICK).kind == "loss"


def test_budget_outside_the_reach() -> None:
    law = fit(points_of(power_table(), {"x": "flops", "y": "val_loss_1024"}, "power_floor"), "power_floor", QUICK)
    with pytest.raises(UserError, match="row 2 of what is to be predicted has 20 times the largest budget"):
        law.predict({"x": [1e18, 2e19]})
    far = law.predict({"x": [1e18, 2e19]}, beyond_reach=True)
    assert [one.reach for one in far] == pytest.approx([1, 20])
    assert "(20 times the largest budget of the data)" in str(far[1])


def test_several_faults_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        points_of(power_table(val_loss_1024=[3, None, -1, 2.1, 2, 1.9]), {"x": "flops", "y": "val_loss_1024"}, "power")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["row 2", "row 3"]


def test_unknown_column_names_its_neighbour() -> None:
    with pytest.raises(UserError, match="no column val_los; did you mean val_loss"):
        points_of(power_table(val_loss=1.0), {"x": "flops", "y": "val_los"}, "power")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("val_loss_1024", "loss"), ("imagenet/acc1", "accuracy"), ("imagenet_err", "error"), ("recall_at_5", "accuracy")],
)
def test_kind_follows_from_the_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_conditions() -> None:
    table = power_table(data=["a"] * 3 + ["b"] * 3)
    assert matches(table, "data=b").tolist() == [False] * 3 + [True] * 3
    assert matches(table, "flops>1e17").sum() == 2
    assert matches(table, "data!=b").sum() == 3
    for wrong in ("flops", "data>b", "nothing=3"):
        with pytest.raises(UserError):
            matches(table, wrong)


def test_command_exits_with_the_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "missing.csv")
    path = tmp_path / "table.csv"
    power_table(acc1=[0.1, 0.2, 30, 0.4, 0.5, 0.6]).to_csv(path, index=False)
    with pytest.raises(UserError, match="row 3: acc1=30"):
        main(["fit", "--table", str(path), "--x", "flops", "--y", "acc1", "--form", "power"])
