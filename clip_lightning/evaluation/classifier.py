"""Zero-shot classifiers: one unit vector per class, from the text tower (Radford et al. 2021, section 3.1.4).

Each prompt's embedding is normalised, a class's embeddings are averaged, and the mean is normalised again. The
prompts of all prompt sets and all tasks are embedded in one pass: equal texts once, sorted by length, shared by the
ranks. Token ids are kept between runs, and classifiers for as long as the text tower's weights are the same to the bit.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_lightning.distributed import all_reduce_max
from clip_lightning.evaluation.encode import shared_rows
from clip_lightning.evaluation.inference import cosines, refuse_broken
from clip_lightning.evaluation.prompts import fill_all
from clip_lightning.evaluation.weights_hash import weights_hash
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import Tokenizer

_CHUNK = 2**24  # numbers that are averaged at once

# Shape suffixes: B images, C classes, U classes with different prompts, T templates, D embedding, P different texts


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


class PromptSet(NamedTuple):
    """The class names and templates of one classifier; `name` is for messages."""

    name: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]


class ClassifierBuilder:
    """Builds the classifiers of any number of prompt sets, as often as the text tower changes."""

    def __init__(self, batch: int = 256) -> None:
        """Args: batch: prompts per forward on a rank."""
        self.batch = batch
        self._sets: dict[PromptSet, None] = {}
        self._built: dict[PromptSet, Classifier] = {}
        self._built_for: tuple[object, ...] | None = None
        self._texts = _Texts([])

    def add(self, name: str, classnames: Sequence[str], templates: Sequence[str]) -> PromptSet:
        """A prompt set that the next pass embeds with all others."""
        prompts = PromptSet(name, tuple(classnames), tuple(templates))
        self._sets[prompts] = None
        return prompts

    def build(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> Mapping[PromptSet, Classifier]:
        """The classifiers of all sets, the same on every rank. Must be called under `inference`, on every rank.

        A further call is answered from memory while the text tower's weights, the tokenizer, the precision and the sets
        are the same. Raises UserError when a feature is NaN or infinite.
        """
        precision = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        weights = weights_hash([getattr(model, "text", model)])
        wanted = weights, tokenizer, precision, device, tuple(self._sets)
        if self._built_for is None or self._built_for != wanted:
            self._built_for = None
            self._built = self._build_all(model, tokenizer, device)
            self._built_for = wanted
        return self._built

    def _build_all(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> dict[PromptSet, Classifier]:
        texts = sorted({t for s in self._sets for t in fill_all(s.templates, s.classnames)}, key=lambda t: (len(t), t))
        if self._texts.texts != texts:
            self._texts = _Texts(texts)
        features_PD, same_P = self._texts.embed(model, tokenizer, device, self.batch)
        place = {text: k for k, text in enumerate(texts)}
        built = {}
        for prompts in self._sets:
            rows = [place[text] for text in fill_all(prompts.templates, prompts.classnames)]
            rows_CT = same_P[np.array(rows)].reshape(len(prompts.classnames), len(prompts.templates))
            built[prompts] = _classifier(prompts.name, features_PD, rows_CT)
        return built


def _classifier(name: str, features_PD: Tensor, rows_CT: np.ndarray) -> Classifier:
    """The classifier whose classes have these rows of text features."""
    first_U, vector_C = np.unique(rows_CT, axis=0, return_index=True, return_inverse=True)[1:]
    is_distinct = len(first_U) == len(rows_CT)
    kept = np.arange(len(rows_CT)) if is_distinct else first_U
    device = features_PD.device
    rows_UT = torch.from_numpy(rows_CT[kept]).to(device)
    chunk = max(1, _CHUNK // (rows_UT.shape[1] * features_PD.shape[1]))
    weights_UD = normalize(torch.cat([features_PD[rows].mean(1) for rows in rows_UT.split(chunk)]), dim=-1)
    broken = (~weights_UD.isfinite()).any(1).cpu().numpy()
    num_broken = int(broken.sum() if is_distinct else broken[vector_C.ravel()].sum())
    refuse_broken(num_broken, len(rows_CT), f"{name}, class prompts")
    return Classifier(weights_UD, None if is_distinct else torch.from_numpy(vector_C.ravel()).to(device))


class _Texts:
    """Different texts in rising length, and the token ids of this rank's batches."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self._encoded_for: tuple[Tokenizer, int] | None = None
        self._batches: dict[int, tuple[Tensor, Tensor]] = {}
        self._same_P = np.arange(len(texts))

    def embed(self, model: CLIP, tokenizer: Tokenizer, device: torch.device, batch: int) -> tuple[Tensor, np.ndarray]:
        """Unit features [P, D] of all texts, and of each text the first one that has its token ids, int64 [P]."""
        if is_new := self._encoded_for is None or self._encoded_for != (tokenizer, batch):
            self._batches = {}

        def encode(batches: Iterator[range]) -> Iterator[Tensor]:
            for chosen in batches:
                if chosen.start not in self._batches:
                    encoded = tokenizer(self.texts[chosen.start : chosen.stop])
                    self._batches[chosen.start] = torch.from_numpy(encoded.tokens), torch.from_numpy(encoded.lengths)
                tokens, lengths = self._batches[chosen.start]
                yield model.encode_text(tokens.to(device), lengths.to(device))

        features_PD = shared_rows(len(self.texts), batch, encode)
        if is_new:
            self._same_P = self._same_ids(device)
            self._encoded_for = tokenizer, batch
        return features_PD, self._same_P

    def _same_ids(self, device: torch.device) -> np.ndarray:
        """Compares the token ids of all ranks by 63 bits of their SHA-256."""
        hashes_P = torch.zeros(len(self.texts), dtype=torch.int64)
        for start, (tokens, lengths) in self._batches.items():
            ids = [row[:n].tobytes() for row, n in zip(tokens.numpy(), lengths.tolist(), strict=True)]
            hashes = [int.from_bytes(hashlib.sha256(row).digest()[:8], "little") >> 1 for row in ids]
            hashes_P[start : start + len(hashes)] = torch.tensor(hashes)
        first, inverse = np.unique(
            all_reduce_max(hashes_P.to(device)).cpu().numpy(), return_index=True, return_inverse=True
        )[1:]
        return first[inverse.ravel()]
