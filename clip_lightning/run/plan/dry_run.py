"""What a run or a sweep would cost, printed before it starts: FLOPs, memory, hours, disk; nothing is written.

A training step on made-up pairs is done, too, and the hours come from it. Where the device is not here, or a share of
its peak (MFU) is stated, they come from that share. FLOPs are an upper bound: all texts fill the context.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from clip_lightning.config import identity
from clip_lightning.config.grid import Cell
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, bytes_shown, clock, count, percent
from clip_lightning.formatting import hours as hours_shown
from clip_lightning.model.attention import choose_attention
from clip_lightning.parallel.fsdp import shard_size
from clip_lightning.reliability.run_paths import directory_of
from clip_lightning.run.hardware import Device, device_of, uses_gpu
from clip_lightning.run.plan.memory import memory_problems, pairs_of_rank
from clip_lightning.run.plan.preflight import Plan, plan
from clip_lightning.run.plan.step_benchmark import INSTEAD, StepBenchmark, benchmark_step
from clip_lightning.run.trainer import quiet_libraries

# Published contrastive training reaches 9 to 39 % of an A100's peak: open_clip's runs (LAION scaling-laws-openclip,
# trained_models_info.csv), NVIDIA NeMo's table for CLIP.
ASSUMED_MFU = 0.3
# Records of an interval, and the bytes of one, measured in a run's metrics.jsonl with its parquet.
_RECORDS, _RECORD_BYTES = 13, 250
_NOT_FITTING = f"not tried: it does not fit; {INSTEAD}"


@dataclass(frozen=True)
class Estimate:
    """Hours of a run and where they come from.

    Attributes:
        device_hours: the sum over all devices; None where the speed is not known.
        basis: how they were computed, or which key would make them known.
    """

    device_hours: float | None
    basis: str


def dry_run(config: Config, card: Callable[[Plan], str]) -> int:
    """Prints what a run costs, after one step was tried.

    Raises: UserError for what is wrong; when a step does not fit into a device's memory, after the table.
    """
    found, device = plan(config), device_of(config.cluster)
    print(f"{card(found)}\n\n{_counts(config, found, device)}", flush=True)
    problems = memory_problems(config, found.memory, device)
    benchmark = _NOT_FITTING if problems else benchmark_step(config, found, device)
    estimate = expected(config, found.total_flops, device, benchmark)
    print(aligned([("one step", _benchmark_words(benchmark, device)), ("time", _time_words(config, estimate))]))
    if problems:
        raise UserError(*problems)
    return 0


def dry_run_cells(cells: Sequence[Cell]) -> int:
    """Prints what the cells of a sweep cost, one row each, and their sum, after a step of each model was tried.

    Raises: UserError for the cells that cannot run, after the table.
    """
    quiet_libraries()
    lines = [("parameters", "samples", "steps", "FLOPs up to", "GiB/process", "device-hours", "settings")]
    problems: list[str] = []
    benchmarks: dict[str, StepBenchmark | str] = {}
    estimates: list[Estimate] = []
    flops = 0.0
    for cell in cells:
        name, config, device = " ".join(cell.settings), cell.config, device_of(cell.config.cluster)
        choose_attention(config.compute.precision, uses_gpu(config.cluster.accelerator))
        try:
            found = plan(config)
            refused = memory_problems(config, found.memory, device)
        except UserError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
            lines.append(("-", "-", "-", "-", "-", "-", f"{name}  (refused)"))
            continue
        problems += [f"{name}: {problem}" for problem in refused]
        benchmark = "refused" if refused else _benchmark_of_its_kind(config, found, device, benchmarks)
        estimate = expected(config, found.total_flops, device, benchmark)
        estimates.append(estimate)
        flops += found.total_flops
        total, hours = found.lengths.total, hours_shown(estimate.device_hours)
        steps, gib = f"{total // config.compute.global_batch:,}", f"{found.memory.total / 2**30:.2f}"
        name += "  (refused)" * bool(refused)
        lines.append((count(found.parameters), count(total), steps, f"{found.total_flops:.3g}", gib, hours, name))
    known = [estimate.device_hours for estimate in estimates if estimate.device_hours is not None]
    hours = f"{hours_shown(sum(known))} device-hours" if len(known) == len(cells) else "hours not known of all"
    bases = dict.fromkeys(f"hours: {estimate.basis}" for estimate in estimates)
    print("", aligned(lines), f"{len(cells)} cells: {flops:.3g} FLOPs, {hours}", *bases, sep="\n", flush=True)
    if problems:
        raise UserError(*problems)
    return 0


def _benchmark_of_its_kind(
    config: Config, found: Plan, device: Device, benchmarks: dict[str, StepBenchmark | str]
) -> StepBenchmark | str:
    """A step of one model, batch and machine is tried once for all cells that have them."""
    compute = config.compute
    kind = f"{config.model} {config.loss} {config.cluster} {compute.global_batch} {compute.precision}"
    if kind not in benchmarks:
        benchmark = benchmark_step(config, found, device)
        if isinstance(benchmark, StepBenchmark) or benchmark not in benchmarks.values():
            print(f"one step of {identity.model_name(config)}  {_benchmark_words(benchmark, device)}", flush=True)
        benchmarks[kind] = benchmark
    return benchmarks[kind]


def expected(config: Config, flops: float, device: Device, benchmark: StepBenchmark | str) -> Estimate:
    """Hours of a run: at the stated share of the peak, else at the pace of the benchmark, else at an assumed share."""
    mfu, peak = config.cluster.assumed_mfu, device.peak_flops
    if isinstance(benchmark, StepBenchmark) and mfu is None:
        hours = flops / benchmark.flops_per_second / 3600
        if not uses_gpu(config.cluster.accelerator):  # the step had all cores of its machine
            hours *= config.cluster.devices
        return Estimate(hours, "measured in that step; reading data, evaluation and communication left out")
    if peak is None:
        return Estimate(None, "not known without a peak; write cluster.device_peak_tflops=TFLOPS of one device")
    basis = (
        f"{'stated' if mfu else 'assumed'}: {percent(mfu or ASSUMED_MFU, 0)} MFU of {peak / 1e12:g} TFLOP/s "
        f"({device.name}); cluster.assumed_mfu, device_peak_tflops and device_memory_gib state others"
    )
    return Estimate(flops / ((mfu or ASSUMED_MFU) * peak) / 3600, basis)


def _part_shown(size: int | None) -> str:
    return "not known: a tower reads the values of its tensors" if size is None else bytes_shown(size)


def _counts(config: Config, found: Plan, device: Device) -> str:
    """Parameters, FLOPs, steps, memory and disk."""
    total, batch, memory = found.lengths.total, config.compute.global_batch, found.memory
    share, micro_batch = pairs_of_rank(config)
    of = f" of {bytes_shown(device.memory_bytes)}" if device.memory_bytes else ""
    of += ": does not fit" * (device.memory_bytes is not None and memory.total > device.memory_bytes)
    averages = 2 if config.compute.ema_decay else 1
    checkpoint = 4 * found.parameters * averages + memory.optimizer * shard_size(config.cluster)
    records = total // found.lengths.log_every * _RECORDS * _RECORD_BYTES
    free = f"records {bytes_shown(records)}; {bytes_shown(_free_disk(config))} free"
    starts = [f" from {count(phase.start)}" for phase in found.phases] if len(found.phases) > 1 else [""]
    rows = [
        ("parameters", f"{found.parameters:,}"),
        *(
            (f"forward FLOPs{at}", f"{count(flops.image, 'G')} image + {count(flops.text, 'G')} full text per sample")
            for at, flops in zip(starts, found.flops, strict=True)
        ),
        ("training FLOPs", f"up to {count(found.total_flops / total, 'G')} per sample, {found.total_flops:.3g} in all"),
        ("steps", f"{total // batch:,} of {batch:,} samples; an epoch has {found.epoch_samples:,}"),
        *[("data", f"not there ({config.data.path}) and not tried; its pairs as published")] * (not found.has_data),
        *((f"memory: {part.name}", _part_shown(getattr(memory, part.name))) for part in fields(memory)),
        (
            "memory per process",
            f"{memory.shown()} estimated{of} ({device.name}), {micro_batch:,}/{share:,} pairs",
        ),
        ("disk", f"{config.cluster.keep_last} checkpoints x {bytes_shown(checkpoint)}, {free}"),
    ]
    return aligned(rows)


def _free_disk(config: Config) -> int:
    """Bytes that are free where the run would live."""
    folder = directory_of(config).parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _benchmark_words(benchmark: StepBenchmark | str, device: Device) -> str:
    if isinstance(benchmark, str):
        return benchmark
    pieces = f" in {benchmark.pieces} micro-batches" if benchmark.pieces > 1 else ""
    share = f" = {percent(benchmark.flops_per_second / device.peak_flops)} MFU" if device.peak_flops else ""
    return (
        f"done: {benchmark.pairs:,} made-up pairs{pieces} in {benchmark.seconds:.3g} s, "
        f"{benchmark.flops_per_second / 1e9:.3g} GFLOP/s{share} on {device.name}; loss {benchmark.loss:.3f},"
        f" {benchmark.memory_gib:.2f} GiB"
    )


def _time_words(config: Config, estimate: Estimate) -> str:
    if estimate.device_hours is None:
        return estimate.basis
    devices = config.cluster.nodes * config.cluster.devices
    hours = estimate.device_hours / devices
    shown = f"{hours_shown(hours)} h" if hours >= 10 else clock(3600 * hours)
    side = f" on {devices} devices = {hours_shown(estimate.device_hours)} device-hours" if devices > 1 else ""
    return f"{shown}{side}; {estimate.basis}"
