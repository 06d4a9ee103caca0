"""Callbacks, loggers and Trainer arguments by command line and by preset, with what they wrote read back."""

import csv
import inspect
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from clip_lightning.config.checks import trainer
from clip_lightning.errors import UserError
from clip_lightning.records import read_records
from clip_lightning.run import objects

pytestmark = pytest.mark.slow

EVALUATED = ["eval=default", "eval.tasks=[shape]", "eval.every=2 steps", "data.validation.num_samples=64"]


def summary(runs: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((runs / "latest" / "summary.json").read_text())
    return content


def num_starts(runs: Path) -> int:
    return len((runs / "latest" / "starts.jsonl").read_text().splitlines())


def rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for row in csv.DictReader(file.read_text().splitlines()):
        yield int(row["step"]), {name: value for name, value in row.items() if value and name != "step"}


def test_every_argument_of_lightnings_trainer_is_taken_or_named_by_our_key() -> None:
    known = {*trainer.ALLOWED, *trainer.SET_BY}
    assert known == inspect.signature(Trainer.__init__).parameters.keys() - {"self"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"_target_": "lightning.pytorch.callbacks.EarlyStoping"}, "x._target_"),
        ({"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitr": "a"}, "no such argument; it has monitor"),
        ({"_target_": "lightning.pytorch.callbacks.EarlyStopping"}, "cannot be made"),
    ],
)
def test_an_object_that_cannot_be_made_is_one_sentence(value: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        objects.build(value, "callbacks.x")


def test_objects_are_built_inside_arguments_and_lists() -> None:
    schedule = {"_target_": "torch.profiler.schedule", "wait": 0, "warmup": 1, "active": 3}
    profiler = {"_target_": "lightning.pytorch.profilers.PyTorchProfiler", "schedule": schedule}
    (built,) = objects.build([profiler], "trainer.profiler", dirpath="unused")
    assert built.dirpath is None


def test_early_stopping_finishes_the_run_and_a_resume_does_not_restart_it(runner: Any, tmp_path: Path) -> None:
    early = "callbacks.early_stopping"
    command = [
        *EVALUATED, f"{early}._target_=lightning.pytorch.callbacks.EarlyStopping", f"{early}.monitor=shape/acc1",
        f"{early}.mode=max", f"{early}.min_delta=1.0", f"{early}.patience=1",
    ]  # fmt: skip
    runner.train(tmp_path, *command)
    found = summary(tmp_path)
    assert (found["status"], found["samples"]) == ("finished", 64)
    assert found["reason"].startswith("EarlyStopping: ")
    assert "is finished" in runner.train(tmp_path, *command)
    assert num_starts(tmp_path) == 1


def test_callbacks_and_loggers_share_names_over_samples_seen(runner: Any, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone/watching.py").write_text(
        "from pathlib import Path\n"
        "from lightning.pytorch import Callback\n"
        "class Watch(Callback):\n"
        "    def __init__(self, file):\n"
        "        self.file = Path(file)\n"
        "    def on_validation_end(self, trainer, pl_module):\n"
        "        with self.file.open('a') as stream:\n"
        "            stream.write(','.join(trainer.callback_metrics) + '\\n')\n"
    )
    seen = tmp_path / "seen.txt"
    child = runner.start(
        "train.py", f"runs={tmp_path / 'runs'}", *(word for word in small if word != "logger=none"), *EVALUATED,
        "callbacks=[learning_rate_monitor,device_stats,timer]", "callbacks.mine._target_=watching.Watch",
        f"callbacks.mine.file={seen}", "logger=[csv]", env={"PYTHONPATH": str(tmp_path / "someone")},
    )  # fmt: skip
    assert child.wait() == 0, child.text()
    metrics = seen.read_text().splitlines()
    assert len(metrics) == 4
    assert {"train/loss", "train/lr", "shape/acc1", "validation/recall_at_1"} <= set(metrics[-1].split(","))
    run = tmp_path / "runs" / "latest"
    logged = list(rows(run / "csv/version_0/metrics.csv"))
    losses = {step: float(row["train/loss"]) for step, row in logged if "train/loss" in row}
    records = read_records(run / "metrics.jsonl")
    assert losses == {record.samples_seen: record.value for record in records if record.what == "loss"}
    scores = {step: float(row["shape/acc1"]) for step, row in logged if "shape/acc1" in row}
    assert scores == {record.samples_seen: record.value for record in records if record.what == "acc1"}
    assert {step for step, row in logged if any(name.startswith("lr-") for name in row)} <= set(range(0, 129, 16))
    assert any("cpu_percent" in name for _, row in logged for name in row)
    assert not (run / "wandb_id.txt").exists()


def tensorboard_values(folder: Path, name: str) -> dict[int, float]:
    """The values of one name by step, from TensorBoard's files: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in sorted(folder.glob("events.*")):
        data, position = file.read_bytes(), 0
        while position < len(data):
            (size,) = struct.unpack_from("<Q", data, position)
            event = Event.FromString(data[position + 12 : position + 12 + size])
            position += size + 16
            for value in event.summary.value:
                if value.tag == name:
                    found[event.step] = value.simple_value
    return found


def test_tensorboard_and_csv_write_at_once(runner: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    runner.train(tmp_path, "logger=[csv,tensorboard]")
    written = rows(tmp_path / "latest/csv/version_0/metrics.csv")  # some are of checkpoints alone
    logged = {step: float(row["train/loss"]) for step, row in written if "train/loss" in row}
    assert len(logged) == 8
    assert tensorboard_values(tmp_path / "latest/tensorboard/version_0", "train/loss") == pytest.approx(logged)


def test_a_trainer_argument_acts_and_import_paths_come_from_the_command_only(runner: Any, tmp_path: Path) -> None:
    runner.train(tmp_path, "trainer.limit_train_batches=3", "trainer.profiler=simple")
    run = (tmp_path / "latest").resolve()
    assert (summary(tmp_path)["status"], summary(tmp_path)["samples"]) == ("stopped", 48)
    assert "run_training_batch" in next((run / "profile").glob("*summary*")).read_text()
    for name in ("config.yaml", "start.yaml"):
        text = (run / name).read_text()
        assert "callbacks: {}" in text
        (run / name).write_text(text.replace("callbacks: {}", "callbacks:\n  x:\n    _target_: no_such_package.X"))
    runner.train(tmp_path)
    assert (summary(tmp_path)["status"], summary(tmp_path)["samples"]) == ("finished", 128)
