"""A zero-shot classifier: one unit vector per class, from the text tower (Radford et al. 2021, section 3.1.4).

Each prompt's embedding is normalised, a class's embeddings are averaged, and the mean is normalised again. The ranks
share the classes, and the prompts' token ids are kept between runs.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_lightning.distributed import all_reduce_sum, padded_share
from clip_lightning.evaluation.inference import cosines, refuse_broken
from clip_lightning.evaluation.prompts import fill_all
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import TokenBatch, Tokenizer

# Shape suffixes: B images, C classes, U classes with different prompts, T templates, D embedding, P prompts of a rank


class Classifier(NamedTuple):
    """Unit vectors, and the one that each class has.

    Classes whose prompts have the same token ids share a vector, so that their logits are equal to the bit wherever
    they are in the list. Attributes: `weights` float32 [U, D]; `vector` int64 [C], None where U = C.
    """

    weights: Tensor
    vector: Tensor | None

    def cosines(self, features_BD: Tensor) -> Tensor:
        """Cosines [B, C] of unit features [B, D] with the classes, float32."""
        cosines_BU = cosines(features_BD, self.weights)
        return cosines_BU if self.vector is None else cosines_BU[:, self.vector]


class ClassifierBuilder:
    """Builds the classifier of one set of classes and templates, as often as the model changes."""

    def __init__(self, name: str, classnames: Sequence[str], templates: Sequence[str], batch: int = 256) -> None:
        """Args: name: for messages. batch: prompts per forward on a rank."""
        self.name, self.classnames, self.templates, self.batch = name, list(classnames), list(templates), batch
        self._encoded_for: tuple[Tokenizer, list[int]] | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._hashes_C = torch.empty(0, dtype=torch.int64)

    def build(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> Classifier:
        """The classifier, the same on every rank. Must be called under `inference`.

        Raises UserError when a feature is NaN or infinite.
        """
        classes, num_counted = padded_share(len(self.classnames))
        if self._encoded_for is None or self._encoded_for[0] is not tokenizer or self._encoded_for[1] != classes:
            hashes = self._encode(tokenizer, [self.classnames[k] for k in classes])
            self._hashes_C = torch.zeros(len(self.classnames), dtype=torch.int64, device=device)
            self._hashes_C[classes[:num_counted]] = torch.tensor(hashes[:num_counted], dtype=torch.int64, device=device)
            all_reduce_sum(self._hashes_C)
            self._encoded_for = tokenizer, classes
        features_PD = torch.cat(
            [model.encode_text(tokens.to(device), lengths.to(device)) for tokens, lengths in self._batches]
        )
        means = normalize(features_PD.unflatten(0, (-1, len(self.templates))).mean(1), dim=-1)
        weights_CD = means.new_zeros(len(self.classnames), means.shape[1])
        weights_CD[classes[:num_counted]] = means[:num_counted]
        all_reduce_sum(weights_CD)
        broken = int((~weights_CD.isfinite()).any(1).sum())
        refuse_broken(broken, len(self.classnames), f"{self.name}, class prompts")
        first_U, vector_C = np.unique(self._hashes_C.cpu().numpy(), return_index=True, return_inverse=True)[1:]
        if len(first_U) == len(self.classnames):
            return Classifier(weights_CD, None)
        return Classifier(weights_CD[torch.from_numpy(first_U).to(device)], torch.from_numpy(vector_C).to(device))

    def _encode(self, tokenizer: Tokenizer, classnames: list[str]) -> list[int]:
        """Keeps the token ids of the prompts; returns a hash of each class's ids."""
        prompts = fill_all(self.templates, classnames)
        encoded = [tokenizer(prompts[k : k + self.batch]) for k in range(0, len(prompts), self.batch)]
        self._batches = [(torch.from_numpy(batch.tokens), torch.from_numpy(batch.lengths)) for batch in encoded]
        rows = [row for batch in encoded for row in _rows(batch)]
        per_class = [rows[k : k + len(self.templates)] for k in range(0, len(rows), len(self.templates))]
        return [_hash(ids) for ids in per_class]


def _rows(batch: TokenBatch) -> list[bytes]:
    """The token ids of each text without padding."""
    return [row[:length].tobytes() for row, length in zip(batch.tokens, batch.lengths, strict=True)]


def _hash(texts: Sequence[bytes]) -> int:
    """63 bits of the SHA-256 of token ids, text after text."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest()[:8], "little") >> 1
