"""What a run computes on: ranks, cores or GPUs, their peak, and how much memory was used."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from clip_lightning.config.schema import ClusterConfig, ComputeConfig

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
# Of an H100's 80 GB, what a process can use.
H100_BYTES = 79 * 2**30


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak of one device by its name; None where it is not known, as for every CPU."""
    words = device_name.replace("-", " ").split()
    for name, peak in PEAK_FLOPS.items():
        wanted = name.split()
        if any(words[k : k + 1] == wanted[:1] for k in range(len(words))) and set(wanted) <= set(words):
            return peak
    return None


def uses_gpu(accelerator: str) -> bool:
    """Whether `cluster.accelerator` means a GPU on this node."""
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def num_visible_gpus(accelerator: str) -> int | None:
    """GPUs that this process can use; None where the run uses none."""
    return torch.cuda.device_count() if uses_gpu(accelerator) else None


def device_name(accelerator: str) -> str:
    """The GPU's name, or the processor's with the cores that this process may use."""
    if uses_gpu(accelerator):
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"
    return f"CPU {platform.machine()}, {num_cores()} cores"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cores_per_rank(num_local_ranks: int) -> int:
    """Cores of one rank: what a SLURM job requests for each of its tasks, otherwise an even share of this node's."""
    asked = os.environ.get("SLURM_CPUS_PER_TASK") if "SLURM_STEP_ID" in os.environ else None
    return int(asked) if asked else max(1, num_cores() // num_local_ranks)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory used so far, in GiB: of the GPU by torch's allocator, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def total_peak_flops(cluster: ClusterConfig) -> float | None:
    """The bf16 peak of all of a run's devices together, FLOP/s; None where it is neither set nor known."""
    peak = device_of(cluster).peak_flops
    return peak * cluster.nodes * cluster.devices if peak else None


class Device(NamedTuple):
    """What one rank computes on; None where a number is neither stated in `cluster` nor known.

    Attributes:
        memory_bytes: that a process may fill; of a CPU its part of the main memory.
        peak_flops: dense 16-bit peak, FLOP/s.
        is_here: whether this node has it, so that a step can be measured.
    """

    name: str
    memory_bytes: float | None
    peak_flops: float | None
    is_here: bool


def device_of(cluster: ClusterConfig) -> Device:
    """The device that a run is planned for: as `cluster` states it, otherwise this node's, or an H100."""
    gpu, name = uses_gpu(cluster.accelerator), device_name(cluster.accelerator)
    is_stated = bool(cluster.device_memory_gib or cluster.device_peak_tflops)
    memory: float | None = None
    peak: float | None = None
    if gpu and torch.cuda.is_available():
        is_here = cluster.device_memory_gib is None
        memory, peak = torch.cuda.get_device_properties(0).total_memory, peak_flops(name)
    elif is_stated:
        is_here, name = False, "as stated"
    elif gpu:
        is_here, name = False, "an H100"
        memory, peak = H100_BYTES, PEAK_FLOPS["H100"]
    else:
        is_here, memory = True, main_memory("MemTotal") / cluster.devices
    if cluster.device_memory_gib is not None:
        memory = cluster.device_memory_gib * 2**30
    if cluster.device_peak_tflops is not None:
        peak = cluster.device_peak_tflops * 1e12
    return Device(name, memory, peak, is_here)


def main_memory(line: str) -> float:
    """Bytes of this node's main memory: "MemTotal" all of it, "MemAvailable" what is free or can be made so."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024 * float(dict(words.split(":") for words in lines)[line].split()[0])


def precision_warning(compute: ComputeConfig, accelerator: str) -> list[str]:
    """A sentence where the CPU emulates bfloat16; without AVX-512 a matrix product took 32 times as long as float32."""
    if compute.precision != "bf16" or uses_gpu(accelerator) or platform.machine() not in ("x86_64", "AMD64"):
        return []
    capability = torch.backends.cpu.get_cpu_capability()
    if "AVX512" in capability.upper():
        return []
    return [
        f"warning: this CPU ({capability}) emulates bfloat16, which is many times slower than float32; "
        "compute.precision=fp32 makes another run of it"
    ]
