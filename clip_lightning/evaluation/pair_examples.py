"""Held-out pairs that a model retrieves best and worst: the rows of a figure."""

from collections.abc import Sequence

import torch

from clip_lightning.data.batches import Batch
from clip_lightning.evaluation.inference import cosines, pair_features, refuse_broken
from clip_lightning.evaluation.metrics import places
from clip_lightning.evaluation.predictions import NUM_SHOWN, Prediction
from clip_lightning.model.clip import CLIP


def pair_examples(
    model: CLIP,
    pairs: Batch,
    captions: Sequence[str],
    device: torch.device,
    *,
    num_each: int,
    batch: int = 256,
    precision: str = "fp32",
) -> list[Prediction]:
    """The pairs whose own caption is ranked best for their image, then those with the worst, among all captions.

    Equal captions count once, so that a pair is not wrong for finding its own text at another image. To be called on
    every rank.

    Args:
        pairs: of `ContrastiveDataModule.validation_batch`; those that cannot be read are left out.
        captions: of each pair.
        num_each: best and worst ones at most.
    Raises: UserError: features are NaN or infinite.
    """
    readable = (pairs.positions >= 0).nonzero().flatten().tolist()
    if len(readable) < 2:
        return []
    images_ND, texts_ND = pair_features(model, pairs, device, batch=batch, precision=precision)
    broken = int((~(images_ND.isfinite() & texts_ND.isfinite())).any(1).sum())
    refuse_broken(broken, len(images_ND), "data.validation")
    first_row: dict[str, int] = {}
    for row, k in enumerate(readable):
        first_row.setdefault(captions[k], row)
    distinct = list(first_row)
    labels = torch.tensor([distinct.index(captions[k]) for k in readable])
    logits_NC = (model.current_logit_scale() * cosines(images_ND, texts_ND[list(first_row.values())])).detach().cpu()
    ranks = places(logits_NC, labels)[0].tolist()
    probabilities_NC = logits_NC.softmax(1)
    order = sorted(range(len(readable)), key=lambda row: (ranks[row], -float(probabilities_NC[row, labels[row]])))
    each = min(num_each, len(order) // 2)
    chosen = [("best", row) for row in order[:each]] + [("worst", row) for row in order[::-1][:each]]
    rows = []
    for kind, row in chosen:
        label = int(labels[row])
        shown = logits_NC[row].argsort(descending=True, stable=True)[:NUM_SHOWN].tolist()
        rows.append(
            Prediction(
                task=f"{kind} of {len(readable):,} held-out pairs",
                image=pairs.images[readable[row]].permute(1, 2, 0).numpy(),
                label=distinct[label],
                rank=ranks[row] + 1,
                probability=float(probabilities_NC[row, label]),
                num_classes=len(distinct),
                prompts=[distinct[k] for k in shown],
                probabilities=probabilities_NC[row, shown].tolist(),
                correct=shown.index(label) if label in shown else None,
            )
        )
    return rows
