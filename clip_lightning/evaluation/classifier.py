"""A zero-shot classifier: one unit vector per class, from the text tower (Radford et al. 2021, section 3.1.4).

Each prompt's embedding is normalised, a class's embeddings are averaged, and the mean is normalised again. The ranks
share the classes, and the prompts' token ids are kept between runs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_lightning.distributed import all_reduce_sum, padded_share
from clip_lightning.evaluation.inference import refuse_broken
from clip_lightning.evaluation.prompts import fill_all
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import Tokenizer

# Shape suffixes: C classes, T templates, D embedding, P prompts of this rank


class ClassifierBuilder:
    """Builds the classifier of one set of classes and templates, as often as the model changes."""

    def __init__(self, name: str, classnames: Sequence[str], templates: Sequence[str], batch: int = 256) -> None:
        """Args: name: for messages. batch: prompts per forward on a rank."""
        self.name, self.classnames, self.templates, self.batch = name, list(classnames), list(templates), batch
        self._encoded_for: tuple[Tokenizer, list[int]] | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []

    def build(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> Tensor:
        """Weights [C, D], float32, unit rows, the same on every rank. To be called under `inference`.

        Raises UserError when a feature is NaN or infinite.
        """
        classes, num_counted = padded_share(len(self.classnames))
        if self._encoded_for is None or self._encoded_for[0] is not tokenizer or self._encoded_for[1] != classes:
            self._batches = self._encode(tokenizer, [self.classnames[k] for k in classes])
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
        return weights_CD

    def _encode(self, tokenizer: Tokenizer, classnames: list[str]) -> list[tuple[Tensor, Tensor]]:
        prompts = fill_all(self.templates, classnames)
        encoded = [tokenizer(prompts[k : k + self.batch]) for k in range(0, len(prompts), self.batch)]
        return [(torch.from_numpy(batch.tokens), torch.from_numpy(batch.lengths)) for batch in encoded]
