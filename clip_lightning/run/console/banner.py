"""The banner of a run: what is printed before the first step. Values in, lines out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from clip_lightning.config import compose, identity
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.formatting import count, percent
from clip_lightning.run.plan.preflight import Plan

# Where and whether to run, not what.
_NO_SETTINGS = ("runs", "fresh", "dry_run")


@dataclass(frozen=True)
class BannerFacts:
    """What a banner shows besides the config and the preflight.

    Attributes:
        state: new, or "resumed at 51.2k samples".
        device: name of the device.
        seconds: that checks took.
        argv: the arguments of the command.
    """

    state: str
    device: str
    seconds: float
    argv: Sequence[str]


def banner(config: Config, found: Plan, facts: BannerFacts) -> str:
    """The lines of the banner."""
    lines = [
        f"state    {facts.state}",
        f"science  {_science(config, found)}",
        *_phases(found),
        f"hardware {_hardware(config, found, facts)}",
        f"changed  {_changed(config, facts.argv)}",
        f"checks   config, {found.num_checks} preflight: passed in {facts.seconds:.1f} s",
    ]
    lines += [f"data     {note}" for note in found.data_notes]
    return "\n".join(lines)


def changed(config: Config, argv: Sequence[str]) -> list[str]:
    """What the settings of the command line changed against the chosen options: "key before -> after"."""
    if "--frozen" in argv:
        return []
    options = [word for word in argv if word.startswith("-") or "." not in word.partition("=")[0]]
    if len(options) == len(argv):
        return []
    try:
        before = compose.load("train", options, check=False)
    except UserError:  # the options alone may leave a key open that the settings fill
        return [identity.redacted(word) for word in argv if word not in options]
    lines = identity.diff(asdict(before), asdict(config))
    return [identity.redacted(line.replace(":", "", 1)) for line in lines if line.partition(":")[0] not in _NO_SETTINGS]


def _science(config: Config, found: Plan) -> str:
    compute, total = config.compute, found.lengths.total
    pairs = found.epoch_samples
    epochs = total / pairs
    parts = [
        f"{identity.model_name(config)} {count(found.parameters)} parameters",
        f"{config.data.name} {count(pairs)} pairs",
        f"{count(total)} samples = {epochs:.3g} epochs = {total // compute.global_batch:,} steps x "
        f"{compute.global_batch:,}",
        config.loss.name,
        compute.precision,
        f"seed {compute.seed}",
    ]
    return " | ".join(parts)


def _phases(found: Plan) -> list[str]:
    """The line of phases; none where the run has one."""
    if len(found.phases) == 1:
        return []
    shown = []
    for phase in found.phases:
        dropped = f", {percent(phase.patch_dropout, 0)} of patches dropped" if phase.patch_dropout else ""
        start = f"from {count(phase.start)} ({percent(phase.start / found.lengths.total)})" if phase.start else "from 0"
        shown.append(f"{start}: {phase.image_size} pixels, {phase.context_length} tokens{dropped}")
    return ["phases   " + " | ".join(shown)]


def _hardware(config: Config, found: Plan, facts: BannerFacts) -> str:
    cluster = config.cluster
    ranks = cluster.nodes * cluster.devices
    share = config.compute.global_batch // ranks
    micro = min(cluster.micro_batch or share, share)
    nodes = f"{cluster.nodes} nodes x " if cluster.nodes > 1 else ""
    processes = f"{cluster.devices} process{'es' * (cluster.devices > 1)}"
    return (
        f"{nodes}{processes} on {facts.device} | micro-batch {micro:,} x {-(-share // micro)} | {cluster.strategy} | "
        f"up to {found.total_flops:.2g} FLOPs, {found.memory.shown()}/process"
    )


def _changed(config: Config, argv: Sequence[str]) -> str:
    lines = [f"{line} (command line)" for line in changed(config, argv)] or ["nothing"]
    lines[0] += f"{' ' * max(2, 60 - len(lines[0]))}full config: config.yaml"
    return "\n         ".join(lines)
