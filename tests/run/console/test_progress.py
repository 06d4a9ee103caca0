"""What a run prints: the same fields on a bar and in lines, in the units that people read."""

import io

from clip_lightning.records import Record
from clip_lightning.run.console.progress import Interval, Lines, evaluation_lines, interval_line

NUMBERS = Interval(
    samples_seen=48_400_000,
    total_samples=474_000_000,
    loss=2.9142,
    logit_scale=38.21,
    learning_rate=4.9e-4,
    gradient_norm=0.412,
    samples_per_second=48_100.0,
    data_wait=0.0061,
    flops_per_second=3.1e15,
    mfu=0.401,
    seconds_left=8853.0,
)


def test_an_interval_is_one_line_of_the_designs_fields() -> None:
    assert interval_line(NUMBERS) == (
        "sample 48.4M/474M 10.2% | loss 2.914 | scale 38.2 | lr 4.9e-4 | grad 0.41 | 48.1k/s | mfu 40% | data 0.6% | "
        "eta 2:27:33"
    )


def test_without_a_known_peak_the_line_shows_the_flops() -> None:
    line = interval_line(Interval(**{**vars(NUMBERS), "mfu": None, "flops_per_second": 52.7e9}))
    assert " | 52.7GFLOP/s | " in line


def test_lines_reach_a_pipe_at_once() -> None:
    stream = io.StringIO()
    screen = Lines(stream)
    screen.interval(NUMBERS)
    screen.say("words")
    assert stream.getvalue().splitlines() == [interval_line(NUMBERS), "words"]


def test_an_evaluation_is_a_line_per_task() -> None:
    shared = {"task": "imagenet", "n": 50_000, "chance": 0.001, "samples_seen": 48_400_000}
    records = [
        Record(what="acc1", value=0.314, low=0.31, high=0.318, **shared),
        Record(what="acc5", value=0.6, **shared),
        Record(what="val_loss_1024", value=3.21, task="validation", n=1024, samples_seen=48_400_000),
        Record(what="recall_at_1", value=0.22, low=0.2, high=0.24, task="validation", n=1024),
        Record(what="evaluation_seconds", value=3.0),
    ]
    assert evaluation_lines(records) == [
        "eval @48.4M  imagenet  top-1 31.4% [31.0%, 31.8%]  (n=50,000, chance 0.1%)",
        "eval @48.4M  validation  val_loss_1024 3.210  recall@1 22.0% [20.0%, 24.0%]  (n=1,024)",
    ]
