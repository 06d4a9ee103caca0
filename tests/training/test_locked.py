"""A locked tower costs one forward pass and nothing else, and what it gave once need not be computed again."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import IterableDataset

from clip_lightning.config.schema import Config
from clip_lightning.data.batches import Batch
from clip_lightning.errors import UserError
from clip_lightning.training.locked import FeatureStore, content_hashes
from tests.support.small_run import (
    CONTEXT,
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


def locked(config: Config, *, vision: bool = True, text: bool = True, micro_batch: int | None = None) -> Config:
    config.model.vision.locked, config.model.text.locked = vision, text
    config.cluster.micro_batch = micro_batch
    return config


class Repeated(IterableDataset[Batch]):
    """The same two batches again and again: an epoch of 48 samples."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.num_steps):
            ids = step % 2 * GLOBAL_BATCH + torch.arange(GLOBAL_BATCH)
            yield global_batch(step % 2)._replace(sample_ids=ids)

    def __len__(self) -> int:
        return self.num_steps


def passes(module: Recorder) -> list[str]:
    """Notes every forward pass of the frozen parts from now on."""
    seen: list[str] = []
    module.model.vision.backbone.register_forward_hook(lambda *_: seen.append("vision"))
    module.model.text.encoder.register_forward_hook(lambda *_: seen.append("text"))
    return seen


def losses(module: Recorder) -> Tensor:
    return torch.stack([step.loss for step in module.steps])


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_locked_parts_have_no_state_in_the_optimizer_no_gradient_and_stay_as_they_are(micro_batch: int | None) -> None:
    module = small_module(locked(small_config(ema_decay=0.5), micro_batch=micro_batch))
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer = fit(module, Stream(0, 3))
    learns = {"vision.projection.weight", "text.projection.weight", "log_logit_scale"}
    assert {n for n, value in module.model.state_dict().items() if not torch.equal(value, before[n])} == learns
    assert {name for name, value in module.model.named_parameters() if value.grad is not None} == learns
    assert len(trainer.optimizers[0].state) == len(learns)
    assert module.ema is not None
    assert module.ema.average.keys() == learns


def test_a_locked_tower_keeps_its_batch_statistics() -> None:
    module = small_module(locked(config_with_batch_norm(24), text=False))
    before = {name: value.clone() for name, value in module.model.vision.backbone.state_dict().items()}
    fit(module, Stream(0, 2))
    assert all(torch.equal(before[name], v) for name, v in module.model.vision.backbone.state_dict().items())


def test_autograd_keeps_nothing_of_a_locked_tower() -> None:
    kept = []
    for is_locked in (False, True):
        model = small_module(locked(small_config(), vision=is_locked, text=is_locked)).model
        found: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor: Tensor, found: dict[int, int] = found, weights: set[int] = weights) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = model.train()(*global_batch(0)[:3])
        assert features.image.requires_grad
        kept.append(sum(found.values()))
    assert kept[1] < kept[0] / 50, "what the projections read, and the features"


@pytest.mark.parametrize(("vision", "text"), [(True, False), (False, True), (True, True)])
def test_micro_batches_give_the_undivided_gradient_and_run_a_locked_tower_once(vision: bool, text: bool) -> None:
    config = locked(small_config(), vision=vision, text=text)
    whole, cut = small_module(config), small_module(locked(small_config(), vision=vision, text=text, micro_batch=7))
    fit(whole, Stream(0, 1))
    seen = passes(cut)
    fit(cut, Stream(0, 1))
    check_close(cut.gradients, whole.gradients, 1e-6)
    torch.testing.assert_close(losses(cut), losses(whole), rtol=1e-6, atol=0)
    assert seen.count("vision") == (4 if vision else 8), "four pieces"


def test_a_tower_with_its_own_projection_is_locked_completely() -> None:
    config = locked(small_config(), text=False, micro_batch=8)
    config.model.vision.projection, config.model.embed_dim = "none", 32
    module = small_module(config)
    fit(module, Stream(0, 2))
    assert not any(parameter.requires_grad for parameter in module.model.vision.parameters())
    assert module.gradients["text.projection.weight"].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 7])
def test_features_kept_over_the_run_change_nothing_and_save_the_pass(tmp_path: Path, micro_batch: int | None) -> None:
    plain, kept, resumed = (small_module(locked(small_config(), micro_batch=micro_batch)) for _ in range(3))
    fit(plain, Repeated(6))
    for module, num_pieces in ((kept, 2 * (4 if micro_batch else 1)), (resumed, 0)):
        module.locked.keep_in(tmp_path / "locked", 2 * GLOBAL_BATCH)
        seen = passes(module)
        fit(module, Repeated(6))
        assert seen.count("vision") == num_pieces, "once for each sample, and not at all after a restart"
        assert (seen.count("text") > 0) == (num_pieces > 0)
        assert torch.equal(losses(module), losses(plain))
        assert all(torch.equal(plain.model.state_dict()[name], v) for name, v in module.model.state_dict().items())


def test_another_caption_or_crop_of_a_sample_is_computed_again(tmp_path: Path) -> None:
    plain, kept = small_module(locked(small_config())), small_module(locked(small_config()))
    kept.locked.keep_in(tmp_path / "locked", GLOBAL_BATCH)

    class SameIds(Stream):
        def __iter__(self) -> Iterator[Batch]:
            return (batch._replace(sample_ids=torch.arange(GLOBAL_BATCH)) for batch in super().__iter__())

    seen = passes(kept)
    fit(plain, SameIds(0, 4))
    fit(kept, SameIds(0, 4))
    assert seen.count("vision") == 4
    assert torch.equal(losses(kept), losses(plain))


@settings(deadline=None, max_examples=40)
@given(width=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_row_is_read_back_complete_or_not_at_all(
    width: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, width, generator=generator)
    ids, contents = torch.tensor([7, 0, 3, 9, 2]), torch.randint(-(2**62), 2**62, (5,), generator=generator)
    path = tmp_path_factory.mktemp("store") / "rows"
    store = FeatureStore(path, 10, width)
    assert not store.read(ids, contents)[1].any()
    store.write(ids, contents, rows)
    again = FeatureStore(path, 10, width)
    values, found = again.read(ids, contents)
    assert found.all()
    assert torch.equal(values, rows)
    assert not again.read(ids, contents + 1)[1].any()
    assert not again.read(torch.tensor([1, 4, 5, 6, 8]), contents)[1].any()
    with path.open("r+b") as file:
        file.seek(3 * path.stat().st_size // 10)
        file.write(bytes(4))
    assert again.read(ids, contents)[1].tolist() == [True, True, False, True, True]


def test_a_hash_is_of_the_bytes_and_not_of_the_padding() -> None:
    batch = global_batch(0)
    tokens, lengths = batch.tokens, batch.lengths
    hashes = content_hashes(tokens, lengths)
    assert len(set(hashes.tolist())) == GLOBAL_BATCH
    assert torch.equal(content_hashes(torch.nn.functional.pad(tokens, (0, 3), value=9), lengths), hashes)
    assert not torch.equal(content_hashes(tokens, lengths.clamp(max=CONTEXT - 1)), hashes)
    images = content_hashes(batch.images)
    turned = batch.images.to(memory_format=torch.channels_last)
    assert torch.equal(content_hashes(turned), images)
    assert not (content_hashes(batch.images.flip(3)) == images).any()
    assert not (content_hashes(batch.images ^ (torch.arange(GLOBAL_BATCH) == 5).view(-1, 1, 1, 1)) == images)[5]


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.cache_locked=true needs .* GiB are free"):
        FeatureStore(tmp_path / "rows", 2**40, 1024)


@pytest.mark.ci
def test_ranks_with_locked_towers_give_one_process_gradient(root: Path, tmp_path: Path) -> None:
    cases = [{"loss": "softmax", "micro_batch": size, "locked": True} for size in (None, 5)]
    command = [sys.executable, "-m", "tests.support.small_run", "2", str(tmp_path), json.dumps(cases)]
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True, timeout=300)
    alone = small_module(locked(small_config()))
    fit(alone, Stream(0, 1))
    expected = {f"gradient {name}": gradient for name, gradient in alone.gradients.items()}
    for found in torch.load(tmp_path / "results.pt", weights_only=True).values():
        check_close(found, {"losses": losses(alone), **expected}, 1e-6)
