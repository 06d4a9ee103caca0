"""Recall of images with several captions each, exactly, in memory that does not grow with the number of scores.

Radford et al. 2021, Table 13 (as Karpathy and Fei-Fei 2015): an image counts as found if any of its captions is among
the best k captions, a caption if its image is among the best k images. Scores are made in blocks of queries against
all candidates; the ranks share the blocks. Equal scores share a place (see `metrics`): where t candidates share the
best score that a partner has, o of them partners, and f of their places are within the best k, the query counts with
the probability 1 - C(t - o, f) / C(t, f) that a partner takes one of them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from clip_lightning.distributed import rank_and_world
from clip_lightning.evaluation.counts import UNIT, hits_within
from clip_lightning.evaluation.inference import cosines

BLOCK = {"cpu": 1 << 22, "cuda": 1 << 26}  # scores of a block

# Shape suffixes: N images, M captions, U different captions, D embedding; Q queries, K candidates, P partners, k depths


def hits_of_any(depth: int, ahead_Q: Tensor, tied_Q: Tensor, own_Q: Tensor) -> Tensor:
    """Probability in units of 1 / UNIT that a partner is among the best `depth`: int64 [Q].

    Args: ahead_Q, tied_Q, own_Q: int64, candidates with a larger score than the best partner, with the same, and those
        of the latter that are partners.
    """
    one_Q = hits_within(depth, ahead_Q, tied_Q)
    if (own_Q <= 1).all():
        return one_Q
    free_Q = torch.minimum((depth - ahead_Q).clamp(min=0), tied_Q)
    missed_Q = torch.ones(len(own_Q), dtype=torch.float64, device=own_Q.device)
    for place in range(depth):
        left_Q = (tied_Q - place).clamp(min=1)
        missed_Q *= torch.where(place < free_Q, (left_Q - own_Q).clamp(min=0) / left_Q, 1.0)
    any_Q = UNIT - (UNIT * missed_Q).round().long()
    return torch.where(own_Q > 1, any_Q, one_Q)


class CaptionRecall(Metric):
    """Recall at several depths, of images by captions and of captions by images.

    Attributes:
        queries: int64 [2], images and captions counted.
        hits: int64 [2, k] in units of 1 / UNIT: image to text, text to image, at each depth.
    """

    higher_is_better = True
    full_state_update = False
    queries: Tensor
    hits: Tensor

    def __init__(self, depths: tuple[int, ...]) -> None:
        """Args: depths: of the best candidates, among which a partner counts as found."""
        super().__init__()
        self.depths = depths
        self.add_state("queries", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(2, len(depths), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, direction: int, scores_QK: Tensor, partners_QP: Tensor) -> None:
        """Counts queries of a direction.

        Args:
            direction: 0 for images that look for captions, 1 for captions that look for images.
            scores_QK: float32.
            partners_QP: int64, the candidates that are partners of each query; -1 where a query has fewer.
        """
        own_QP = scores_QK.gather(1, partners_QP.clamp(min=0)).masked_fill(partners_QP < 0, -math.inf)
        best_Q1 = own_QP.amax(1, keepdim=True)
        ahead_Q, tied_Q = _places(scores_QK, best_Q1, max(self.depths))
        own_Q = (own_QP == best_Q1).sum(1)
        found = [hits_of_any(depth, ahead_Q, tied_Q, own_Q).sum() for depth in self.depths]
        self.hits[direction] += torch.stack(found)
        self.queries[direction] += len(scores_QK)

    def compute(self) -> dict[str, Tensor]:
        """`image_to_text_recall_at_K`, `text_to_image_recall_at_K`, and `recall_at_1`, the mean of both: float64."""
        shares = self.hits.double() / UNIT / self.queries[:, None]
        found = {"recall_at_1": shares[:, self.depths.index(1)].mean()}
        for direction, row in zip(("image_to_text", "text_to_image"), shares, strict=True):
            found |= {f"{direction}_recall_at_{depth}": share for depth, share in zip(self.depths, row, strict=True)}
        return found

    def synced(self) -> tuple[list[int], list[list[int]]]:
        """Queries by direction, and hits in units of 1 / UNIT by direction and depth, of all ranks."""
        with self.sync_context():
            return self.queries.tolist(), self.hits.tolist()


def _places(scores_QK: Tensor, best_Q1: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Candidates with a larger score than the best partner, and with the same: int64 [Q], [Q].

    Rows with `depth` larger scores or more count no hit, and only so much is exact of them. The best scores suffice for
    most rows, and finding them takes a fraction of the time of comparing all; all are compared where a tie extends
    beyond them.
    """
    top_Qk = scores_QK.topk(min(depth + 1, scores_QK.shape[1]), dim=1).values
    ahead_Q, tied_Q = (top_Qk > best_Q1).sum(1), (top_Qk == best_Q1).sum(1)
    if top_Qk.shape[1] < scores_QK.shape[1]:
        beyond = ((top_Qk[:, -1:] == best_Q1)[:, 0] & (ahead_Q < depth)).nonzero()[:, 0]
        if len(beyond):
            tied_Q[beyond] = (scores_QK[beyond] == best_Q1[beyond]).sum(1)
    return ahead_Q, tied_Q


def count_recall(
    recall: CaptionRecall,
    images_ND: Tensor,
    texts_UD: Tensor,
    row_M: Tensor,
    owner_M: Tensor,
    block: int | None = None,
) -> None:
    """Counts this rank's blocks of both directions.

    The blocks are those of one process, so that every score is computed in the same matrix product and equal to the bit
    whatever the number of ranks.

    Args:
        images_ND: unit features of N images.
        texts_UD: of the U different texts; two captions with equal texts have equal scores.
        row_M: int64, the text of each of M captions.
        owner_M: int64, the image of each caption; every image has one or more.
        block: scores of a block; by default what suits the device.
    """
    block = block or BLOCK["cuda" if images_ND.is_cuda else "cpu"]
    num_images, num_captions = len(images_ND), len(owner_M)
    partners_NP = partners(owner_M, num_images)
    has_repeats = len(texts_UD) < num_captions
    candidates_UD = texts_UD if has_repeats else texts_UD[row_M]
    for rows in _share(num_images, max(1, block // num_captions)):
        scores_QU = cosines(images_ND[rows], candidates_UD)
        recall.update(0, scores_QU[:, row_M] if has_repeats else scores_QU, partners_NP[rows])
    for rows in _share(num_captions, max(1, block // num_images)):
        recall.update(1, cosines(texts_UD[row_M[rows]], images_ND), owner_M[rows, None])


def partners(owner_M: Tensor, num_images: int) -> Tensor:
    """The captions of each image, int64 [N, P], -1 where it has fewer than P."""
    counts_N = torch.bincount(owner_M, minlength=num_images)
    order_M = owner_M.argsort(stable=True)
    starts_N = counts_N.cumsum(0) - counts_N
    place_M = torch.arange(len(owner_M), device=owner_M.device) - starts_N[owner_M[order_M]]
    found = owner_M.new_full((num_images, int(counts_N.max())), -1)
    found[owner_M[order_M], place_M] = order_M
    return found


def _share(num: int, size: int) -> list[slice]:
    """This rank's blocks of so many queries."""
    rank, world = rank_and_world()
    return [slice(start, start + size) for start in range(0, num, size)][rank::world]


def chance_of_any(num_partners: Sequence[int] | np.ndarray, num_candidates: int, depth: int) -> float:
    """Recall of guessing: mean over queries of the probability that one of its partners is among any `depth`."""
    counts, queries = np.unique(np.asarray(num_partners), return_counts=True)
    missed = [
        math.comb(num_candidates - count, depth) / math.comb(num_candidates, depth) if depth < num_candidates else 0.0
        for count in counts.tolist()
    ]
    return float(1 - np.average(missed, weights=queries))
