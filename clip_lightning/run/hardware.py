"""What a run computes on: ranks, cores or GPUs, their peak, and how much memory was used."""

import os
import platform
import resource
import sys

import torch

from clip_lightning.config.schema import ClusterConfig

# Dense bf16 tensor-core peaks in FLOP/s from the makers' data sheets (V100 and T4: fp16, they have no bf16).
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "GH200": 989.4e12,
    "A100": 311.8e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
    "MI300X": 1307.4e12,
    "MI250X": 383e12,
}


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak of one device by its name; None where it is not known, as for every CPU."""
    words = device_name.replace("-", " ").split()
    for name, peak in PEAK_FLOPS.items():
        wanted = name.split()
        if any(words[k : k + 1] == wanted[:1] for k in range(len(words))) and set(wanted) <= set(words):
            return peak
    return None


def uses_gpu(accelerator: str) -> bool:
    """Whether `cluster.accelerator` means a GPU on this machine."""
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def device_name(accelerator: str) -> str:
    """The GPU's name, or the processor's with the cores that this process may use."""
    if uses_gpu(accelerator):
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"
    return f"CPU {platform.machine()}, {num_cores()} cores"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def peak_memory_gib(device: torch.device) -> float:
    """The most memory used so far, in GiB: of the GPU by torch's allocator, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def total_peak_flops(cluster: ClusterConfig) -> float | None:
    """The bf16 peak of all of a run's GPUs together, FLOP/s; None on CPUs and where it is not known."""
    if not (uses_gpu(cluster.accelerator) and torch.cuda.is_available()):
        return None
    peak = peak_flops(torch.cuda.get_device_name())
    return peak * cluster.nodes * cluster.devices if peak else None
