"""Which arguments of Lightning's Trainer a ClipModule cannot be trained with."""

from collections.abc import Iterator

from lightning.pytorch import Trainer
from torch.utils.data import DistributedSampler

from clip_lightning import compat
from clip_lightning.config.schema import Config


def trainer_problems(trainer: Trainer, config: Config) -> Iterator[str]:
    """A sentence for each argument that would break an invariant of training; none in a run of this project."""
    if trainer.precision != "32-true":
        yield f"Trainer(precision={trainer.precision!r}) is not used: leave it out, and set compute.precision"
    if trainer.accumulate_grad_batches != 1:
        yield (
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) would change the contrastive loss: "
            "leave it out, and set cluster.micro_batch, which gives the gradient of the whole batch"
        )
    if trainer.gradient_clip_val is not None:
        yield f"Trainer(gradient_clip_val={trainer.gradient_clip_val}): leave it out, and set compute.gradient_clip"
    num_ranks = config.cluster.nodes * config.cluster.devices
    if (found := trainer.num_nodes * trainer.num_devices) != num_ranks:
        yield f"Trainer has {found} processes and the config {num_ranks}: set cluster=ddp cluster.devices={found}"
    loader = compat.training_data(trainer)
    if isinstance(getattr(loader, "sampler", None), DistributedSampler):
        yield "a DistributedSampler would change the order of the data: pass a ContrastiveDataModule to fit instead"
