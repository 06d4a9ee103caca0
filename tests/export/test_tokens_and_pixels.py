"""Pixels and tokens of an export equal ours, in every library, with each difference explained."""

import io
import random
from pathlib import Path

import ftfy
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    SiglipImageProcessor,
    SiglipImageProcessorPil,
)

from clip_lightning.config.schema import VisionConfig
from clip_lightning.data.images.decode import Resize, decode_eval
from clip_lightning.export import to_transformers, tokenizers
from clip_lightning.tokenizer.paper import clean_paper
from tests.export.models import KINDS, opened

SIZE = 96
BOXES = [(0, 0, 640, 427), (0, 0, 500, 375), (100, 0, 400, 427), (10, 20, 234, 244), (0, 0, 640, 101)]


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """scikit-learn's two photographs, whole and cut to other shapes, as JPEG."""
    found = []
    for image in load_sample_images().images:
        for box in BOXES:
            stream = io.BytesIO()
            Image.fromarray(image).crop(box).save(stream, "JPEG", quality=92)
            found.append(stream.getvalue())
    return found


def largest(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    return int((ours.int() - theirs.round().int()).abs().max())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_pixels_are_open_clips_within_a_level(mode: str, interpolation: str, photographs: list[bytes]) -> None:
    settings = {"resize_mode": mode, "interpolation": interpolation}
    peer = open_clip.image_transform(SIZE, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), **settings)
    differences = []
    for content in photographs:
        ours = decode_eval(content, SIZE, resize=Resize(mode, interpolation))
        differences.append(largest(ours, peer(Image.open(io.BytesIO(content))) * 255))
    print(f"| open_clip | {mode} | {interpolation} | {max(differences)} |")
    assert max(differences) <= 1


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pixels_are_transformers_within_a_level(mode: str, photographs: list[bytes]) -> None:
    """Its two processors: torchvision's and Pillow's. Of odd margins the centre is a pixel apart: left out."""
    vision = VisionConfig(name="any", image_size=SIZE, mean=[0.0] * 3, std=[1.0] * 3, resize=mode)
    exported = to_transformers.image_processor(vision)
    classes = {
        "shortest": (CLIPImageProcessor, CLIPImageProcessorPil),
        "squash": (SiglipImageProcessor, SiglipImageProcessorPil),
    }[mode]
    assert type(exported) is classes[0]
    for processor in (exported, classes[1](**exported.to_dict())):
        differences = []
        for content in photographs:
            picture = Image.open(io.BytesIO(content))
            long, short = max(picture.size), min(picture.size)
            if mode == "shortest" and (SIZE * long // short - SIZE) % 2:
                continue
            theirs = processor(picture, return_tensors="pt")["pixel_values"][0] * 255
            differences.append(largest(decode_eval(content, SIZE, resize=Resize(mode)), theirs))
        print(f"| {type(processor).__name__} | {mode} | bicubic | {max(differences)} | {len(differences)} images |")
        assert len(differences) >= 4
        assert max(differences) <= 1


def varied(num: int) -> list[str]:
    """Strings of words, emoji, HTML entities, accents, CJK, digits, punctuation, control characters; some over-long."""
    draw = random.Random(5)
    pieces = ["a photo", "Zürich", "naïve café", "it's", "2024", "3.14", "!!", "?!", "#tag", "@me", "«quote»", "don’t"]
    pieces += [
        "😀",
        "👩‍🚀",
        "🇨🇭",
        "日本語",
        "汉字",
        "한국어",
        "русский",
        "עברית",
        "ไทย",
        "Ａ",
        "ﬁ",
        "ß",
        "İstanbul",
        "ΣΊΣΥΦΟΣ",
    ]
    pieces += [
        "&amp;",
        "&lt;b&gt;",
        "&#39;",
        "&eacute;",
        "\t",
        "\x00",
        "\x1f",
        "\u200b",
        "\u00a0",
        "e\u0301",
        "Ã©",
        "_",
        "--",
    ]
    pieces += [
        "<|endoftext|>",
        "<|startoftext|>",
        "http://a.b/c?d=e",
        "ALL CAPS",
        "MixedCase",
        "'",
        '"',
        "\\",
        "/",
        "~",
        "£5",
    ]
    strings = []
    for _ in range(num):
        words = draw.choices(pieces, k=draw.choice([1, 2, 4, 8, 40]))
        strings.append(draw.choice([" ", "", " "]).join(words))
    return strings


@pytest.mark.slow
def test_tokens_are_simple_tokenizers_and_transformers(tmp_path: Path) -> None:
    """10,000 strings. SimpleTokenizer's are equal; transformers repairs no Unicode and reads special tokens."""
    ours = opened(KINDS["ViT, GELU"][0](tmp_path))
    simple = open_clip.SimpleTokenizer(context_length=ours.config.text.context_length)
    tokenizers.write(ours, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    strings = varied(10_000)
    tokens, lengths, _ = ours.tokenizer(strings)
    peers = simple(strings).numpy()
    cut = {"truncation": True, "max_length": ours.config.text.context_length}
    ids = theirs(strings, **cut)["input_ids"]
    cleaned = theirs([clean_paper(text) for text in strings], **cut)["input_ids"]
    counts = {"open_clip": 0, "transformers": 0, "transformers, cleaned by ours": 0}
    for text, row, length, peer, other, clean in zip(strings, tokens, lengths, peers, ids, cleaned, strict=True):
        spells_special = "<|" in text
        padded = np.zeros(len(peer), dtype=np.int64)
        padded[: len(row)] = row
        counts["open_clip"] += not np.array_equal(padded, peer)
        if row[:length].tolist() != other:
            counts["transformers"] += 1
            changed = clean_paper(text) != " ".join(text.split()).lower() or ftfy.fix_text(text) != text
            assert spells_special or changed or not_alike(text), text
        if row[:length].tolist() != clean:
            counts["transformers, cleaned by ours"] += 1
            assert spells_special or not_alike(text), text
    print(counts)
    assert counts["open_clip"] == 0
    assert counts["transformers, cleaned by ours"] < counts["transformers"] < 10_000


def not_alike(text: str) -> bool:
    """Whether Python and the tokenizers library put a text into lower case or split its spaces in other ways."""
    return any(character in text for character in "İΣ\x1f\x00\u200b") or "e\u0301" in text
