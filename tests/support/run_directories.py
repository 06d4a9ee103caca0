"""Directories of runs as `run/directory.py` lays them out, made without training."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from clip_lightning.config import compose, identity
from clip_lightning.records import Record, RecordWriter

STEPS, BATCH = 5, 16


@cache
def config_text(*settings: str) -> str:
    """A frozen config."""
    words = [f"compute.duration={STEPS} steps", f"compute.global_batch={BATCH}", "logger=none", *settings]
    return compose.dump(compose.load("train", words))


def write_run(
    path: Path,
    *settings: str,
    losses: tuple[float, ...] = (3.0, 2.5, 2.25, 2.0, 1.5),
    accuracy: float = 0.5,
    status: str = "finished",
    versions: dict[str, str] | None = None,
    data: dict[str, Any] | None = None,
    code: str = "commit abc1234",
    patch: str = "",
    sample_ids: tuple[int, ...] = tuple(range(BATCH)),
    weights: dict[str, str] | None = None,
    further: tuple[Record, ...] = (),
) -> Path:
    """A run of five steps that evaluated two tasks, its second at the end."""
    path.mkdir(parents=True)
    text = config_text(*settings)
    config = compose.parse(text, source="test")
    (path / "config.yaml").write_text(text, encoding="utf-8")
    (path / "git.txt").write_text(f"{code}\n M clip_lightning/loss/softmax.py\n" if patch else f"{code}\n")
    (path / "patch.diff").write_text(patch)
    total = STEPS * BATCH
    for name, content in {
        "versions.json": versions or {"python": "3.11.4", "torch": "2.14.1"},
        "data.json": data or {"fingerprint": "8aa08f0de8717210", "num_samples": 1000, "order": "a27de125b1b23a9e"},
        "status.json": {"status": status, "reason": "", "samples_seen": total, "total_samples": total,
                        "time": "2026-11-30T09:00:00+00:00"},
        "summary.json": {"parameters": 612129, "seconds": 10.0 * STEPS, "bad_samples": {"truncated": 2}},
        "first_step.json": {"num_samples": len(sample_ids), "sample_ids": list(sample_ids)[:16],
                            "samples_digest": str(hash(sample_ids)), "weights": weights or {"a": "00ff [2]"}},
    }.items():  # fmt: skip
        (path / name).write_text(json.dumps(content))
    start = {"time": "2026-11-30T08:59:00+00:00", "host": "node1", "commit": code, "command": [], "changed": []}
    starts = [start, {**start, "host": "node2", "changed": ["cluster.devices: 1 -> 2"]}]
    (path / "starts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in starts))
    writer = RecordWriter(path / "metrics.jsonl", run=path.name, science=identity.science_hash(config))
    for step, loss in enumerate(losses, 1):
        seen = step * BATCH
        values = {"loss": loss, "gradient_norm": 1.0, "samples_per_second": 4.0, "flops_per_second": 8e9,
                  "seconds": 10.0 * step, "logit_scale": 14.0, "data_wait": 0.05, "memory_gib": 1.5}  # fmt: skip
        writer.write(Record(what=what, value=value, split="train", samples_seen=seen) for what, value in values.items())
    for task in ("shape", "color"):
        for seen, lower in ((2 * BATCH, 0.1), (total, 0.0)):
            value = accuracy - lower
            ends = {"low": value - 0.02, "high": value + 0.02, "n": 960, "chance": 0.125}
            names = ("acc1", "acc5", "mean_per_class")
            writer.write(Record(what=what, value=value, task=task, samples_seen=seen, **ends) for what in names)
    loss_ends = {"low": 4.9, "high": 5.1, "n": 1024, "chance": math.log(1024)}
    writer.write([Record(what="val_loss_1024", value=5.0, task="validation", samples_seen=total, **loss_ends)])
    writer.write(further)
    writer.close()
    return path
