"""Whether the features of both towers still use the space they have, measured on one fixed batch of held-out pairs.

A stock callback: `callbacks=representation_health`, or among the callbacks of a plain Trainer with a `ClipModule` and a
`ContrastiveDataModule`. Zero-shot accuracy shows a collapse late, and not its kind. docs/report.md says what each value
means, and what a bad one looks like.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from clip_lightning.data.batches import Batch
from clip_lightning.errors import UserError
from clip_lightning.evaluation.inference import pair_features
from clip_lightning.records import Record
from clip_lightning.training.clip_module import ClipModule

TASK = "representation"
# Of the largest standard deviation along a principal direction; a direction with less is dead.
DEAD_BELOW = 0.01
_FEWEST = 3  # pairs


class RepresentationHealth(Callback):
    """Measures at every evaluation and at the end of training; the model and all random states are unchanged.

    In a run its numbers are records, which its loggers show; under a plain Trainer the Trainer's loggers get them.
    They are in `trainer.callback_metrics` in both, so that `early_stopping` can read representation/rankme_image.

    Attributes:
        sink: takes the records on rank 0; set by a run.
    """

    def __init__(self, pairs: int = 1024, batch: int = 256) -> None:
        """Args.

        pairs: held-out pairs, spread evenly over all; RankMe cannot exceed them, so take more than the embedding has
            dimensions.
        batch: pairs in a forward pass.
        """
        if pairs < _FEWEST or batch < 1:
            raise UserError(f"representation_health: pairs={pairs} must be {_FEWEST} or more, batch={batch} 1 or more")
        self.pairs, self.batch = pairs, batch
        self.sink: Callable[[list[Record]], None] | None = None
        self._held_out: Batch | None = None
        self._measured_at: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Measures where the run evaluates."""
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Measures at the end of a run; not where it was stopped to be resumed."""
        if pl_module.samples_seen >= pl_module.lengths.total:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, module: ClipModule) -> None:
        """To be called on every rank, since the blocks of a sharded model are gathered."""
        if self._measured_at == module.samples_seen:
            return
        self._measured_at = module.samples_seen
        images_ND, texts_ND = self._features(trainer, module)
        values = health(images_ND, texts_ND)
        names = {f"{TASK}/{what}": torch.tensor(value) for what, value in values.items()}
        trainer.callback_metrics.update(names)
        if trainer.global_rank:
            return
        if self.sink is None:
            for logger in trainer.loggers:
                logger.log_metrics({name: float(value) for name, value in names.items()}, step=trainer.global_step)
            return
        split, n, seen = "validation", len(images_ND), module.samples_seen
        self.sink(
            [
                Record(what=what, value=value, task=TASK, split=split, n=n, samples_seen=seen)
                for what, value in values.items()
            ]
        )

    def _features(self, trainer: Trainer, module: ClipModule) -> tuple[Tensor, Tensor]:
        """Unit features [N, D] of the held-out pairs that can be read, float32."""
        if self._held_out is None:
            datamodule: Any = getattr(trainer, "datamodule", None)
            if getattr(datamodule, "num_validation", 0) < _FEWEST:
                raise UserError(
                    f"representation_health needs {_FEWEST} held-out pairs or more; set data.validation.num_samples, "
                    "or leave the callback out"
                )
            self._held_out = datamodule.validation_batch(self.pairs)
        precision = module.config.compute.precision
        return pair_features(module.model, self._held_out, module.device, batch=self.batch, precision=precision)


def health(images_ND: Tensor, texts_ND: Tensor) -> dict[str, float]:
    """All values of unit features [N, D] of N pairs; computed in float64. Features that are not finite give NaN."""
    images, texts = images_ND.double(), texts_ND.double()
    if not (images.isfinite().all() and texts.isfinite().all()):
        return dict.fromkeys(NAMES, float("nan"))
    return {
        "rankme_image": rankme(images),
        "rankme_text": rankme(texts),
        "modality_gap": modality_gap(images, texts),
        "alignment": alignment(images, texts),
        "uniformity_image": uniformity(images),
        "uniformity_text": uniformity(texts),
        "dead_image": dead_directions(images),
        "dead_text": dead_directions(texts),
    }


NAMES = ("rankme_image", "rankme_text", "modality_gap", "alignment", "uniformity_image", "uniformity_text",
         "dead_image", "dead_text")  # fmt: skip


def rankme(features_ND: Tensor) -> float:
    """Effective rank, 1 to min(N, D): the exponential of the entropy of the singular values' shares of their sum.

    Garrido et al., RankMe, ICML 2023, section 3, equations 1 and 2; not centred, as there.
    """
    values = torch.linalg.svdvals(features_ND)
    shares = values / values.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def modality_gap(images_ND: Tensor, texts_ND: Tensor) -> float:
    """Distance of the mean image from the mean text feature, 0 to 2.

    Liang et al., Mind the Gap, NeurIPS 2022, section 4.2.
    """
    return float((images_ND.mean(0) - texts_ND.mean(0)).norm())


def alignment(images_ND: Tensor, texts_ND: Tensor) -> float:
    """Mean squared distance of matching unit features, 0 to 4; that of orthogonal ones is 2.

    Wang and Isola, Understanding Contrastive Representation Learning, ICML 2020, section 4.1, with exponent 2.
    """
    return float((images_ND - texts_ND).square().sum(1).mean())


def uniformity(features_ND: Tensor) -> float:
    """Logarithm of the mean Gaussian potential exp(-2 d^2) of all pairs of different rows, -8 to 0.

    Wang and Isola 2020, section 4.1, with t = 2. It is 0 where all features are one point.
    """
    return float(torch.pdist(features_ND).square().mul(-2).exp().mean().log())


def dead_directions(features_ND: Tensor) -> float:
    """Share of the principal directions along which features deviate less than `DEAD_BELOW` of the largest deviation.

    The spectrum of the centred features, as in Jing et al., Understanding Dimensional Collapse, ICLR 2022, section 3.
    N features have at most N - 1 such directions, so with N <= D the share is of N - 1.
    """
    values = torch.linalg.svdvals(features_ND - features_ND.mean(0))[: len(features_ND) - 1]
    # Where all features are one point, rounding is the only deviation.
    noise = torch.finfo(torch.float32).eps * len(features_ND) ** 0.5
    return float((values <= max(DEAD_BELOW * float(values[0]), noise)).double().mean())
