"""A run's best number is that of the weights it trains, however many others were measured beside them."""

from dataclasses import replace
from pathlib import Path

from clip_lightning.records import EMA, Record, RecordWriter
from clip_lightning.run.sweep.metric import Curve


def test_ema_scores_do_not_replace_the_raw_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = RecordWriter(path)
    for samples_seen, raw, averaged in ((10, 0.25, 0.875), (20, 0.5, 0.75)):
        measured = Record(what="acc1", task="shape", value=raw, samples_seen=samples_seen)
        writer.write([measured, replace(measured, value=averaged, weights=EMA)])
    writer.close()
    assert Curve.read(path).best("acc1") == 0.5
