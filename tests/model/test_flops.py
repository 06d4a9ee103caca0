"""What a text costs by its number of tokens is what is counted at that length."""

from dataclasses import replace

import pytest
from torch import Tensor, nn

from clip_lightning.config import compose
from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import ModelConfig, TextConfig
from clip_lightning.model.flops import count_flops, count_text
from clip_lightning.model.named import load

pytestmark = pytest.mark.slow


def model_of(*settings: str) -> ModelConfig:
    return compose.load("train", ["data=scenes", *settings], check=False).model


@pytest.mark.ci
@pytest.mark.parametrize(
    "settings",
    [
        ["model=tiny"],
        ["model=vit_b32"],
        ["model=pair", "model/text=distilbert"],
        ["model=pair", "model/text=t5_base", "model.text.projection=mlp"],
        ["model=pair", "model/text=modernbert_base"],
    ],
    ids=lambda settings: settings[-1],
)
def test_a_texts_operations_are_those_counted_at_its_length(settings: list[str]) -> None:
    model = model_of(*settings, *["model/vision=tiny"] * (settings != ["model=tiny"]))
    found = count_text(model)
    assert found is not None
    for num in (7, 31):
        counted = count_flops(model, load("tiny")[1], Phase(0, model.vision.image_size, num, 0.0)).text
        assert found.total(1, num, num**2) == pytest.approx(counted, rel=1e-12)


class Own(nn.Module):
    """Pads texts to a multiple of `window`; takes only those of the context where it is 0."""

    num_features = 8

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.embedding, self.layer = window, nn.Embedding(64, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        if self.window == 0 and tokens.shape[1] != 77:
            raise ValueError("needs the whole context")
        padding = -tokens.shape[1] % self.window if self.window else 0
        return self.layer(self.embedding(nn.functional.pad(tokens, (0, padding)))).mean(1)


@pytest.mark.parametrize(("window", "is_counted"), [(1, True), (16, False), (0, False)])
def test_an_own_tower_is_counted_where_it_can_be(window: int, is_counted: bool) -> None:
    text = TextConfig(name="own", _target_=f"{__name__}.Own", config={"window": window})
    assert (count_text(replace(load("tiny")[0], text=text)) is not None) == is_counted


def test_a_padded_text_costs_the_full_context() -> None:
    assert count_text(model_of("model=siglip_b16")) is None
