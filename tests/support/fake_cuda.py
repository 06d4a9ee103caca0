"""A GPU without one: tensors on `cuda` have shapes and devices but no values, and what would wait for the GPU is noted.

Inside `FakeCuda` whatever concerns host tensors alone runs as usual, so that real lengths and plans reach the device.
An operator on devices that do not fit raises, as on a GPU. Noted as syncs are reads of values (`.item()`, `.tolist()`,
`if tensor`), copies between host and device that block, and host indices into tensors of the device. Backward cannot
run: autograd needs a CUDA context.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
_PROJECT = str(Path(__file__).parents[2] / "clip_lightning")
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class FakeCuda(FakeTensorMode):
    """The mode.

    Attributes:
        syncs: how often the host would have waited for the device, by "file.py:function" of the project.
        answers: what a read of a value gives, by the same names; 0 where there is none.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.syncs: Counter[str] = Counter()
        self.answers: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        wanted = kwargs.get("device")
        is_fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not is_fake and (wanted is None or torch.device(wanted).type != "cuda"):
            return func(*args, **kwargs)  # of the host alone
        on = {tensor.device.type for tensor in tensors}
        if func in _COPIES and not (kwargs.get("non_blocking") or args[2:3] == (True,)):
            if on | ({torch.device(wanted).type} if wanted is not None else set()) == {"cpu", "cuda"}:
                self.note()
        elif func in _INDEXED and args[0].is_cuda and any(isinstance(i, Tensor) and i.is_cpu for i in args[1]):
            self.note()
        if func is _aten._local_scalar_dense.default:
            answer = self.answers.get(self.note(), 0)
            return answer if args[0].dtype.is_floating_point else int(answer)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def note(self) -> str:
        """Adds a sync of the project's innermost function, and returns its name."""
        own = (frame for frame in reversed(traceback.extract_stack()) if frame.filename.startswith(_PROJECT))
        name = next((f"{Path(frame.filename).name}:{frame.name}" for frame in own), "outside")
        self.syncs[name] += 1
        return name

    def on_device(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape, strides and dtype on the device."""
        with self:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)

    def move(self, module: nn.Module) -> None:
        """Puts parameters and buffers of a module on the device, in place; shared ones stay shared."""
        moved: dict[int, Tensor] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    own = moved.setdefault(
                        id(parameter), nn.Parameter(self.on_device(parameter), parameter.requires_grad)
                    )
                    part._parameters[name] = own  # type: ignore[assignment]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = moved.setdefault(id(buffer), self.on_device(buffer))


class FakeEvent:
    """Replaces `torch.cuda.Event`."""

    waited = 0  # calls of `synchronize`, over all events

    def record(self, stream: Any = None) -> None:
        """There is nothing to record."""

    def synchronize(self) -> None:
        """Counts the call."""
        FakeEvent.waited += 1


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Inside, `cuda` exists; calls of the CUDA runtime that hold no tensor are replaced."""
    mode = FakeCuda()
    with ExitStack() as stack:
        for target, value in {
            "torch.cuda.Event": FakeEvent,
            "torch.cuda.get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
            "torch.cuda.set_rng_state": lambda state, device=None: None,
            "torch.cuda.empty_cache": lambda: None,
            "torch.cuda.is_bf16_supported": lambda *_: True,
            "torch.cuda.current_device": lambda: 0,
            "torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.Tensor.pin_memory": lambda tensor, device=None: tensor,
        }.items():
            stack.enter_context(patch(target, value))
        stack.enter_context(mode)
        yield mode
