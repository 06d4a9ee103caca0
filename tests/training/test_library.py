"""Training with a plain Lightning Trainer, as in a script or a notebook."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, DistributedSampler

import clip_lightning
from clip_lightning import ClipModule, ContrastiveDataModule, load_config
from clip_lightning.config.lengths import Lengths
from clip_lightning.config.schema import Config
from clip_lightning.errors import CheckpointError, UserError
from tests.support.small_run import GLOBAL_BATCH, Stream, fit, small_config, small_module

pytestmark = pytest.mark.slow

BATCH, STEPS, STOP = 8, 10, 7


def config_of(*settings: str) -> Config:
    return load_config(
        "model=tiny",
        "data=scenes",
        "data.num_samples=200",
        "data.validation.num_samples=0",
        f"compute.duration={STEPS} steps",
        f"compute.global_batch={BATCH}",
        "compute.warmup=2 steps",
        "compute.ema_decay=0.9",
        "cluster.workers=0",
        *settings,
    )


class Ids(Callback):
    """Keeps the sample ids of every step."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.ids.append(batch.sample_ids.tolist())


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings = {"logger": False, "enable_checkpointing": saves} | settings
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def train(config: Config, used: Trainer, ckpt_path: str | None = None) -> ClipModule:
    module = ClipModule(config)
    used.fit(module, ContrastiveDataModule(config), ckpt_path=ckpt_path)
    return module


def bits(module: ClipModule) -> dict[str, torch.Tensor]:
    assert module.ema is not None
    return dict(module.model.state_dict()) | {f"average {name}": value for name, value in module.ema.average.items()}


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, clip_lightning; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {"torch", "lightning", "hydra", "omegaconf", "numpy"}.isdisjoint(found)
    assert {*clip_lightning.__all__} <= {*dir(clip_lightning)}
    with pytest.raises(AttributeError, match="load_config"):
        clip_lightning.load_confg  # noqa: B018


def test_a_resume_by_ckpt_path_reads_the_samples_of_an_unbroken_run_and_ends_with_its_bits(tmp_path: Path) -> None:
    config = config_of()
    in_one_go = Ids()
    expected = train(config, trainer(tmp_path, in_one_go, max_epochs=3))
    assert len(in_one_go.ids) == STEPS, "the run's length is the config's, whatever max_epochs"

    save = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=STOP)
    first, second = Ids(), Ids()
    train(config, trainer(tmp_path, first, save, max_steps=STOP))
    resumed = train(config, trainer(tmp_path, second), ckpt_path=save.best_model_path)
    assert first.ids + second.ids == in_one_go.ids
    assert resumed.samples_seen == STEPS * BATCH
    ours, theirs = bits(resumed), bits(expected)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_it_learns_logs_and_fills_callback_metrics(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    used = trainer(tmp_path, logger=logger, log_every_n_steps=1)
    train(config_of(), used)
    names = {"train/loss", "train/accuracy", "train/grad_norm", "train/logit_scale", "train/lr", "train/samples_seen"}
    assert names <= used.callback_metrics.keys()
    assert used.callback_metrics["train/samples_seen"] == STEPS * BATCH
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + STEPS
    assert names <= {*rows[0].split(",")}


def test_a_run_logs_at_its_cadence_and_leaves_the_loggers_to_its_reporter(tmp_path: Path) -> None:
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append(trainer.callback_metrics.get("train/samples_seen"))

    module = small_module(small_config())
    module.lengths = Lengths(20 * GLOBAL_BATCH, 40, log_every=2 * GLOBAL_BATCH)
    used = fit(module, Stream(0, 5), callbacks=[Watch()])
    assert [None if value is None else float(value) for value in seen] == [
        None, *[2.0 * GLOBAL_BATCH] * 2, *[4.0 * GLOBAL_BATCH] * 2
    ]  # fmt: skip
    assert used.callback_metrics.keys() >= {"train/loss", "train/lr"}
    assert not used.logged_metrics


@pytest.mark.parametrize(
    "setting",
    [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_trainers_argument_that_breaks_an_invariant_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        train(config_of(), trainer(tmp_path, **setting))


def test_a_distributed_sampler_and_a_fit_without_data_module_are_refused(tmp_path: Path) -> None:
    module, stream = ClipModule(small_config()), list(range(8))
    loader = DataLoader(stream, sampler=DistributedSampler(stream, num_replicas=1, rank=0))  # type: ignore[arg-type,var-annotated]
    with pytest.raises(UserError, match="DistributedSampler"):
        trainer(tmp_path).fit(module, loader)
    with pytest.raises(UserError, match="lengths"):
        trainer(tmp_path).fit(module, DataLoader(Stream(0, 1), batch_size=None))


def test_a_module_is_made_from_lightnings_checkpoint_without_unpickling(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2)
    trained = train(config_of("compute.duration=2 steps"), trainer(tmp_path, save))
    loaded = ClipModule.load_from_checkpoint(save.best_model_path)
    assert loaded.config == trained.config
    assert loaded.samples_seen == 2 * BATCH
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())

    content = torch.load(save.best_model_path, weights_only=True)
    text = content["hyper_parameters"]["config"]
    content["hyper_parameters"]["config"] = text.replace("_target_: null", "_target_: os.system", 1)
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"os\.system"):
        ClipModule.load_from_checkpoint(tmp_path / "foreign.ckpt")
    (tmp_path / "other.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        ClipModule.load_from_checkpoint(tmp_path / "other.ckpt")
