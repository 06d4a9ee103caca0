"""Out of memory, on a GPU or on the CPU, as a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clip_lightning.errors import UserError

# torch raises a plain RuntimeError with this name in it where the CPU's allocator fails.
_CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)


@contextmanager
def out_of_memory_as(sentence: str) -> Iterator[None]:
    """Inside, an out-of-memory error becomes a UserError with this sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(sentence) from error
