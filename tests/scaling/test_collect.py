"""Runs of this project and of open_clip, and published tables, become tidy rows; runs that failed keep their reason."""

import json
from pathlib import Path

import pandas as pd
import pytest

from clip_lightning.config import compose
from clip_lightning.errors import UserError
from clip_lightning.records import Record, RecordWriter
from clip_lightning.scaling.__main__ import main
from clip_lightning.scaling.costs import of_models
from clip_lightning.scaling.open_clip_runs import model_name
from tests.scaling.studies import REFERENCE


def write_run(folder: Path, *settings: str, status: str = "finished", reason: str = "", seen: int = 2560) -> Path:
    """A run's directory as training writes it, without its checkpoints."""
    config = compose.load("train", ["data=scenes", "compute.duration=2560 samples", *settings], check=False)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(compose.dump(config))
    content = {"status": status, "reason": reason, "samples_seen": seen, "total_samples": 2560}
    (folder / "status.json").write_text(json.dumps(content))
    (folder / "data.json").write_text(json.dumps({"fingerprint": "f", "num_samples": 1047552}))
    if status == "finished":
        parameters = of_models([config.model.name])[0].parameters
        (folder / "summary.json").write_text(json.dumps({"parameters": parameters, "seconds": 35.0}))
    writer = RecordWriter(folder / "metrics.jsonl", run=folder.name)
    writer.write(
        [
            Record(what="loss", value=4.8, split="train", samples_seen=1280),
            Record(what="acc1", value=0.1, task="shape", n=960, samples_seen=1280),
            Record(what="loss", value=4.7, split="train", samples_seen=2560),
            Record(what="acc1", value=0.2, task="shape", n=960, samples_seen=2560),
            Record(what="acc1", value=0.6, task="digits", n=1797, samples_seen=2560),
            Record(what="acc1", value=0.7, task="digits", n=1797, samples_seen=2560, variant="contextless"),
            Record(what="acc1", value=0.9, task="shape", n=960, samples_seen=2560, weights="ema"),
            Record(what="val_loss_1024", value=6.5, task="validation", n=1024, samples_seen=2560),
        ]
    )
    writer.close()
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("collect")
    write_run(folder / "runs/a", "compute.seed=1", "cluster.micro_batch=64")
    write_run(folder / "runs/b", "model=tiny_half", status="failed", reason="the loss diverged", seen=1280)
    write_run(folder / "runs/old.old-1")
    (folder / "runs/latest").symlink_to("a")
    out = folder / "table.csv"
    assert main(["collect", str(folder / "runs"), "--without-flops", "--out", str(out)]) == 0
    return pd.read_csv(out).set_index("run")


def test_row_of_a_run_says_what_it_was_and_what_was_measured(table: pd.DataFrame) -> None:
    assert list(table.index) == ["a", "b"]
    row = table.loc["a"]
    assert (row.state, row.model, row.data, row.seed, row.schedule) == ("finished", "tiny", "scenes", 1, "cosine")
    assert (row.samples_seen, row.unique_samples, row.global_batch) == (2560, 2560, 128)
    assert row.epochs == pytest.approx(2560 / 1047552)
    assert (row.val_loss_1024, row.val_loss_1024_n, row["shape/acc1"], row["shape/acc1_n"]) == (6.5, 1024, 0.2, 960)
    assert (row["ema/shape/acc1"], row.train_loss) == (0.9, 4.7)


def test_mean_accuracy_is_of_the_tasks_own_prompts_and_of_the_weights_that_were_trained(table: pd.DataFrame) -> None:
    assert table.loc["a"].acc1 == pytest.approx((0.2 + 0.6) / 2)
    assert table.loc["a"].acc1_n == 960 + 1797


def test_flops_of_a_run_are_of_towers_and_loss_and_the_hardware_does_more(table: pd.DataFrame) -> None:
    (cost,) = of_models(["tiny"])
    forward = cost.image_flops + cost.text_flops
    row = table.loc["a"]
    assert row.flops_per_sample == 3 * forward + 6 * 128 * 128
    assert row.model_flops == row.flops_per_sample * 2560
    assert row.hardware_flops == (4 * forward + 8 * 128 * 128) * 2560  # micro-batches compute features again


def test_failed_run_stays_with_its_reason(table: pd.DataFrame) -> None:
    row = table.loc["b"]
    assert (row.state, row.reason, row.samples_seen) == ("failed", "the loss diverged", 1280)


@pytest.mark.slow
def test_cells_of_a_sweep_that_never_ran_are_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a")
    sweep = tmp_path / "runs/sweeps/grid-1"
    (sweep / "failures").mkdir(parents=True)
    cells = [{"run": name, "settings": [f"compute.seed={k}"], "argv": []} for k, name in enumerate("abc")]
    (sweep / "sweep.json").write_text(json.dumps({"command": [], "cells": cells}))
    (sweep / "failures/b.json").write_text(json.dumps({"reason": "killed by SIGKILL", "time": ""}))
    out = tmp_path / "table.parquet"
    main(["collect", str(sweep), "--without-flops", "--out", str(out)])
    rows = pd.read_parquet(out).set_index("run")
    assert rows.state.to_dict() == {"a": "finished", "b": "failed", "c": "waiting"}
    assert rows.loc["b"].reason == "killed by SIGKILL"
    assert rows.loc["c"].settings == "compute.seed=2"


def test_torn_last_line_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"what": "acc1", "val')
    main(["collect", str(run), "--without-flops", "--out", str(tmp_path / "t.csv")])
    assert pd.read_csv(tmp_path / "t.csv")["shape/acc1"].tolist() == [0.2]


@pytest.mark.ci
def test_flops_of_a_run_with_phases_are_the_sum_over_its_phases(tmp_path: Path) -> None:
    phases = "compute.phases=[{start:0 samples,image_size:16},{start:1280 samples}]"
    runs = [
        write_run(tmp_path / "phases", phases, seen=1920, status="stopped"),
        write_run(tmp_path / "small", "model.vision.image_size=16", status="stopped"),
        write_run(tmp_path / "whole"),
    ]
    main(["collect", *map(str, runs), "--out", str(tmp_path / "t.csv")])
    found = pd.read_csv(tmp_path / "t.csv").set_index("run")
    small, whole = found.flops_per_sample["small"], found.flops_per_sample["whole"]
    assert small < 0.6 * whole
    assert found.model_flops["phases"] == pytest.approx(1280 * small + 640 * whole)
    assert found.flops_per_sample["phases"] == pytest.approx(found.model_flops["phases"] / 1920)


@pytest.mark.ci
def test_model_that_was_changed_is_counted_from_its_config(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "a", "model.text.config.hidden_size=48", "model.text.config.intermediate_size=192", status="stopped"
    )
    main(["collect", str(run), "--out", str(tmp_path / "t.csv")])
    changed = pd.read_csv(tmp_path / "t.csv").flops_per_sample[0]
    (cost,) = of_models(["tiny"])
    assert 3 * cost.image_flops < changed < cost.per_sample(128)


def test_run_of_open_clip(tmp_path: Path) -> None:
    run = tmp_path / "b32"
    (run / "checkpoints").mkdir(parents=True)
    params = "model: ViT-B-32\ntrain_num_samples: 1000000\nepochs: 2\nbatch_size: 256\nworld_size: 4\naccum_freq: 1\n"
    (run / "params.txt").write_text(
        params + "lr: 0.0005\nwarmup: 100\nseed: 3\ntrain_data: /data/cc12m\nwd: 0.2\nbeta2: None\n"
    )
    lines = [
        {"imagenet-zeroshot-val-top1": 0.1, "epoch": 1},
        {"imagenet-zeroshot-val-top1": 0.2, "clip_val_loss": 2.5, "num_samples": 5000, "epoch": 2},
    ]
    (run / "checkpoints/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["collect", "--open-clip", str(run), "--out", str(tmp_path / "t.csv")])
    row = pd.read_csv(tmp_path / "t.csv").iloc[0]
    assert (row.state, row.model, row.samples_seen, row.global_batch, row.seed) == (
        "finished",
        "vit_b32",
        2000000,
        1024,
        3,
    )
    assert (row["imagenet/acc1"], row.val_loss_256, row.val_loss_256_n) == (0.2, 2.5, 5000)
    assert row.model_flops == of_models(["vit_b32"])[0].per_sample(1024) * 2000000
    assert row.warmup_samples == 102400


def test_names_of_open_clip() -> None:
    names = ["ViT-L-14", "ViT-bigG-14", "RN50x4", "RN101-quickgelu", "coca_ViT-B-32"]
    assert [model_name(name) for name in names] == ["vit_l14", "vit_bigg14", "rn50x4", "rn101", "coca_ViT-B-32"]


def test_published_table_by_a_mapping_file(tmp_path: Path) -> None:
    source = pd.DataFrame({"m": ["a", "b"], "g": [1.0, 2.0], "s": [10, 20], "x": [50.0, None], "y": [40.0, 30.0]})
    source.to_csv(tmp_path / "source.csv", index=False)
    (tmp_path / "map.yaml").write_text(
        "unpivot: {columns: [x, y], name: schedule, value: top}\n"
        "columns: {model: m, schedule: schedule, samples_seen: s, flops_per_sample: {column: g, times: 3e9},\n"
        "  acc1: {column: top, times: 0.01}}\n"
        "products: {model_flops: [flops_per_sample, samples_seen]}\n"
        "constants: {data: web}\n"
    )
    out = tmp_path / "t.csv"
    main(
        ["collect", "--table", str(tmp_path / "source.csv"), "--mapping", str(tmp_path / "map.yaml"), "--out", str(out)]
    )
    found = pd.read_csv(out).sort_values(["model", "schedule"]).reset_index(drop=True)
    assert found.model.tolist() == ["a", "a", "b"]
    assert found.acc1.tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert found.model_flops.tolist() == pytest.approx([3e10, 3e10, 1.2e11])
    assert set(found.data) == {"web"}


@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [
        ("porian2024", "porian2024_isoflop_points.csv", 1745),
        ("gadre2024", "gadre2024_models.csv", 104),
        ("slampai", "slampai_clip_schedules.csv", 242),
    ],
)
def test_carried_mappings_read_their_tables(tmp_path: Path, name: str, file: str, rows: int) -> None:
    if not (REFERENCE / file).exists():
        pytest.skip(f"{REFERENCE / file} is absent")
    out = tmp_path / "t.csv"
    main(["collect", "--table", str(REFERENCE / file), "--mapping", name, "--out", str(out)])
    found = pd.read_csv(out)
    assert len(found) == rows
    assert (found.model_flops > 0).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "missing does not exist"),
        ([], "nothing to collect"),
        (["--table", "a.csv"], "--table and --mapping belong together"),
        (["--table", "a.csv", "--mapping", "nothing"], "there is no such file"),
        (["--open-clip", "missing"], "is not a run of open_clip"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["collect", *words, "--out", str(tmp_path / "t.csv")])
