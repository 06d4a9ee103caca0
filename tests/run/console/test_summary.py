"""The end of a run is computed from its records: medians, means, the latest scores."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_lightning.evaluation.metrics import METRICS
from clip_lightning.records import Record
from clip_lightning.run.console.summary import Summary, end_table
from clip_lightning.run.hardware import peak_flops
from clip_lightning.score_names import OWN_METRICS


def training(samples_seen: int, **values: float) -> list[Record]:
    return [Record(what=what, value=value, samples_seen=samples_seen) for what, value in values.items()]


def scores(samples_seen: int, acc1: float) -> list[Record]:
    shared: dict[str, Any] = {"task": "shape", "n": 960, "chance": 0.125, "samples_seen": samples_seen}
    return [
        Record(what="acc1", value=acc1, low=acc1 - 0.01, high=acc1 + 0.01, **shared),
        Record(what="acc5", value=0.9, **shared),
        Record(what="mean_per_class", value=acc1, **shared),
    ]


def summary(**changes: Any) -> Summary:
    records = [
        *training(16, loss=4.0, samples_per_second=100.0, data_wait=0.1, memory_gib=1.0, mfu=0.3),
        *scores(16, 0.25),
        *training(32, loss=3.0, samples_per_second=300.0, data_wait=0.0, memory_gib=2.0, mfu=0.5),
        *training(48, loss=2.0, samples_per_second=200.0, data_wait=0.2, memory_gib=1.5, mfu=0.4),
        *scores(48, 0.5),
    ]
    fields: dict[str, Any] = {
        "run": "a-b-c-01234567",
        "path": Path("/runs/a b"),
        "status": "stopped",
        "reason": "asked to by SIGTERM",
        "samples": 48,
        "total_samples": 64,
        "seconds": 7200.0,
        "parameters": 1000,
        "science": "01234567",
        "num_devices": 8,
        "gpu": True,
        "restarts": 2,
        "records": records,
        "bad_samples": {"truncated": 3, "not UTF-8": 1},
    }
    return Summary(**{**fields, **changes})


def test_summary_json_has_the_promised_keys_and_fractions() -> None:
    content = summary().as_json()
    assert content["zeroshot"] == {
        "shape": {"acc1": 0.5, "acc5": 0.9, "mean_per_class": 0.5, "chance": 0.125, "n": 960, "low": 0.49, "high": 0.51}
    }
    assert (content["samples"], content["seconds"], content["parameters"]) == (48, 7200.0, 1000)
    assert content["science"] == "01234567"
    assert (content["loss"], content["samples_per_second"], content["mfu"]) == (2.0, 200.0, 0.4)
    assert abs(content["data_wait"] - 0.1) < 1e-12
    assert content["memory_gib"] == 2.0


def test_the_table_has_hours_of_devices_and_commands_that_can_be_pasted() -> None:
    table = dict(line.split("  ", 1) for line in end_table(summary(), ["compute.duration=8 steps"]).splitlines())
    rows = {name: value.strip() for name, value in table.items()}
    assert rows["status"] == "stopped: asked to by SIGTERM"
    assert rows["time"] == "2:00:00 (16.00 GPU hours)"
    assert rows["throughput"] == "200 samples/s (median)"
    assert rows["MFU"] == "40.0%"
    assert rows["bad samples"] == "3 truncated, 1 not UTF-8"
    assert rows["shape"].startswith("top-1 50.0% [49.0%, 51.0%]")
    assert rows["evaluate"] == "python evaluate.py 'run=/runs/a b'"
    assert rows["resume"] == "python train.py 'compute.duration=8 steps'"


def test_a_finished_run_without_any_record_still_has_a_table() -> None:
    table = end_table(summary(status="finished", reason="", records=[], bad_samples={}))
    assert "not measured samples/s" in table
    assert "run again" in table


def test_peaks_are_those_of_the_named_gpu() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 311.8e12
    assert peak_flops("NVIDIA A10") == 125e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("Some Processor") is None


def test_ema_scores_are_listed_beside_the_raw_ones() -> None:
    assert summary().as_json()["ema"] is None
    both = [*summary().records, *(replace(record, weights="ema") for record in scores(48, 0.75))]
    content = summary(records=both).as_json()
    assert content["zeroshot"]["shape"]["acc1"] == 0.5
    assert content["ema"]["zeroshot"]["shape"]["acc1"] == 0.75
    table = end_table(summary(records=both))
    assert re.search(r"^shape +top-1 50\.0%", table, re.MULTILINE)
    assert re.search(r"^shape \(ema\) +top-1 75\.0%", table, re.MULTILINE)


def test_a_tasks_own_metric_is_shown_and_further_prompt_sets_are_not() -> None:
    shared: dict[str, Any] = {"n": 500, "low": 0.6, "high": 0.8, "samples_seen": 48}
    further = [
        Record(what="roc_auc", value=0.7, task="memes", chance=0.5, **shared),
        Record(what="map11", value=0.65, task="voc", note="3 of 503 images could not be read.", **shared),
        Record(what="recall_at_1", value=0.65, task="flickr30k", **shared),
        replace(scores(48, 0.9)[0], variant="contextless"),
    ]
    found = summary(records=[*summary().records, *further])
    assert found.as_json()["zeroshot"]["shape"]["acc1"] == 0.5
    table = end_table(found)
    assert "memes          roc_auc 70.0% [60.0%, 80.0%]  (n=500, chance 50.0%)" in table
    assert "voc            map11 65.0% [60.0%, 80.0%]  (n=500)" in table
    assert "flickr30k      recall@1 65.0% [60.0%, 80.0%]  (n=500)" in table
    assert "note           voc: 3 of 503 images could not be read." in table
    assert table.count("shape ") == 1


def test_every_metric_of_a_data_set_is_shown() -> None:
    assert {*METRICS} - {"acc1", "mean_per_class", "map"} <= {*OWN_METRICS}


def test_the_share_of_evaluation_counts_each_place_once() -> None:
    spent = [Record(what="evaluation_seconds", value=value, samples_seen=at) for at, value in ((16, 9.0), (16, 6.0))]
    assert summary().as_json()["evaluation_share"] is None
    assert summary(records=spent, seconds=60.0).evaluation_share == 0.1
    last = Record(what="evaluation_seconds", value=6.0, samples_seen=48)
    assert summary(records=[*spent, last], seconds=60.0).evaluation_share == 12 / 66
