"""Evaluation during training: when it happens, what it reports, and that it does not change training."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from clip_lightning.config import compose
from clip_lightning.config.lengths import Lengths
from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.errors import AgreedError, DataError, UserError
from clip_lightning.evaluation.retrieval import RetrievalEvaluator
from clip_lightning.evaluation.tasks import build_task
from clip_lightning.evaluation.weights_hash import weights_hash
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.model.clip import CLIP
from clip_lightning.records import Record
from clip_lightning.tokenizer import Tokenizer, build_tokenizer
from clip_lightning.training.clip_module import ClipModule
from clip_lightning.training.zero_shot_callback import STRIDE, ZeroShotCallback

BATCH, STEPS = 16, 6
SETTINGS = [
    "model=tiny",
    "data=scenes",
    "logger=none",
    f"compute.global_batch={BATCH}",
    f"compute.duration={STEPS} steps",
    "compute.warmup=0 samples",
    "compute.precision=fp32",
    "data.validation.num_samples=40",
]


class Counting:
    """An evaluator that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        self.runs += 1
        return [Record(what="runs", value=float(self.runs))]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    captions = [f"a {color} {shape}" for color in ("red", "green") for shape in ("circle", "star", "square")]
    config = compose.load("train", SETTINGS)
    return build_tokenizer(config.model.text, tmp_path_factory.mktemp("tokenizer"), captions)


Train = Callable[..., ClipModule]


@pytest.fixture
def train(tokenizer: Tokenizer, tmp_path: Path) -> Train:
    def run(
        make: Callable[[ContrastiveDataModule], ZeroShotCallback] | None,
        *settings: str,
        steps: int = STEPS,
        seen: int = 0,
        stop_at: int = -1,
        others: Sequence[Callback] = (),
    ) -> ClipModule:
        config = compose.load("train", [*SETTINGS, *settings])
        assert isinstance(config, Config)
        datamodule = ContrastiveDataModule(
            config.data,
            image_size=config.model.vision.image_size,
            tokenizer=tokenizer,
            seed=0,
            global_batch=BATCH,
            total_samples=BATCH * STEPS,
            workers=0,
        )
        datamodule.samples_seen = seen
        seed_everything(0, verbose=False)
        module = ClipModule(config, Lengths(BATCH * STEPS, datamodule.num_samples))
        module.samples_seen = seen
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[Stopping(stop_at), *([make(datamodule)] if make else []), *others],
            default_root_dir=tmp_path,
        )
        trainer.fit(module, datamodule.train_dataloader())
        return module

    return run


def counting(
    tokenizer: Tokenizer, sink: list[list[Record]], every: int, recorded: Sequence[int] = ()
) -> ZeroShotCallback:
    total = BATCH * STEPS
    return ZeroShotCallback(
        [Counting()], tokenizer, sink.append, every=every, total_samples=total, is_recorded=recorded.__contains__
    )


class Stopping(Callback):
    """Stops a run."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, pl_module: ClipModule, *_: object) -> None:  # type: ignore[override]
        trainer.should_stop = pl_module.samples_seen == self.at


@pytest.mark.ci
@pytest.mark.parametrize(
    ("every", "places"),
    [
        (0, [96]),
        (BATCH, [16, 32, 48, 64, 80, 96]),
        (2 * BATCH, [32, 64, 96]),
        (40, [48, 80, 96]),
        (10_000, [96]),
    ],
)
def test_evaluates_past_each_multiple_and_once_at_the_end(
    train: Train, tokenizer: Tokenizer, every: int, places: list[int]
) -> None:
    sink: list[list[Record]] = []
    train(lambda _: counting(tokenizer, sink, every))
    assert [records[0].samples_seen for records in sink] == places
    assert all([record.what for record in records] == ["runs", "evaluation_seconds"] for records in sink)


@pytest.mark.slow
def test_a_resumed_run_evaluates_where_the_uninterrupted_one_does(train: Train, tokenizer: Tokenizer) -> None:
    sink: list[list[Record]] = []
    train(lambda _: counting(tokenizer, sink, 40, recorded=[48]), steps=STEPS - 3, seen=3 * BATCH)
    assert [records[0].samples_seen for records in sink] == [80, 96]


@pytest.mark.slow
def test_a_stopped_run_does_not_evaluate_and_its_next_start_does(train: Train, tokenizer: Tokenizer) -> None:
    sink: list[list[Record]] = []
    train(lambda _: counting(tokenizer, sink, 40), stop_at=3 * BATCH)
    assert sink == []
    train(lambda _: counting(tokenizer, sink, 40), "compute.ema_decay=0.5", steps=STEPS - 3, seen=3 * BATCH)
    assert [records[0].samples_seen for records in sink] == [48, 80, 96]


@pytest.mark.slow
def test_a_run_that_stops_early_is_not_evaluated_at_its_end(train: Train, tokenizer: Tokenizer) -> None:
    sink: list[list[Record]] = []
    train(lambda _: counting(tokenizer, sink, 0), steps=3)
    assert sink == []


@pytest.mark.slow
def test_a_second_call_at_the_same_samples_does_not_evaluate_again(train: Train, tokenizer: Tokenizer) -> None:
    sink: list[list[Record]] = []
    callbacks: list[ZeroShotCallback] = []

    def make(_: ContrastiveDataModule) -> ZeroShotCallback:
        callbacks.append(counting(tokenizer, sink, 0))
        return callbacks[0]

    module = train(make)
    (record,) = callbacks[0].evaluate(module)
    assert (record.what, record.value, record.samples_seen) == ("runs", 1.0, 96)
    assert record.weights_hash == weights_hash([module.model])
    assert len(sink) == 1
    assert callbacks[0].seconds == pytest.approx(sink[0][1].value)


@pytest.mark.slow
def test_evaluation_does_not_change_training(train: Train, tokenizer: Tokenizer) -> None:
    sink: list[list[Record]] = []

    def make(datamodule: ContrastiveDataModule) -> ZeroShotCallback:
        size = datamodule.image_size
        task = build_task("shape")
        task = replace(task, labels=task.labels[:50])
        evaluators = [ZeroShotEvaluator(task, size), RetrievalEvaluator(datamodule.val_dataloader())]
        return ZeroShotCallback(evaluators, tokenizer, sink.append, every=2 * BATCH, total_samples=BATCH * STEPS)

    alone = train(None)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    evaluated = train(make)
    assert [len(records) for records in sink] == [4 + 8 + 1] * 3
    assert {record.what for record in sink[-1]} >= {"acc1", "acc5", "mean_per_class", "val_loss_40", "recall_at_1"}
    for (name, expected), (_, value) in zip(alone.state_dict().items(), evaluated.state_dict().items(), strict=True):
        assert torch.equal(expected, value), name
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.slow
def test_other_callbacks_read_the_numbers_of_an_evaluation(train: Train, tokenizer: Tokenizer) -> None:
    seen: dict[str, float] = {}

    class Reader(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
            seen.update({name: value.item() for name, value in trainer.callback_metrics.items()})

    sink: list[list[Record]] = []

    def make(datamodule: ContrastiveDataModule) -> ZeroShotCallback:
        task = build_task("shape")
        task = replace(task, labels=task.labels[:50])
        evaluators = [
            ZeroShotEvaluator(task, datamodule.image_size),
            RetrievalEvaluator(datamodule.val_dataloader()),
        ]
        return ZeroShotCallback(evaluators, tokenizer, sink.append, every=3 * BATCH, total_samples=BATCH * STEPS)

    train(make, "compute.ema_decay=0.5", others=[Reader()])
    expected = {(record.weights, record.task, record.what): record.value for record in sink[-1]}
    for name, key in {
        "shape/acc1": ("", "shape", "acc1"),
        "shape/mean_per_class": ("", "shape", "mean_per_class"),
        "validation/recall_at_1": ("", "validation", "recall_at_1"),
        "validation/loss": ("", "validation", "val_loss_40"),
        "ema/shape/acc1": ("ema", "shape", "acc1"),
    }.items():
        assert seen[name] == pytest.approx(expected[key], rel=1e-6), name


class TooLarge:
    """An evaluator that does not fit into memory."""

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.slow
def test_an_evaluation_that_runs_out_of_memory_names_the_setting(train: Train, tokenizer: Tokenizer) -> None:
    def make(_: ContrastiveDataModule) -> ZeroShotCallback:
        return ZeroShotCallback([TooLarge()], tokenizer, lambda _: None, every=BATCH, total_samples=BATCH * STEPS)

    with pytest.raises(UserError, match=r"eval\.batch"):
        train(make)


class Norm:
    """An evaluator that reads one weight."""

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        return [Record(what="norm", value=model.vision.projection.weight.norm().item(), task="weight")]


@pytest.mark.slow
def test_the_average_of_weights_is_evaluated_beside_them(train: Train, tokenizer: Tokenizer) -> None:
    sink: list[list[Record]] = []

    def make(_: ContrastiveDataModule) -> ZeroShotCallback:
        return ZeroShotCallback([Norm()], tokenizer, sink.append, every=0, total_samples=BATCH * STEPS)

    module = train(make, "compute.ema_decay=0.5")
    assert module.ema is not None
    raw, ema = sink[0][:2]
    assert (raw.weights, ema.weights) == ("", "ema")
    assert raw.value == module.model.vision.projection.weight.norm().item()
    assert ema.value == module.ema.average["vision.projection.weight"].norm().item() != raw.value


class Broken:
    """An evaluator whose data has gone."""

    name = "gone"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        raise self.error


@pytest.mark.slow
@pytest.mark.parametrize("error", [DataError("it is gone."), OSError(5, "Input/output error"), UserError("wrong")])
def test_a_broken_task_is_reported_and_the_rest_is_measured(
    train: Train, tokenizer: Tokenizer, error: Exception
) -> None:
    sink: list[list[Record]] = []
    said: list[str] = []
    both = [Broken(error), Counting()]
    train(
        lambda _: ZeroShotCallback(
            both, tokenizer, sink.append, every=3 * BATCH, total_samples=BATCH * STEPS, say=said.append
        )
    )
    assert said == [f"warning: gone was not evaluated: {error}"] * 2
    assert [[record.what for record in records] for records in sink] == [["runs", "evaluation_seconds"]] * 2


@pytest.mark.slow
def test_a_model_whose_features_are_not_numbers_still_stops(train: Train, tokenizer: Tokenizer) -> None:
    def make(_: ContrastiveDataModule) -> ZeroShotCallback:
        broken = [Broken(AgreedError("103 of 103 features are NaN"))]
        return ZeroShotCallback(broken, tokenizer, lambda _: None, every=BATCH, total_samples=BATCH * STEPS)

    with pytest.raises(AgreedError, match="NaN"):
        train(make)


class Slow(Counting):
    """An evaluator that takes its time, on a clock of the test."""

    def __init__(self, name: str, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.name, self.clock, self.seconds = name, clock, seconds

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        self.clock[0] += self.seconds
        return [Record(what=self.name, value=1.0)]


class Ticking(Callback):
    """A step takes ten seconds."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: object) -> None:
        self.clock[0] += 10


def measured_at(sink: list[list[Record]]) -> dict[int, str]:
    """Names of what was measured, by samples seen."""
    return {
        records[0].samples_seen: " ".join(record.what for record in records if not record.what.startswith("evaluation"))
        for records in sink
    }


@pytest.mark.slow
def test_evaluation_keeps_its_share_and_a_resumed_run_decides_alike(
    train: Train, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    for module in ("clip_lightning.training.evaluation_share", "clip_lightning.training.zero_shot_callback"):
        monkeypatch.setattr(f"{module}.time.perf_counter", lambda: clock[0])
    sink: list[list[Record]] = []
    said: list[str] = []

    def make(stride: int | None, sink: list[list[Record]]) -> Callable[[ContrastiveDataModule], ZeroShotCallback]:
        return lambda _: ZeroShotCallback(
            [Slow("a", clock, 1.5), Slow("b", clock, 0.5)],
            tokenizer,
            sink.append,
            every=BATCH,
            total_samples=BATCH * STEPS,
            max_share=0.1,
            recorded_stride=lambda: stride,
            say=said.append,
        )

    # 60 s of training allow 6.7 s: 4 for the first and the last evaluation; the four between get 2.7 of their 8.
    train(make(None, sink), others=[Ticking(clock)])
    (stride,) = [record for records in sink for record in records if record.what == STRIDE]
    assert (stride.value, stride.samples_seen) == (3, 16)
    assert measured_at(sink) == {16: "a b", 32: "b", 48: "a", 64: "", 80: "b", 96: "a b"}
    spent = sum(record.value for records in sink for record in records if record.what == "evaluation_seconds")
    assert spent / (spent + 60) <= 0.1
    assert said[0].startswith(
        "eval.max_share=0.1: measuring all test sets takes 2.0 s, at every evaluation 16.7% of the run; "
        "each is measured once in 3 evaluations from now on, and all at the end"
    )
    assert said[1] == "eval.max_share: 1 of 2 test sets at this evaluation: b"
    resumed: list[list[Record]] = []
    train(make(3, resumed), steps=STEPS - 3, seen=3 * BATCH, others=[Ticking(clock)])
    assert measured_at(resumed) == {48: "a", 64: "", 80: "b", 96: "a b"}
