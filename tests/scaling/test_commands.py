"""The verbs fit, check, compare, recommend and show on tables on the disk."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_lightning.errors import UserError
from clip_lightning.scaling.__main__ import main
from clip_lightning.scaling.compare import crossing, differences
from clip_lightning.scaling.fit import Settings, fit
from clip_lightning.scaling.law import load
from clip_lightning.scaling.table import points_of
from tests.scaling.studies import best_n, grid, points, surface

SURFACE = ["--form", "surface", "--n", "n", "--d", "d", "--y", "loss", "--draws", "100"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.csv"
    grid(np.geomspace(1e18, 1e20, 4), 6, 5, noise=0.003).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_fit_writes_parameters_intervals_predictions_and_verdict(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fit.json"
    place = f"n={best_n(2e20)},d={2e20 / 6 / best_n(2e20)}"
    code = main(
        ["fit", "--table", str(study), *SURFACE, "--predict", place, "--json", str(out), "--huber-delta", "1e-2"]
    )
    assert code == 0
    content = json.loads(out.read_text())
    assert set(content["parameters"]) == {"E", "A", "B", "alpha", "beta"} == set(content["intervals"])
    assert content["verdict"] == "identified" or content["verdict"].startswith("not identified: ")
    (prediction,) = content["predictions"]
    truth = float(surface(np.array(best_n(2e20)), np.array(2e20 / 6 / best_n(2e20))))
    assert prediction["run_low"] < truth < prediction["run_high"]
    assert prediction["reach"] == pytest.approx(2, rel=1e-6)
    printed = capsys.readouterr().out
    assert "variable projection" in printed
    assert "huber" in printed
    assert {one["method"] for one in content["allocations"]} == {"surface", "isoflop", "pareto"}


@pytest.mark.slow
def test_fit_that_was_written_predicts_without_the_table(study: Path, tmp_path: Path) -> None:
    law = fit(points(pd.read_csv(study)), "surface", Settings(draws=100, flops_per_nd=6.0, starts=16), file="x")
    law.save(tmp_path / "fit.json")
    again = load(tmp_path / "fit.json")
    place = {"n": np.array([1e9, 2e9]), "d": np.array([1e10, 2e10])}
    assert [one.value for one in again.predict(place)] == [one.value for one in law.predict(place)]
    assert again.predict(place)[1].low == law.predict(place)[1].low
    assert again.parameters == law.parameters


@pytest.mark.ci
def test_hold_out_is_tested_with_error_and_coverage(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fit.json"
    main(["fit", "--table", str(study), *SURFACE, "--holdout", "flops>5e19", "--json", str(out)])
    content = json.loads(out.read_text())
    assert content["data"]["num_points"] == 15
    assert content["holdout"]["rows"] == [16, 17, 18, 19, 20]
    assert content["holdout"]["mean_relative_error"] < 0.02
    assert content["holdout"]["largest_reach"] == pytest.approx(100 ** (1 / 3), rel=1e-3)
    assert len(content["predictions"]) == 5
    assert "held out   5 rows: mean absolute error" in capsys.readouterr().out


def test_a_file_is_written_into_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/plan.json"
    assert main(["plan", "--ladder", "cpu", "--budgets", "1e12", "--json", str(path)]) == 0
    assert json.loads(path.read_text())


def test_holding_out_everything_is_refused(study: Path) -> None:
    with pytest.raises(UserError, match="holds out every row"):
        main(["fit", "--table", str(study), *SURFACE, "--holdout", "flops>1"])


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", '{"version": 2, "stages": 3}'])
def test_file_that_is_not_a_fit_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a fit"):
        load(path)


@pytest.mark.slow
def test_check_back_tests_and_leaves_groups_out(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(study).assign(data=["a", "b"] * 10)
    table.to_csv(tmp_path / "study.csv", index=False)
    out = tmp_path / "check.json"
    main(["check", "--table", str(tmp_path / "study.csv"), *SURFACE, "--leave-out", "data", "--json", str(out)])
    content = json.loads(out.read_text())
    assert [test["num_fitted"] for test in content["back_tests"]] == [5, 10, 15]
    assert content["back_tests"][0]["reason"].startswith("refused: all rows (1 to 5) have one budget")
    assert content["back_tests"][2]["relative_error"] < 0.02
    assert [test["name"] for test in content["without data"]] == ["a", "b"]
    assert "without data" in capsys.readouterr().out


def test_laws_that_cross_are_found_to_cross_there() -> None:
    x = np.geomspace(1, 1000, 12)
    rng = np.random.default_rng(0)
    laws = []
    for floor, a in ((1.0, 2.0), (1.2, 1.4)):  # they cross where 0.6 x^-0.3 = 0.2
        y = (floor + a * x**-0.3) * np.exp(0.001 * rng.standard_normal(12))
        table = pd.DataFrame({"flops": x, "loss": y}, index=pd.RangeIndex(1, 13))
        found = points_of(table, {"x": "flops", "y": "loss"}, "power_floor")
        laws.append(fit(found, "power_floor", Settings(draws=100, with_profiles=False, starts=16)))
    at = crossing(*laws, largest=1000)
    truth = 3 ** (1 / 0.3)
    assert at.budget == pytest.approx(truth, rel=0.1)
    assert at.low is not None
    assert at.high is not None
    assert at.low < truth < at.high
    early, late = differences(*laws, np.array([2.0, 1000.0]))
    assert early.share_first_better == 0
    assert late.share_first_better == 1
    assert late.low < (1.0 - 1.2) + 0.6 * 1000**-0.3 < late.high


@pytest.mark.ci
def test_compare_prints_who_wins_and_refuses_what_is_out_of_reach(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(study)
    both = pd.concat([table.assign(data="a"), table.assign(data="b", loss=table.loss * 1.1)])
    both.to_csv(tmp_path / "two.csv", index=False)
    words = ["compare", "--table", str(tmp_path / "two.csv"), *SURFACE, "--by", "data"]
    main([*words, "--at", "1e20", "--json", str(tmp_path / "out.json")])
    (row,) = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert row["share_first_better"] == 1
    assert "crossing   none" in capsys.readouterr().out
    with pytest.raises(UserError, match="100 times the largest budget of one of the two"):
        main([*words, "--at", "1e22"])
    with pytest.raises(UserError, match="compare takes two values and this has 1"):
        main([*words, "--where", "data=a"])


@pytest.mark.ci
def test_show_writes_a_page_and_a_picture(study: Path, tmp_path: Path) -> None:
    for name, head in (("page.html", b"<!doctype html>"), ("page.png", b"\x89PNG")):
        main(["show", "--table", str(study), *SURFACE, "--x", "flops", "--out", str(tmp_path / name)])
        assert (tmp_path / name).read_bytes().startswith(head)
    with pytest.raises(UserError, match=r"ends in \.png or \.html"):
        main(["show", "--table", str(study), *SURFACE, "--out", str(tmp_path / "page.pdf")])


@pytest.mark.slow
def test_no_verb_imports_torch() -> None:
    code = "import sys; from clip_lightning.scaling.__main__ import main\n"
    code += "try:\n main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
