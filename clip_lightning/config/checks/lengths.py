"""Whether batch, lengths, schedule and guards of a run agree with each other."""

import math
from collections.abc import Iterator

from clip_lightning.config import duration, phases
from clip_lightning.config.lengths import schedule_problems
from clip_lightning.config.schema import ComputeConfig, Config


def problems(config: Config) -> Iterator[str]:
    """One sentence for each problem of a config whose keys of `compute` and `cluster` are allowed by themselves."""
    yield from _batch(config)
    yield from _lengths(config)
    yield from _schedule(config)
    yield from _guards(config.compute)


def _batch(config: Config) -> Iterator[str]:
    """Whether the global batch divides over ranks, micro-batches and groups of batch norm."""
    compute, cluster = config.compute, config.cluster
    batch, ranks = compute.global_batch, cluster.nodes * cluster.devices
    if batch % ranks:
        yield (
            f"compute.global_batch={batch} must be divisible by the {ranks} ranks (cluster.nodes x cluster.devices); "
            f"write {f'{batch // ranks * ranks} or ' if batch > ranks else ''}{(batch // ranks + 1) * ranks}"
        )
        return
    share = batch // ranks
    micro = cluster.micro_batch or share
    if share % micro:
        fit = max(size for size in range(1, min(micro, share) + 1) if share % size == 0)
        yield f"cluster.micro_batch={micro} must divide the {share} pairs of a rank; write {fit}"
        return
    if not config.model.vision.batch_norm or config.model.vision.locked:
        return
    group = compute.batch_norm_samples
    if batch % group:
        yield (
            f"compute.batch_norm_samples={group} must divide compute.global_batch={batch}; "
            f"write {math.gcd(group, batch) if math.gcd(group, batch) > 1 else batch}"
        )
    elif micro % group and (micro != share or group % share):
        # Groups lie inside a forward pass, or whole shares of ranks form them.
        fix = f"take {batch // group} ranks (cluster.nodes x cluster.devices)"
        if share % group == 0 or group % share == 0:
            fix = f"write cluster.micro_batch={group if share % group == 0 else 'null'}"
        yield (
            f"compute.batch_norm_samples={group}: {share} pairs on a rank, {micro} of them in a forward pass, form no "
            f"such groups; {fix}"
        )


def _lengths(config: Config) -> Iterator[str]:
    """Whether the parts of a run fit in it."""
    compute, pairs = config.compute, config.data.num_samples
    if duration.parse(compute.duration).unit == "run":
        yield f"compute.duration={compute.duration} cannot be a share of itself; write samples, steps or epochs"
        return
    if pairs is None and "epoch" in compute.duration:
        return  # counted when the data's index is read

    def samples(text: str, total: int | None) -> int:
        return duration.to_samples(text, global_batch=compute.global_batch, epoch_samples=pairs, total_samples=total)

    total = samples(compute.duration, None)
    if total == 0:
        yield f"compute.duration={compute.duration} must be at least one step"
        return
    if not (pairs is None and any("epoch" in phase.start for phase in compute.phases)):
        yield from phases.order_problems(config, total, pairs)
    parts = [compute.warmup, compute.cooldown]
    if pairs is None and any("epoch" in part for part in parts):
        return
    yield from schedule_problems(config, total, pairs)
    if (keep := config.cluster.keep_every) is not None:
        often, rarely = samples(config.cluster.checkpoint_every, total), samples(keep, total)
        if not often or rarely < often:
            yield (
                f"cluster.keep_every={keep} is no longer than cluster.checkpoint_every="
                f"{config.cluster.checkpoint_every}; write a longer one, or null"
            )
    overfit = config.debug.overfit_samples
    if 0 < overfit < compute.global_batch:
        yield f"debug.overfit_samples={overfit} must be at least compute.global_batch={compute.global_batch}"


def _schedule(config: Config) -> Iterator[str]:
    """Settings of the schedule and of batch norm that nothing reads."""
    compute = config.compute
    cools = compute.schedule == "constant_cooldown"
    length = duration.parse(compute.cooldown).amount
    unread = []
    if cools and not length:
        yield "compute.schedule=constant_cooldown needs a length, and compute.cooldown is 0; write compute.cooldown=20%"
    if not cools:
        unread += ["cooldown"] if length else []
        unread += ["cooldown_power"] if compute.cooldown_power != 1 else []
    if compute.schedule == "constant" and compute.final_learning_rate:
        unread.append("final_learning_rate")
    for name in unread:
        yield (
            f"compute.{name}={getattr(compute, name)} has no effect with compute.schedule={compute.schedule}; "
            "leave it out, or write compute.schedule=constant_cooldown"
        )
    if not config.model.vision.batch_norm and compute.batch_norm_samples != ComputeConfig.batch_norm_samples:
        yield (
            f"compute.batch_norm_samples={compute.batch_norm_samples} has no effect: model={config.model.name} has no "
            "batch norm; leave it out"
        )


def _guards(compute: ComputeConfig) -> Iterator[str]:
    """Settings of the guards that nothing reads."""
    unread = []
    if compute.spike_threshold is None:
        unread += [("spike_window", "compute.spike_threshold=null"), ("spike_limit", "compute.spike_threshold=null")]
    if compute.on_divergence == "stop":
        unread += [(name, "compute.on_divergence=stop") for name in ("rollback_margin", "rollback_limit")]
    for name, why in unread:
        if (value := getattr(compute, name)) != getattr(ComputeConfig, name):
            yield f"compute.{name}={value} has no effect with {why}; leave it out"
