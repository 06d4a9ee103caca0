"""The commands of the registry on directories of runs."""

import json
from pathlib import Path

import pandas as pd
import pytest

from clip_lightning.errors import UserError
from clip_lightning.runs.__main__ import main, ordered
from tests.support.run_directories import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "low", "compute.seed=1", accuracy=0.25)
    write_run(folder / "high", "compute.seed=2", accuracy=0.75)
    write_run(folder / "middle", "loss=sigmoid", accuracy=0.5, status="running")  # and its process is gone
    return folder


def printed(capsys: pytest.CaptureFixture[str], runs: Path, *argv: str) -> list[str]:
    assert main(["--runs", str(runs), *argv]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_ls_sorts_scores_with_the_best_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, runs, "ls", "--sort", "shape/acc1")
    assert lines[0].split()[:4] == ["shape/acc1", "state", "samples", "time"]
    assert [line.split()[-1] for line in lines[1:4]] == ["high", "middle", "low"]
    assert lines[1].startswith("75.0%")
    assert lines[-1] == "3 runs"
    lines = printed(capsys, runs, "ls", "--sort", "train_loss", "--reverse")
    assert len(lines) == 5


def test_ls_shows_where_a_run_stands_now(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [json.loads(line) for line in printed(capsys, runs, "ls", "--json", "--where", "state=interrupted")]
    assert line["run"] == "middle"
    assert line["samples_seen"] == 80


def test_where_reads_any_config_key(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, runs, "ls", "--where", "loss.name=softmax and compute.seed>1", "--columns", "compute.seed")
    assert lines[1].split()[0] == "2"
    assert lines[-1] == "1 run"
    assert printed(capsys, runs, "ls", "--where", "model=none")[0].startswith("no run in")


def test_best_prints_a_directory(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, runs, "best", "color/acc1")[0].split() == [str(runs / "high"), "0.75"]
    two = printed(capsys, runs, "best", "color/acc1", "-n", "2", "--where", "not run=high")
    assert [Path(line.split()[0]).name for line in two] == ["middle", "low"]
    with pytest.raises(UserError, match=r"no run in .* has color/acc; did you mean .*color/acc1"):
        main(["--runs", str(runs), "best", "color/acc"])


def test_show_prints_every_key(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = dict(line.split(maxsplit=1) for line in printed(capsys, runs, "show", "high"))
    assert shown["compute.seed"] == "2"
    assert shown["shape/acc1"] == "0.75"
    with pytest.raises(UserError, match="neither the directory of a run"):
        main(["--runs", str(runs), "show", "absent"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_export_writes_every_key(runs: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / f"table{suffix}"
    printed(capsys, runs, "export", "--out", str(out), "--where", "compute.seed>0")
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.read_json(path, lines=True)}
    table = readers[suffix](out).set_index("run")
    assert set(table.index) == {"low", "high"}
    assert table.loc["high", "color/acc1"] == 0.75
    assert table.loc["low", "compute.seed"] == 1


def test_rows_without_a_value_come_last() -> None:
    rows = [{"a/acc1": None}, {"a/acc1": 0.1}, {"a/acc1": 0.2}]
    assert [row["a/acc1"] for row in ordered(rows, "a/acc1")] == [0.2, 0.1, None]
    assert [row["a/acc1"] for row in ordered(rows, "a/acc1", reverse=True)] == [0.1, 0.2, None]
    losses = [{"x/val_loss": 2.0}, {"x/val_loss": 1.0}]
    assert ordered(losses, "x/val_loss")[0]["x/val_loss"] == 1.0
