"""Zero-shot classifiers: one unit vector per class, from the text tower (Radford et al. 2021, section 3.1.4).

Each prompt's embedding is normalised, a class's embeddings are averaged, and the mean is normalised again. The
prompts of all prompt sets and all tasks are embedded in one pass: equal texts once, sorted by length, shared by the
ranks. Token ids are kept between runs, and classifiers for as long as the text tower's weights are the same to the bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_lightning.evaluation.encode import shared_rows
from clip_lightning.evaluation.inference import cosines, refuse_broken
from clip_lightning.evaluation.prompts import fill_all
from clip_lightning.evaluation.weights_hash import weights_hash
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import Tokenizer

_CHUNK = 2**24  # numbers that are averaged at once
_TOKENISED = 1024  # texts that are tokenised at once

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
        self._texts: _Texts | None = None

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
        texts = list(dict.fromkeys(text for one in self._sets for text in fill_all(one.templates, one.classnames)))
        if self._texts is None or self._texts.texts != texts or self._texts.tokenizer is not tokenizer:
            self._texts = _Texts(texts, tokenizer)
        features_PD = self._texts.embed(model, device, self.batch)
        built = {}
        for prompts in self._sets:
            rows = [self._texts.row[text] for text in fill_all(prompts.templates, prompts.classnames)]
            rows_CT = np.array(rows).reshape(len(prompts.classnames), len(prompts.templates))
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
    """Texts as token ids, equal ids once.

    Attributes:
        row: of each text, which of the different ids it has.
    """

    def __init__(self, texts: list[str], tokenizer: Tokenizer) -> None:
        self.texts, self.tokenizer = texts, tokenizer
        # Towers that were trained with texts padded to the context need them so; for all others padding is lost time.
        self._pads, self._pad_id = getattr(tokenizer, "pad_to_context", False), getattr(tokenizer, "pad_id", 0)
        ids: list[np.ndarray] = []
        num_tokens: list[int] = []
        for start in range(0, len(texts), _TOKENISED):
            tokens, lengths, _ = tokenizer(texts[start : start + _TOKENISED])
            ids += [row if self._pads else row[:length] for row, length in zip(tokens, lengths, strict=True)]
            num_tokens += lengths.tolist()
        place: dict[bytes, int] = {}
        same = np.array([place.setdefault(row.tobytes(), k) for k, row in enumerate(ids)])
        # In rising length, so that texts of about one length share a batch, which is as wide as its longest text.
        different = sorted(place.values(), key=lambda k: (num_tokens[k], k))
        rank = np.empty(len(texts), dtype=np.int64)
        rank[different] = np.arange(len(different))
        self.row = dict(zip(texts, rank[same].tolist(), strict=True))
        self._ids = [ids[k] for k in different]
        self._lengths = np.array([num_tokens[k] for k in different], dtype=np.int64)

    def embed(self, model: CLIP, device: torch.device, batch: int) -> Tensor:
        """Unit features [P, D] of the different ids, on every rank."""

        def encode(batches: Iterator[range]) -> Iterator[Tensor]:
            for chosen in batches:
                rows = self._ids[chosen.start : chosen.stop]
                tokens = np.full((len(rows), max(map(len, rows))), self._pad_id, dtype=np.int64)
                for row, target in zip(rows, tokens, strict=True):
                    target[: len(row)] = row
                lengths = torch.from_numpy(self._lengths[chosen.start : chosen.stop])
                yield model.encode_text(torch.from_numpy(tokens).to(device), lengths.to(device))

        return shared_rows(len(self._ids), batch, encode)
