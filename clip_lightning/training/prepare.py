"""What is done to a model before it is trained, in order."""

from dataclasses import dataclass

from clip_lightning.config.schema import Config
from clip_lightning.model.clip import CLIP
from clip_lightning.parallel import activation_checkpointing, compile
from clip_lightning.training import batch_norm, length_groups, sample_randomness
from clip_lightning.training.batch_norm import BatchStatistics
from clip_lightning.training.locked import LockedTowers
from clip_lightning.training.step_context import CurrentStep


@dataclass(frozen=True)
class Prepared:
    """What a training step needs of a prepared model.

    Attributes:
        step: takes the context of each forward pass.
        batch_statistics: of the layers of batch norm.
        locked: the locked towers.
        has_length_groups: whether texts may be encoded in groups by length.
    """

    step: CurrentStep
    batch_statistics: BatchStatistics
    locked: LockedTowers
    has_length_groups: bool


def prepare_model(model: CLIP, config: Config, micro_batch: int | None) -> Prepared:
    """Changes a model in place for training; its parameters and the names in its state dict stay as they are.

    `ClipModule.configure_model` shards it after this, blocks first and the root last: `fully_shard` gathers the weights
    around a block as it is then, and what the root does not hold would never be reduced.

    Args:
        micro_batch: pairs in a forward pass; None: a rank's whole share.

    Raises:
        UserError: batch norm cannot form its groups, or the activation checkpointing is not known.
    """
    share = config.compute.global_batch // (config.cluster.nodes * config.cluster.devices)
    group = min(config.compute.batch_norm_samples, config.compute.global_batch)
    step = CurrentStep()
    # Patch dropout and dropout by sample come first: length groups depend on which layers draw at random.
    sample_randomness.apply(model, step)
    # Batch norm changes the classes of layers, which blocks that are compiled or checkpointed have to see.
    statistics = batch_norm.apply(model, group=group, share=share, micro_batch=micro_batch or share)
    # Length groups are inside the locked part of a tower: its features are kept in the order of the batch.
    grouped = length_groups.apply(model.text, config.model.text, step)
    # Locked towers are outside of everything that computes their features.
    locked = LockedTowers(model, step)
    # Activation checkpointing wraps the forward pass of a block, which compilation then takes as one frame.
    activation_checkpointing.apply(model, config.cluster.activation_checkpointing)
    # Compilation is last, of blocks whose forward pass does not change any more.
    if config.cluster.compile:
        compile.apply(model)
    return Prepared(step, statistics, locked, grouped)
