"""Every named model has the published number of parameters and of operations, and its preset's header says them."""

import re
from functools import cache

import pytest

from clip_lightning.config import compose
from clip_lightning.model import named
from clip_lightning.model.flops import count_flops
from clip_lightning.model.parameters import PUBLISHED, count_parameters

# M parameters of the image tower and of the text tower (with projections; the rest is the scale), and forward GFLOPs
# of an image and of a text. Source: open_clip, docs/model_profile.csv (columns image_mparams, text_mparams,
# image_gflops, text_gflops), which holds OpenAI's, LAION's and SigLIP's models.
TABLE = {
    "rn50": (38.32, 63.69, 12.22, 5.96),
    "rn101": (56.26, 63.43, 19.54, 5.96),
    "rn50x4": (87.14, 91.16, 42.56, 9.27),
    "rn50x16": (167.33, 123.65, 149.39, 13.30),
    "rn50x64": (420.38, 202.88, 529.11, 23.55),
    "vit_b32": (87.85, 63.43, 8.82, 5.96),
    "vit_b16": (86.19, 63.43, 35.13, 5.96),
    "vit_l14": (303.97, 123.65, 162.03, 13.30),
    "vit_l14_336": (304.29, 123.65, 381.92, 13.30),
    "vit_s32": (22.64, 40.44, 2.29, 3.38),
    "vit_m32": (39.69, 63.43, 3.99, 5.96),
    "vit_s16": (21.81, 40.44, 9.20, 3.38),
    "vit_m16": (38.59, 63.43, 15.98, 5.96),
    "vit_h14": (632.08, 354.03, 334.59, 47.09),
    "vit_g14": (1012.65, 354.03, 534.06, 47.09),
    "vit_bigg14": (1844.91, 694.66, 967.50, 97.86),
    "siglip_b16": (92.88, 110.27, 35.42, 11.02),
    "siglip_so400m": (427.68, 449.68, 220.35, 13.19),
}

load = cache(named.load)


def test_table_names_every_model_that_was_published() -> None:
    ours = {
        "tiny",
        "tiny_eighth",
        "tiny_quarter",
        "tiny_three_eighths",
        "tiny_half",
        "tiny_three_quarters",
        "tiny_one_and_half",
        "tiny_double",
    }
    assert set(TABLE) == set(PUBLISHED) == set(named.names()) - ours


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_model_has_the_published_size(name: str) -> None:
    total, image, text = (round(number / 1e6, 2) for number in count_parameters(*load(name)))
    assert (image, text) == TABLE[name][:2]
    assert total == PUBLISHED[name]


@pytest.mark.ci
@pytest.mark.parametrize("name", TABLE)
def test_model_has_the_published_operations(name: str) -> None:
    flops = count_flops(*load(name))
    assert (round(flops.image / 1e9, 2), round(flops.text / 1e9, 2)) == TABLE[name][2:]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_headers_say_the_sizes(name: str) -> None:
    def header(file: str) -> list[float]:
        text = (compose.CONF / "model" / file).read_text(encoding="utf-8")
        found = re.search(r"^# size: ([\d,.]+) M parameters.*; forward ([\d,.]+) GFLOPs", text, re.MULTILINE)
        assert found is not None, f"{file} has no line of sizes"
        return [float(number.replace(",", "")) for number in found.groups()]

    model, _ = load(name)
    image, text, image_gflops, text_gflops = TABLE[name]
    assert header(f"{name}.yaml") == pytest.approx([PUBLISHED[name], image_gflops + text_gflops], abs=0.011)
    assert header(f"vision/{model.vision.name}.yaml") == [image, image_gflops]
    if name != "rn50":  # its text tower is projected to 1,024 and not to 512
        assert header(f"text/{model.text.name}.yaml") == [text, text_gflops]
