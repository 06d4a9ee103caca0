"""Every private API of torch and Lightning that the project uses, each behind one name.

An upgrade may remove any of them without notice: tests/test_compat.py calls each and says what is gone. Hydra's private
base class of launchers is imported in hydra_plugins only, since nothing else imports Hydra.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch.nn.parallel import DistributedDataParallel

__all__ = ["BatchNorm", "TorchDispatchMode", "tree_leaves"]


def fake_tensor_mode() -> AbstractContextManager[Any]:
    """Inside, new tensors have a shape, a type and a device, but no values and no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a while to import

    return FakeTensorMode()


def attention_operators() -> set[Any]:
    """The operators that torch's fused attention may dispatch to."""
    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    }


def operator_name(operator: Any) -> str:
    """Name of an operator that a dispatch mode sees, such as `aten::add`."""
    return str(operator._schema.name)


def argument_names(operator: Any) -> list[str]:
    """Names of its positional arguments, in order."""
    return [argument.name for argument in operator._schema.arguments]


def storage_id(storage: torch.UntypedStorage) -> int:
    """A number that belongs to a storage while it lives, also to one without memory, as fake tensors have."""
    return int(storage._cdata)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, autocast is off. torch makes no such context for the meta device, which never has autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def replace_tensors(module: nn.Module, change: Any) -> None:
    """Replaces every parameter and buffer of a module, in place, by `change` of it."""
    module._apply(change)


def resize_bicubic_into(image: Tensor, out: Tensor) -> None:
    """Resizes uint8 or float [1, C, h, w] to the size of `out` [1, C, H, W], by antialiased bicubic, into `out`."""
    torch.ops.aten._upsample_bicubic2d_aa.out(image, list(out.shape[2:]), False, None, None, out=out)


def resize_bilinear_into(image: Tensor, out: Tensor) -> None:
    """As `resize_bicubic_into`, by antialiased bilinear."""
    torch.ops.aten._upsample_bilinear2d_aa.out(image, list(out.shape[2:]), False, None, None, out=out)


def default_store() -> Any:
    """The key-value store of torch.distributed's default group."""
    return distributed_c10d._get_default_store()


def process_groups() -> list[Any]:
    """Every process group that this rank is part of."""
    return list(distributed_c10d._world.pg_map)


def reads_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step reads its attribute `found_inf`, and does nothing where that is 1."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def make_final_buckets(model: "DistributedDataParallel") -> None:
    """Makes DDP's final gradient buckets before the first backward pass, in the order of the reducer's parameters.

    To be called on every rank. Without it DDP makes them after the first backward pass.
    """
    model.reducer._push_all_rebuilt_params()
    made = model.reducer._rebuild_buckets()
    assert made, "DDP has made its final buckets already"


def disable_signal_handling(trainer: "Trainer") -> None:
    """Keeps Lightning from handling signals, which `reliability.preemption` does.

    Lightning's handlers would end a fit that has not begun with exit code 0, and would ask all ranks before every step
    whether a signal came, which waits for the device.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def training_data(trainer: "Trainer") -> Any:
    """What was passed to `Trainer.fit` as its training data: a loader, or the module that makes it."""
    return trainer.fit_loop._data_source.instance


def replace_rank_observer(observe: Callable[[list[Any]], None]) -> None:
    """Calls `observe` with the processes of the ranks that Lightning starts from here on.

    It replaces the thread by which Lightning kills the main process silently when a rank ends with an error.
    """
    from lightning.pytorch.strategies.launchers import subprocess_script

    assert hasattr(subprocess_script, "_launch_process_observer")
    subprocess_script._launch_process_observer = observe  # type: ignore[assignment]
