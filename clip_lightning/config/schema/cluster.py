"""The keys of `cluster`: the hardware of a run and the jobs on it."""

from dataclasses import dataclass

from omegaconf import MISSING

from clip_lightning.config.schema.field import key, part


@dataclass
class SlurmConfig:
    """What a job asks of SLURM."""

    partition: str | None = key(None, "sbatch --partition")
    account: str | None = key(None, "sbatch --account")
    qos: str | None = key(None, "sbatch --qos")
    constraint: str | None = key(None, "sbatch --constraint")
    array_parallelism: int = key(16, "jobs of a sweep that run at once", above=0)
    gpus_per_node: int | None = key(None, "sbatch --gpus-per-node; null: cluster.devices", minimum=0)
    cpus_per_task: int | None = key(None, "sbatch --cpus-per-task; null: cluster.workers + 1", above=0)
    memory: str | None = key(None, "sbatch --mem")
    signal_seconds: int = key(300, "warning before the time limit", minimum=0)
    requeue: bool = key(True, "a job that meets its time limit, or loses a node, starts again and resumes")
    setup: list[str] = key([], "shell lines before srun: modules, environment")
    container: list[str] = key([], "words before python, like [apptainer,exec,--nv,clip.sif]")
    srun: list[str] = key([], "further arguments of srun")
    extra: list[str] = key([], "further options of sbatch, like [--exclusive,--reservation=x]")
    submit: bool = key(True, "false: writes the job's files and says how to submit them")


@dataclass
class ClusterConfig:
    """Where a run computes; never what it learns."""

    name: str = key(MISSING, "the option's name")
    scheduler: str = key(
        "none",
        "none, slurm: outside an allocation the run is submitted as a job, inside it trains",
        choices=("none", "slurm"),
    )
    accelerator: str = key("auto", "auto, cpu, gpu", choices=("auto", "cpu", "gpu"))
    nodes: int = key(1, "machines", above=0)
    devices: int = key(1, "per node", above=0)
    strategy: str = key(
        "single",
        "single, ddp, fsdp (weights in shards over all ranks), hsdp (shards, repeated)",
        choices=("single", "ddp", "fsdp", "hsdp"),
    )
    shard_size: int | None = key(
        None, "hsdp: neighbouring ranks that hold the weights once; null: cluster.devices", above=0
    )
    timeout_minutes: float = key(
        10.0, "a collective that takes longer ends the run; the first step may take 30", above=0
    )
    micro_batch: int | None = key(None, "pairs per forward on a rank; null: the rank's whole share", above=0)
    workers: int = key(2, "loader processes per rank", minimum=0)
    threads: int | None = key(None, "torch threads per rank; null: cores / local ranks - workers", above=0)
    cache_locked: bool = key(False, "features of locked towers are kept in the run's directory, float32, while it runs")
    activation_checkpointing: str = key("none", "none, full, selective", choices=("none", "full", "selective"))
    compile: bool = key(False, "torch.compile of the towers' blocks")
    time_limit_minutes: float | None = key(
        None, "of one start: the run saves and leaves before it; null: no limit", above=0
    )
    checkpoint_every: str = key("10%", "duration between checkpoints", duration=True)
    checkpoint_minutes: float | None = key(
        30.0, "longest time between checkpoints, by rank 0's clock; null: by checkpoint_every only", above=0
    )
    log_every: str = key("1%", "duration between printed and logged numbers of training", duration=True)
    keep_last: int = key(2, "newest checkpoints kept", above=0)
    keep_every: str | None = key(
        None, "duration; the first checkpoint past each multiple is never removed; null: none", duration=True
    )
    device_memory_gib: float | None = key(
        None, "of one device, to plan for other hardware; null: that of the device here", above=0
    )
    device_peak_tflops: float | None = key(
        None, "dense 16-bit peak of one device; null: known by the name of the GPU here", above=0
    )
    assumed_mfu: float | None = key(
        None, "share of the peak that a dry run's hours assume; null: measured, or 0.3", above=0, below=1
    )
    slurm: SlurmConfig = part(SlurmConfig)
