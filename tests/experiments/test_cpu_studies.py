"""The studies on a CPU: predictions are compared run by run, regrets are those of the cells, none is predicted late."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clip_lightning.errors import UserError
from experiments.studies import cpu_grid, dial


def run_row(model: str, rate: float, seed: int, accuracy: float, loss: float, flops: float = 1e11) -> dict[str, Any]:
    return {"state": "finished", "model": model, "learning_rate": rate, "seed": seed, "acc1": accuracy,
            "val_loss_1024": loss, "model_flops": flops, "flops_per_sample": 8e6}  # fmt: skip


def test_held_out_runs_are_compared_with_the_prediction_of_their_cell() -> None:
    predictions = [
        {"at": {"n": 8.1e6, "d": 1e5}, "value": 5.0, "run_low": 4.5, "run_high": 5.5},
        {"at": {"n": 30e6, "d": 2e4}, "value": 4.0, "run_low": 3.9, "run_high": 4.1},
    ]
    prediction = {"form": "surface", "columns": {"y": "val_loss_1024"}, "predictions": predictions}
    rows = pd.DataFrame([run_row("tiny_quarter", 1e-3, 0, 0.5, 4.0), run_row("tiny_quarter", 1e-3, 1, 0.5, 5.0)])
    text = cpu_grid.compared(prediction, rows)
    assert "1 of 2 inside" in text
    assert "mean absolute error 12.50%" in text  # 5 / 4 - 1, and 0


def test_prediction_after_the_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "runs.csv"
    pd.DataFrame([run_row("tiny_quarter", 1e-3, 0, 0.5, 4.0, flops=6e11)]).to_csv(table, index=False)
    monkeypatch.setattr(cpu_grid, "collect", lambda runs, path: table)
    with pytest.raises(UserError, match="already has runs of the largest budget"):
        cpu_grid.predict(argparse.Namespace(runs=tmp_path, out=tmp_path))
    with pytest.raises(UserError, match="run the step plan first"):
        cpu_grid.main(["train_smaller", "--runs", str(tmp_path / "none")])
    with pytest.raises(UserError, match="there is no step trane; write some of plan, train_smaller"):
        cpu_grid.main(["trane", "--runs", str(tmp_path)])


def test_a_rung_is_predicted_before_it_is_run_by_every_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rung = {"model": "tiny_half", "n": 3e7, "d": 2e4, "flops": 6e11, "learning_rate": 1e-3}
    monkeypatch.setattr(dial, "rung_of", lambda number: rung)
    fits = Path(dial.__file__).parent / "results/cpu_grid"
    for name in ("prediction_surface.json", "prediction_bounded.json", "fit_surface.json"):
        shutil.copy(fits / name, tmp_path / name)
    pd.DataFrame([run_row("tiny_half", 1e-3, 0, 0.5, 4.0)]).to_csv(tmp_path / "runs.csv", index=False)
    arguments = argparse.Namespace(study=tmp_path, out=tmp_path, runs=tmp_path)
    dial.predict(arguments)
    found = json.loads((tmp_path / "prediction_r4.json").read_text())["predictions"]
    assert set(found) == {"prediction_surface", "prediction_bounded"}
    assert all(one["run_low"] < one["value"] < one["run_high"] for one in found.values())
    pd.DataFrame([run_row("tiny_half", 1e-3, 0, 0.5, 4.0, flops=6e11)]).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(UserError, match="already has runs of rung 4; this would be no prediction"):
        dial.predict(arguments)


def test_regret_is_that_of_the_best_cell_and_of_the_one_the_other_seed_chose() -> None:
    rung = {"model": "tiny_half", "learning_rate": 1e-3, "flops": 1e11}
    rows = [("tiny_half", 1e-3, (0.40, 0.44), (5.0, 5.2)), ("tiny", 1e-3, (0.46, 0.42), (5.1, 5.1)),
            ("tiny_half", 2e-3, (0.38, 0.46), (4.9, 5.1))]  # fmt: skip
    table = pd.DataFrame(
        [run_row(m, rate, k, acc[k], loss[k]) for m, rate, acc, loss in rows for k in (0, 1)]
        + [run_row("tiny", 1e-3, 0, 0.9, 3.0, flops=2e11)]
    )
    text = dial.regrets(1, rung, table)
    assert "regret 2.0 points of mean accuracy over 3 cells" in text  # 44 of tiny - 42
    # Seed 0 chooses tiny, which has 42 - 44 with seed 1; seed 1 chooses the rate 2e-3, which has 38 - 40 with seed 0.
    assert "-2.0 where the best is chosen by the other seed" in text
    assert "0.100 in loss; the rung's two seeds differ by 4.0 points" in text


def test_last_rung_is_inside_or_outside_of_its_interval() -> None:
    one = {"metric": "val_loss_1024", "value": 4.5, "run_low": 4.0, "run_high": 5.0}
    prediction = {"level": 0.9, "predictions": {"prediction_surface": one}}
    rows = pd.DataFrame([run_row("tiny_half", 1e-3, 1, 0.5, 5.5), run_row("tiny_half", 1e-3, 0, 0.5, 4.4)])
    lines = dial.compared(prediction, rows).splitlines()
    assert [line.split()[-1] for line in lines] == ["inside", "yes", "no"]
    assert np.isclose(float(lines[1].split()[-2]), 4.4)


@pytest.mark.slow
def test_the_sweeps_of_a_study_that_is_terminated_end_with_it(root: Path) -> None:
    sweep = "import os, time; print('sweep', os.getpid(), flush=True); time.sleep(60)"
    study = f"from experiments.studies import commands; commands._start('-c', {sweep!r}).wait()"
    with subprocess.Popen([sys.executable, "-c", study], cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = next(int(line.split()[1]) for line in process.stdout if line.startswith("sweep "))
        process.send_signal(signal.SIGTERM)
        process.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < end, "the sweep outlives its study"
        time.sleep(0.05)
