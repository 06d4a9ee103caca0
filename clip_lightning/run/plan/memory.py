"""What a training step holds in memory, estimated before it is tried, without any memory.

A forward and a backward pass are done with fake tensors, which have shapes and types but no values, and the most bytes
that live at a time are counted: autocast, fused attention, activation checkpointing as they are, by a CPU's kernels.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from clip_lightning.compat import TorchDispatchMode, fake_tensor_mode, replace_tensors, storage_id, tree_leaves
from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import Config
from clip_lightning.formatting import bytes_shown
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.parallel import activation_checkpointing
from clip_lightning.parallel.fsdp import shard_size
from clip_lightning.run.hardware import Device
from clip_lightning.training.optimizer import state_size


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank's training step, estimated: everything but the libraries' own.

    Attributes:
        weights: float32, the average of weights and a teacher; of shards this rank's, and the two largest units, which
            are whole while they compute.
        gradients: float32; of shards this rank's, and the largest unit's, which are whole until they are reduced.
        optimizer: float32; of shards this rank's.
        activations: of one micro-batch, with what its backward pass adds and autocast's copies of the weights; images.
            None where a tower reads the values of its tensors, and nothing can be said before it is tried.
        loss: features of the global batch, their gradients, and the logits held at a time.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    loss: int

    @property
    def total(self) -> int:
        """Their sum; of those that are known."""
        return sum(getattr(self, part.name) or 0 for part in fields(self))

    def shown(self) -> str:
        """The sum, for the screen."""
        return f"over {bytes_shown(self.total)}" if self.activations is None else bytes_shown(self.total)


def estimate_memory(config: Config, model: CLIP, phases: Sequence[Phase], teacher: CLIP | None = None) -> Memory:
    """Bytes of one rank's step: weights, gradients, the optimizer's state, and the most that a phase adds.

    Args:
        model, teacher: on the meta device.
    """
    parameters = num_parameters(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share, micro_batch = pairs_of_rank(config)
    shards = shard_size(config.cluster)
    second, largest = sorted(_unit_sizes(model))[-2:] if shards > 1 else (0, 0)
    images = share * 3 * max(phase.image_size for phase in phases) ** 2
    try:
        activations = images + max(_activation_bytes(config, phase, micro_batch) for phase in phases)
    except RuntimeError:
        activations = None  # fake tensors have no values, and a user's tower reads them
    batch, width = config.compute.global_batch, config.model.embed_dim
    return Memory(
        weights=4 * parameters * (2 if config.compute.ema_decay else 1) // shards
        + 4 * (largest + second)
        + (4 * num_parameters(teacher) if teacher else 0),
        gradients=4 * trained // shards + 4 * largest,
        optimizer=int(4 * state_size(config.optimizer) * trained) // shards,
        activations=activations,
        loss=4 * (4 * share * width + 2 * batch * width + 2 * min(config.loss.chunk, share) * batch),
    )


def memory_problems(config: Config, memory: Memory, device: Device) -> list[str]:
    """A sentence where a step needs more than a device has."""
    if device.memory_bytes is None or memory.total <= device.memory_bytes:
        return []
    _, micro_batch = pairs_of_rank(config)
    activations = memory.activations or 0
    fixed = memory.total - activations
    fitting = int(micro_batch * (device.memory_bytes - fixed) / max(activations, 1))
    fixes = [f"cluster.micro_batch={2 ** (fitting.bit_length() - 1)}"] if fitting > 0 else []
    fixes += ["cluster.activation_checkpointing=full"] * (config.cluster.activation_checkpointing == "none")
    if fixed > device.memory_bytes / 2 and config.cluster.strategy in ("single", "ddp"):
        fixes.append("cluster=fsdp")
    return [
        f"a step needs about {bytes_shown(memory.total)} per process, {bytes_shown(activations)} of it for "
        f"activations of {micro_batch:,} pairs, and a device has {bytes_shown(device.memory_bytes)}; write "
        f"{' or '.join(fixes or ['more devices, or a smaller model'])}"
    ]


def pairs_of_rank(config: Config) -> tuple[int, int]:
    """A rank's share of the global batch, and how many of its pairs are in one forward pass."""
    share = config.compute.global_batch // (config.cluster.nodes * config.cluster.devices)
    return share, min(config.cluster.micro_batch or share, share)


def num_parameters(model: nn.Module) -> int:
    """All parameters, trained or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def _unit_sizes(model: CLIP) -> list[int]:
    """Parameters of what is gathered at once under FSDP2: each block, and what is left of each tower."""
    sizes = {block: num_parameters(block) for block in model.blocks()}
    rests = [
        num_parameters(tower) - sum(sizes[module] for module in tower.modules() if module in sizes)
        for tower in (model.vision, model.text)
    ]
    return [*sizes.values(), *rests]


def _activation_bytes(config: Config, phase: Phase, pairs: int) -> int:
    """The most bytes alive at a time in a step's forward and backward pass, without weights and their gradients."""
    with torch.device("meta"):
        model = build_clip(config.model, config.loss, (phase,)).train()
    # Whether a mask hides anything is asked of its values, which are not there.
    model.text.mask_padding = False  # type: ignore[assignment]
    activation_checkpointing.apply(model, config.cluster.activation_checkpointing)
    with fake_tensor_mode():
        replace_tensors(model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
        return peak_bytes(model, phase, pairs, config.compute.precision)


def peak_bytes(model: CLIP, phase: Phase, pairs: int, precision: str) -> int:
    """The same of a model on the CPU, with real or fake tensors."""
    size, length = phase.image_size, phase.context_length
    images, tokens = torch.zeros(pairs, 3, size, size), torch.zeros(pairs, length, dtype=torch.int64)
    lengths = torch.full((pairs,), length)
    with _Lives(known=[parameter.untyped_storage() for parameter in model.parameters()]) as lives:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
            features = model(images, tokens, lengths)
        learned = [value for value in features if value is not None and value.requires_grad]
        torch.autograd.backward(learned, [torch.ones_like(value) for value in learned])
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return lives.peak(without=[gradient.untyped_storage() for gradient in gradients])


class _Lives(TorchDispatchMode):
    """When each storage that is made while it is entered begins and ends, without keeping any.

    The caller keeps those that are `known`; they are not counted.
    """

    def __init__(self, known: Sequence[torch.UntypedStorage]) -> None:
        super().__init__()
        self._alive = {storage_id(storage): -1 for storage in known}
        self._events: list[tuple[int, int]] = []  # number of a storage, bytes; negative at its end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and storage_id(storage := tensor.untyped_storage()) not in self._alive:
                number, size = len(self._events), storage.nbytes()
                self._alive[storage_id(storage)] = number
                self._events.append((number, size))
                weakref.finalize(storage, self._end, storage_id(storage), number, size).atexit = False
        return result

    def _end(self, storage: int, number: int, size: int) -> None:
        del self._alive[storage]
        self._events.append((number, -size))

    def peak(self, without: Sequence[torch.UntypedStorage]) -> int:
        """The most bytes alive at a time, some storages that are alive now left out."""
        left_out = {self._alive[storage_id(storage)] for storage in without}
        return max(accumulate(size for number, size in self._events if number not in left_out))
