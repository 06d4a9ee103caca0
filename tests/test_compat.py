"""The private APIs of torch and Lightning that the project uses exist and do what it takes them to do.

Where one of these fails after an upgrade, the library has removed or changed what the message names: find its
replacement, and change clip_lightning/compat.py alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clip_lightning import compat
from clip_lightning.parallel.ddp import FixedBuckets
from clip_lightning.training.validation_hooks import run_validation_hooks


def test_torch_has_the_operators_that_attention_dispatches_to() -> None:
    names = {compat.operator_name(operator) for operator in compat.attention_operators()}
    assert len(names) == 4, "torch renamed one of its scaled_dot_product_attention operators"


def test_torch_names_the_arguments_of_an_operator() -> None:
    names = compat.argument_names(torch.ops.aten.native_dropout.default)
    assert names == ["input", "p", "train"], "torch changed OpOverload._schema"


def test_a_storage_keeps_its_number() -> None:
    storage, other = torch.zeros(3).untyped_storage(), torch.zeros(3).untyped_storage()
    assert compat.storage_id(storage) == compat.storage_id(storage) != compat.storage_id(other), (
        "torch changed UntypedStorage._cdata"
    )


def test_fake_tensors_have_shapes_and_modules_take_them() -> None:
    layer = nn.Linear(3, 4)
    with compat.fake_tensor_mode():
        compat.replace_tensors(layer, lambda tensor: torch.empty(tensor.shape))
        shape = layer(torch.empty(2, 3)).shape
    assert shape == (2, 4), "torch changed FakeTensorMode or Module._apply"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_autocast_is_off_on_every_device(device: str) -> None:
    with torch.autocast("cpu", torch.bfloat16), compat.no_autocast(torch.device(device)):
        product = torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
    assert product.dtype == torch.float32, "torch.autocast(enabled=False) does not turn autocast off"


def test_a_dispatch_mode_sees_operators() -> None:
    names: list[str] = []

    class Seen(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(compat.operator_name(func))
            return func(*args, **(kwargs or {}))

    with Seen():
        torch.zeros(2).add(1)
    assert "aten::add" in names, "torch changed TorchDispatchMode"
    assert compat.tree_leaves({"a": [1, 2], "b": 3}) == [1, 2, 3], "torch changed tree_leaves"


def test_every_batch_norm_has_one_base_class() -> None:
    assert isinstance(nn.BatchNorm1d(2), compat.BatchNorm), "torch changed _BatchNorm"
    assert isinstance(nn.BatchNorm2d(2), compat.BatchNorm), "torch changed _BatchNorm"


def test_bicubic_is_written_into_a_tensor() -> None:
    image, out = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8), torch.empty(1, 3, 4, 4, dtype=torch.uint8)
    compat.resize_bicubic_into(image, out)
    expected = nn.functional.interpolate(image, (4, 4), mode="bicubic", antialias=True)
    assert torch.equal(out, expected), "torch changed aten._upsample_bicubic2d_aa.out"


def test_a_fused_optimizer_skips_a_step_on_the_device() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([weight], fused=True)
    assert compat.reads_found_inf(optimizer), "torch changed Optimizer._step_supports_amp_scaling"
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3)), "torch's fused AdamW does not read found_inf any more"
    assert not compat.reads_found_inf(torch.optim.SGD([weight]))


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_torch_distributed_has_a_store_and_lists_its_groups() -> None:
    compat.default_store().set("key", "value")
    assert compat.default_store().get("key") == b"value", "torch changed _get_default_store"
    group = dist.new_group([0])
    assert group in compat.process_groups(), "torch changed distributed_c10d._world"


@pytest.mark.usefixtures("one_rank")
def test_ddp_makes_its_final_buckets_before_the_first_step_and_keeps_them() -> None:
    wrapped = FixedBuckets(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    wrapped(torch.ones(1, 3)).sum().backward()
    assert not wrapped.reducer._rebuild_buckets(), "DDP made other buckets after the first step"


def test_ddp_is_built_and_lists_its_parameters_by_the_methods_that_are_overridden() -> None:
    assert hasattr(DDPStrategy, "_setup_model"), "Lightning builds DDP in another method than DDPStrategy._setup_model"
    assert hasattr(DistributedDataParallel, "_build_params_for_reducer"), "torch renamed DDP's list of parameters"


def test_lightning_does_not_handle_signals() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for part, name in ((trainer._signal_connector, "register_signal_handlers"),
                       (trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor")):  # fmt: skip
        assert callable(getattr(type(part), name, None)), f"Lightning removed {type(part).__name__}.{name}"
    compat.disable_signal_handling(trainer)


def test_lightning_keeps_the_training_data_of_a_fit() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert compat.training_data(trainer) is None, "Lightning changed FitLoop._data_source"


def test_lightning_watches_its_ranks_by_a_function_that_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.strategies.launchers import subprocess_script

    monkeypatch.setattr(subprocess_script, "_launch_process_observer", subprocess_script._launch_process_observer)
    watched: list[Any] = []
    compat.replace_rank_observer(watched.extend)
    launcher = subprocess_script._SubprocessScriptLauncher(LightningEnvironment(), num_processes=1, num_nodes=1)
    monkeypatch.setattr(launcher, "_call_children_scripts", lambda: launcher.procs.append("a rank"))
    launcher.launch(lambda: None)
    assert watched == ["a rank"], "Lightning starts the thread that watches its ranks in another way"


def test_a_callback_may_stop_training_in_a_hook_of_a_validation() -> None:
    early = EarlyStopping("value", mode="max", patience=1)
    trainer = Trainer(
        accelerator="cpu", callbacks=[early], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        val_check_interval=2, check_val_every_n_epoch=None, limit_val_batches=0,
    )  # fmt: skip
    trainer.state.fn = TrainerFn.FITTING
    module: Any = None
    early.setup(trainer, module, "fit")
    for _ in range(2):
        trainer.callback_metrics.update({"value": torch.tensor(1.0)})
        run_validation_hooks(trainer, module)
    assert trainer.should_stop, "Lightning's EarlyStopping reads another place, or checks in another hook"
