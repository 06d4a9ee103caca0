"""A training step is open_clip's where both mean the same, repeats to the bit, and survives what is not finite."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch import Tensor
from torch.utils.data import IterableDataset

from clip_lightning.config.lengths import Lengths
from clip_lightning.data.batches import Batch
from clip_lightning.errors import UserError
from clip_lightning.model.clip import Features
from clip_lightning.parallel import ddp
from clip_lightning.reliability.nan_guard import DELAY, DivergenceError
from clip_lightning.training.clip_module import ClipModule, Pairs
from clip_lightning.training.optimizer import decays
from tests.model.test_against_open_clip import CONTEXT, END, PIXELS, loaded_pair, small
from tests.support.small_run import (
    GLOBAL_BATCH,
    Recorder,
    Stream,
    check_close,
    config_with_batch_norm,
    fit,
    global_batch,
    small_config,
    small_module,
)

NUM_STEPS = 20


class PeerLoss(ClipLoss):
    """open_clip's loss, which also notes every value."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def forward(self, *arguments: Tensor, **settings: object) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = super().forward(*arguments, **settings)
        self.values.append(losses["contrastive_loss"].detach())
        return losses


class Floats(IterableDataset[Batch]):
    """Batches of normalised images and of captions that end with the largest id, as open_clip pools them."""

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(5)
        for step in range(NUM_STEPS):
            positions = step * GLOBAL_BATCH + torch.arange(GLOBAL_BATCH)
            lengths = torch.randint(3, CONTEXT + 1, (GLOBAL_BATCH,), generator=generator)
            tokens = torch.randint(1, END, (GLOBAL_BATCH, CONTEXT), generator=generator)
            tokens[torch.arange(GLOBAL_BATCH), lengths - 1] = END
            tokens[torch.arange(CONTEXT) >= lengths[:, None]] = 0
            images = torch.randn(GLOBAL_BATCH, 3, PIXELS, PIXELS, generator=generator)
            yield Batch(images, tokens, lengths, positions, positions, 0)


@pytest.mark.slow
def test_twenty_steps_give_open_clips_losses() -> None:
    config = small_config(duration=f"{NUM_STEPS} steps", gradient_clip=1.0)
    config.model = small("vit_b32")
    module = Recorder(config, Lengths(NUM_STEPS * GLOBAL_BATCH, 1000))
    towers, peer = loaded_pair("vit_b32")
    module.model.load_state_dict(towers.state_dict())
    fit(module, Floats())

    named = list(peer.named_parameters())
    matrices = [p for n, p in named if decays(n, p)]
    others = [p for n, p in named if not decays(n, p)]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    batches = [(batch.images, batch.tokens) for batch in Floats()]
    loader = SimpleNamespace(num_batches=NUM_STEPS, num_samples=NUM_STEPS * GLOBAL_BATCH)
    data = SimpleNamespace(dataloader=_Listed(batches, loader), set_epoch=lambda epoch: None)
    arguments = SimpleNamespace(
        device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=False, horovod=False,
        grad_clip_norm=1.0, rank=0, local_rank=0, log_local=False, log_every_n_steps=1, world_size=1,
        batch_size=GLOBAL_BATCH, wandb=False,
    )  # fmt: skip
    loss, schedule = PeerLoss(), cosine_lr(optimizer, 1e-3, 4, NUM_STEPS)
    peer.output_dict = True
    train_one_epoch(peer, {"train": data}, loss, 0, optimizer, None, schedule, None, arguments)

    ours = torch.stack([step.loss for step in module.steps])
    assert ours[-1] != ours[0]
    torch.testing.assert_close(ours, torch.stack(loss.values), rtol=1e-5, atol=1e-5)


class _Listed:
    """A list of batches with the sizes that open_clip reads off its loader."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], sizes: SimpleNamespace) -> None:
        self.batches, self.num_batches, self.num_samples = batches, sizes.num_batches, sizes.num_samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def weights(module: ClipModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_agree_to_the_bit(precision: str) -> None:
    runs = []
    for _ in range(2):
        config = small_config(precision=precision)
        config.model.vision.patch_dropout = 0.4
        config.cluster.micro_batch = 7
        torch.manual_seed(torch.seed() % 1000)  # the caller's own random state has no part in it
        module = small_module(config)
        fit(module, Stream(0, 3))
        runs.append(weights(module))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit() -> None:
    config = small_config(ema_decay=0.9, gradient_clip=1.0)
    config.model.vision.patch_dropout = 0.4
    whole = small_module(config)
    fit(whole, Stream(0, 6))
    first = small_module(config)
    trainer = fit(first, Stream(0, 3))
    kept: dict[str, Any] = {}
    first.on_save_checkpoint(kept)
    restore = Restore(weights(first), trainer.optimizers[0].state_dict(), kept)

    second = small_module(config)
    fit(second, Stream(3, 6), callbacks=[restore])
    assert second.samples_seen == whole.samples_seen
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())
    assert whole.ema is not None
    assert second.ema is not None
    assert all(torch.equal(v, whole.ema.average[n]) for n, v in second.ema.average.items())
    assert [step.learning_rate for step in second.steps] == [step.learning_rate for step in whole.steps[3:]]


class Restore(Callback):
    """Continues from a saved state."""

    def __init__(self, weights: dict[str, Tensor], optimizer: dict[str, Any], kept: dict[str, Any]) -> None:
        self.weights, self.optimizer, self.kept = weights, optimizer, kept

    def on_fit_start(self, trainer: Trainer, pl_module: Recorder) -> None:  # type: ignore[override]
        pl_module.model.load_state_dict(self.weights)
        trainer.optimizers[0].load_state_dict(self.optimizer)
        pl_module.on_load_checkpoint(self.kept)


class Poisoned(Stream):
    """A stream in which some steps have an image that is no number."""

    def __init__(self, first: int, last: int, poisoned: set[int]) -> None:
        super().__init__(first, last)
        self.poisoned = poisoned

    def __iter__(self) -> Iterator[Batch]:
        for step in self.steps:
            batch = global_batch(step)
            images = batch.images.float() / 255
            if step in self.poisoned:
                images[3, 0, 0, 0] = torch.nan
            yield batch._replace(images=images)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    config = small_config(ema_decay=0.9, gradient_clip=1.0)
    module, before = small_module(config), small_module(config)
    fit(before, Poisoned(0, 2, set()))
    fit(module, Poisoned(0, 3, {2}))
    assert all(torch.equal(value, weights(before)[name]) for name, value in weights(module).items())
    assert module.ema is not None
    assert before.ema is not None
    assert all(torch.equal(value, before.ema.average[name]) for name, value in module.ema.average.items())
    assert [step.is_skipped.item() for step in module.steps] == [0, 0, 1]
    assert module.guard.num_skipped == 1
    assert module.samples_seen == 3 * GLOBAL_BATCH, "the samples are skipped"
    fit(module, Poisoned(3, 5, set()))
    assert all(math.isfinite(step.loss) for step in module.steps[3:])


def test_too_many_steps_that_are_not_finite_stop_the_run_with_its_samples() -> None:
    module = small_module(small_config(nonfinite_limit=3))
    with pytest.raises(DivergenceError, match="3 steps in a row") as info:
        fit(module, Poisoned(0, 20, set(range(2, 20))))
    ids = [step.sample_ids for step in info.value.steps]
    assert all(torch.equal(found, global_batch(step).sample_ids) for step, found in enumerate(ids, 2))
    assert module.samples_seen <= (2 + 3 + DELAY) * GLOBAL_BATCH


def test_the_scale_never_passes_its_maximum() -> None:
    config = small_config(learning_rate=1.0, warmup="0 samples")
    config.loss.logit_scale_max = math.log(20)
    module = small_module(config)
    fit(module, Stream(0, 6))
    assert max(step.logit_scale.item() for step in module.steps) <= 20 * (1 + 1e-6)


def test_the_norm_is_of_the_gradient_before_clipping() -> None:
    free, clipped = (small_module(small_config(gradient_clip=limit)) for limit in (None, 0.1))
    for module in (free, clipped):
        fit(module, Stream(0, 1))
    assert clipped.steps[0].gradient_norm == free.steps[0].gradient_norm > 0.1
    gradients = [parameter.grad for parameter in clipped.model.parameters() if parameter.grad is not None]
    assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(0.1, rel=1e-4)


def test_a_share_of_the_wrong_size_is_refused() -> None:
    module = small_module(small_config())
    module.global_batch = 2 * GLOBAL_BATCH
    with pytest.raises(UserError, match=r"compute\.global_batch"):
        fit(module, Stream(0, 1))


def test_ema_weights_are_swapped_in_and_out() -> None:
    module = small_module(small_config(ema_decay=0.5))
    fit(module, Stream(0, 2))
    assert module.ema is not None
    raw = weights(module)
    with module.ema.in_place():
        inside = weights(module)
        assert torch.equal(inside["log_logit_scale"], module.ema.average["log_logit_scale"])
    assert not torch.equal(inside["vision.projection.weight"], raw["vision.projection.weight"])
    assert all(torch.equal(value, raw[name]) for name, value in weights(module).items())


class SmallMemory(Recorder):
    """A device that holds the graph of so many pairs, and no more."""

    room = 7
    error: Exception = torch.OutOfMemoryError("out of memory")

    def forward(self, pairs: Pairs) -> Features:
        if torch.is_grad_enabled() and len(pairs.images) > self.room:
            raise self.error
        return super().forward(pairs)


def test_the_cpus_out_of_memory_error_is_handled_like_a_gpus() -> None:
    module = SmallMemory(small_config(), Lengths(NUM_STEPS * GLOBAL_BATCH, 40))
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 50, dtype=torch.uint8)
    module.error = found.value
    with pytest.warns(UserWarning, match="continuing with 6"):
        fit(module, Stream(0, 1))
    assert module.micro_batch == 6


def test_out_of_memory_in_the_optimizer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module(small_config())

    def step(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match="cluster=fsdp"):
        fit(module, Stream(0, 1))


@pytest.mark.usefixtures("process_group_of_lightning")
def test_ddp_on_one_device_does_not_repeat_a_backward_pass_that_broke() -> None:
    module = SmallMemory(small_config(), Lengths(NUM_STEPS * GLOBAL_BATCH, 40))
    with pytest.raises(UserError, match=r"cluster\.micro_batch=24 does not fit"):
        fit(module, Stream(0, 1), ddp.strategy())


def test_an_average_continues_where_a_parameter_is_new() -> None:
    before, after = (small_module(small_config(loss, ema_decay=0.5)) for loss in ("softmax", "sigmoid"))
    fit(before, Stream(0, 1))
    kept: dict[str, Any] = {}
    before.on_save_checkpoint(kept)
    after.on_load_checkpoint(kept)
    assert after.ema is not None
    assert torch.equal(after.ema.average["logit_bias"], after.model.state_dict()["logit_bias"])
    assert torch.equal(after.ema.average["log_logit_scale"], kept["ema_weights"]["log_logit_scale"])


def test_out_of_memory_halves_the_micro_batch_and_does_the_step_again() -> None:
    lengths = Lengths(NUM_STEPS * GLOBAL_BATCH, 40)
    config = small_config()
    config.model.vision.patch_dropout = 0.4
    small, large = SmallMemory(config, lengths), Recorder(config, lengths)
    with pytest.warns(UserWarning, match="continuing with 6"):
        fit(small, Stream(0, 2))
    fit(large, Stream(0, 2))
    check_close(small.gradients, large.gradients, 1e-6)
    assert small.micro_batch == 6
    kept: dict[str, Any] = {}
    small.on_save_checkpoint(kept)
    resumed = Recorder(config, lengths)
    resumed.on_load_checkpoint(kept)
    assert resumed.micro_batch == 6


def test_a_pair_that_does_not_fit_is_reported() -> None:
    module = SmallMemory(small_config(), Lengths(NUM_STEPS * GLOBAL_BATCH, 40))
    module.room = 0
    with pytest.raises(UserError, match=r"cluster\.micro_batch=1 does not fit"):
        fit(module, Stream(0, 1))


@pytest.mark.slow
def test_fp16_skips_until_its_loss_scale_fits_and_then_has_the_gradient_of_fp32() -> None:
    module, exact = (small_module(small_config(precision=precision)) for precision in ("fp16", "fp32"))
    fit(module, Stream(0, 12))
    skipped = [bool(step.is_skipped) for step in module.steps]
    first = skipped.index(False)
    assert 0 < first < 10, "a scale of 65,536 is too much at first"
    assert not any(skipped[first:])
    fit(exact, Stream(first, first + 1))
    assert module.steps[first].gradient_norm.item() == pytest.approx(exact.steps[0].gradient_norm.item(), rel=1e-2)
    kept: dict[str, Any] = {}
    module.on_save_checkpoint(kept)
    assert kept["scaler"]["scale"] == 65536 / 2**first


@pytest.mark.slow
def test_the_search_of_fp16s_loss_scale_is_no_divergence() -> None:
    config = small_config(precision="fp16", nonfinite_limit=2, spike_threshold=30.0)
    module = small_module(config)
    fit(module, Stream(0, 12))
    num_skipped = sum(bool(step.is_skipped) for step in module.steps)
    assert module.guard.num_skipped == num_skipped > 2
    assert not module.guard.is_in_doubt()


def test_a_run_may_begin_an_average_a_loss_scale_and_the_watch_for_spikes_later() -> None:
    kept: dict[str, Any] = {}
    before = small_module(small_config())
    fit(before, Stream(0, 1))
    before.on_save_checkpoint(kept)
    after = small_module(small_config(precision="fp16", ema_decay=0.5, spike_threshold=30.0))
    after.on_load_checkpoint(kept)
    fit(after, Stream(1, 3))
    assert after.ema is not None
    assert after.ema.average
    assert after.samples_seen == 3 * GLOBAL_BATCH


def test_the_average_of_weights_has_its_own_batch_statistics() -> None:
    config = config_with_batch_norm(group=GLOBAL_BATCH)
    config.compute.ema_decay = 0.5
    module = small_module(config)
    name = "vision.backbone.bn1.running_mean"
    begun = module.model.state_dict()[name].clone()
    fit(module, Stream(0, 1))
    stepped = module.model.state_dict()[name].clone()
    assert not torch.equal(begun, stepped)
    assert module.ema is not None
    with module.ema.in_place():
        torch.testing.assert_close(module.model.state_dict()[name], (begun + stepped) / 2)
    assert torch.equal(module.model.state_dict()[name], stepped)
