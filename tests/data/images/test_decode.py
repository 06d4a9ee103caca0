"""From bytes to pixels: every format that people have, damage by cause, and the transforms of the peers."""

import contextlib
import io
import struct
import zlib

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers import CLIPImageProcessor

from clip_lightning.config.schema import AugmentConfig
from clip_lightning.data.images.augment import change, crop_boxes, crop_into, cut, draw, empty_images
from clip_lightning.data.images.decode import decode_eval, open_image, pixels_of, resize_into
from clip_lightning.data.layouts.layout import BadSample
from tests.support.small_data import encoded, jpeg


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """scikit-learn's two photographs, 640 x 427, whole and cut to other shapes, as JPEG."""
    found = []
    for image in load_sample_images().images:
        picture = Image.fromarray(image)
        for box in ((0, 0, 640, 427), (0, 0, 500, 375), (100, 0, 400, 427), (10, 20, 234, 244), (0, 0, 640, 101)):
            found.append(encoded(picture.crop(box), "JPEG", quality=90))
    return found


def pixels(content: bytes, **settings: bool) -> np.ndarray:
    return pixels_of(open_image(content, **settings))


def test_the_evaluation_transform_is_open_clips(photographs: list[bytes]) -> None:
    peer = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    for content in photographs:
        theirs = (peer(Image.open(io.BytesIO(content))) * 255).round().int()
        enlarged = min(Image.open(io.BytesIO(content)).size) < 224  # there bicubic overshoots, and roundings add up
        assert (decode_eval(content, 224).int() - theirs).abs().max() <= (2 if enlarged else 1)


def test_the_evaluation_transform_is_transformers(photographs: list[bytes]) -> None:
    processor = CLIPImageProcessor(do_normalize=False, do_rescale=False, size={"shortest_edge": 224}, crop_size=224)
    compared = 0
    for content in photographs:
        picture = Image.open(io.BytesIO(content))
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0].int()
        if (max(picture.size) * 224 // min(picture.size) - 224) % 2 == 0:  # else the peers' centres are a pixel apart
            compared += 1
            assert (decode_eval(content, 224).int() - theirs).abs().max() <= 1
    assert compared >= 4


def test_the_resize_is_torchs_antialiased_bicubic(photographs: list[bytes]) -> None:
    image = pixels(photographs[0])[13:300, 7:451]
    out = empty_images(1, 96)[0]
    resize_into(image, out)
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(tensor, size=(96, 96), mode="bicubic", antialias=True)[0]
    assert torch.equal(out, theirs)


def test_a_small_image_is_enlarged_and_a_long_one_keeps_its_centre() -> None:
    assert decode_eval(jpeg(1, 10, 8), 32).shape == (3, 32, 32)
    long = np.zeros((20, 4000, 3), np.uint8)
    long[:, 1990:2010] = 200
    image = decode_eval(long, 20)
    assert image.shape == (3, 20, 20)
    assert (image == 200).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_formats_are_decoded_by_pillow(kind: str) -> None:
    picture = Image.fromarray(pixels(jpeg(3)))
    content = encoded(picture, kind, lossless=True)
    assert np.array_equal(pixels(content), np.array(Image.open(io.BytesIO(content)).convert("RGB")))


def test_colours_become_rgb_as_pillow_has_them() -> None:
    rgb = Image.fromarray(pixels(jpeg(3)))
    for mode, kind in (("CMYK", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("1", "PNG")):
        content = encoded(rgb.convert(mode), kind)
        theirs = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.abs(pixels(content).astype(int) - theirs).max() <= 2, mode


def test_sixteen_bits_of_grey_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(8, 0)
    decoded = pixels(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(decoded[0, :, 0], np.round(ramp[0] / 257).astype(np.uint8))
    assert decoded.shape == (8, 64, 3)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    for kind in ("WEBP", "GIF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
        assert pixels(content)[8, 8, 0] > 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_where_it_is_requested(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(pixels(jpeg(5, 48, 32)))
    for kind in ("JPEG", "PNG"):
        content = encoded(picture, kind, exif=exif)
        opened = open_image(content, exif_rotation=True)
        turned = pixels_of(opened)
        assert turned.shape[:2] == (opened.height, opened.width)
        from PIL import ImageOps

        theirs = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
        assert np.abs(turned.astype(int) - theirs).max() <= 2
        assert pixels(content).shape == (32, 48, 3)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"<html>404 Not Found</html>" * 20, "not an image"),
        (b"", "not an image"),
        (b"\xff\xd8\xff", "damaged image"),
        (jpeg(1, 200, 200)[:-900], "truncated image"),
        (png_header(60_000, 60_000), "image too large"),
        (png_header(13_000, 13_800), "image too large"),
        (png_header(200, 100), "truncated image"),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)), "PNG")[:-2000],
            "truncated image",
        ),
    ],
)
def test_damage_is_reported_by_cause(content: bytes, cause: str) -> None:
    with pytest.raises(BadSample) as caught:
        pixels(content)
    assert caught.value.cause == cause


def test_every_cut_of_an_image_is_a_picture_or_a_bad_sample() -> None:
    picture = Image.fromarray(pixels(jpeg(9)))
    for content in (jpeg(9), *(encoded(picture, kind) for kind in ("PNG", "WEBP", "GIF", "BMP"))):
        for length in range(0, len(content), 37):
            with contextlib.suppress(BadSample):
                assert pixels(content[:length]).shape == (30, 40, 3)
        assert pixels(content).shape == (30, 40, 3)


def test_jpeg_scaling_gives_nearly_the_same_picture(photographs: list[bytes]) -> None:
    opened = open_image(photographs[0])
    half = pixels_of(opened, shrink=2)
    assert half.shape == (214, 320, 3)
    whole = np.array(Image.fromarray(pixels_of(opened)).resize((320, 214), Image.Resampling.BOX))
    assert np.abs(half.astype(int) - whole).mean() < 8


def test_crops_have_the_areas_and_ratios_asked_for() -> None:
    config = AugmentConfig(crop_scale=[0.3, 0.9], crop_ratio=[0.95, 1.05])
    sizes = np.random.default_rng(0).integers(64, 640, (2, 4000))
    left, top, width, height = crop_boxes(config, *sizes, draw(0, np.zeros(4000, int), np.arange(4000)), 224).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= sizes[0]).all()
    assert (top + height <= sizes[1]).all()
    ordinary = np.abs(np.log(sizes[0] / sizes[1])) < 0.03  # a ratio near 1: the first try always fits
    share = (width * height / sizes.prod(0))[ordinary]
    assert 0.27 < share.min() < 0.35
    assert 0.57 < share.mean() < 0.63
    assert 0.85 < share.max() < 0.93
    assert (width / height)[ordinary].min() > 0.9
    assert (width / height)[ordinary].max() < 1.1


def test_a_full_crop_is_the_whole_image_and_padding_reflects() -> None:
    draws = draw(0, np.zeros(50, int), np.arange(50))
    whole = AugmentConfig(crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0])
    assert set(map(tuple, crop_boxes(whole, np.full(50, 32), np.full(50, 32), draws, 32).tolist())) == {(0, 0, 32, 32)}
    padded = AugmentConfig(crop_scale=[0.64, 0.64], crop_ratio=[1.0, 1.0], pad=4)
    boxes = crop_boxes(padded, np.full(50, 32), np.full(50, 32), draws, 32)
    assert set(boxes[:, 2:].ravel().tolist()) == {32}
    assert set(boxes[:, 0].tolist()) == set(range(9))
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    theirs = np.pad(image, ((4, 4), (4, 4), (0, 0)), "reflect")
    for box in boxes.tolist():
        left, top = box[:2]
        assert np.array_equal(cut(image, box, 4), theirs[top : top + 32, left : left + 32])


def test_colours_flips_and_grey_are_drawn_by_sample() -> None:
    image = torch.from_numpy(pixels(jpeg(2, 32, 32))).permute(2, 0, 1)

    def changed(config: AugmentConfig, sample_id: int) -> torch.Tensor:
        out = image.clone()
        change(out, config, draw(0, np.array([3]), np.array([sample_id]))[0])
        return out

    flips = [torch.equal(changed(AugmentConfig(flip=0.5), k), image.flip(2)) for k in range(200)]
    assert 70 < sum(flips) < 130
    grey = changed(AugmentConfig(grey=1.0), 0)
    assert torch.equal(grey[0], grey[1])
    jitter = AugmentConfig(color_jitter=[0.4, 0.4, 0.4, 0.1])
    assert not torch.equal(changed(jitter, 0), changed(jitter, 1))
    assert torch.equal(changed(jitter, 0), changed(jitter, 0))
    # One augmentation does not change the draws of the others.
    assert [torch.equal(changed(AugmentConfig(flip=0.5, grey=0.0), k), image.flip(2)) for k in range(200)] == flips


SHAPES = [(640, 427), (427, 640), (300, 300), (100, 90), (33, 1000), (31, 640), (224, 500)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_square_crop_is_torchvisions_resize_and_random_crop(shape: tuple[int, int]) -> None:
    width, height = shape
    content = jpeg(3, width, height)
    config, size = AugmentConfig(crop="square"), 64
    draws = draw(1, np.zeros(20, int), np.arange(20))
    boxes = crop_boxes(config, np.full(20, width), np.full(20, height), draws, size)
    assert (boxes[:, 2:] == size).all()
    if max(shape) > 8 * min(shape):
        return
    image = torch.from_numpy(pixels(content).copy()).permute(2, 0, 1)
    theirs = functional.resize(image, [size], InterpolationMode.BICUBIC, antialias=True)
    for left, top, _, _ in boxes.tolist():
        out = empty_images(1, size)[0]
        crop_into(open_image(content), [left, top, size, size], out, config, jpeg_scaling=False)
        assert torch.equal(out, functional.crop(theirs, top, left, size, size))


def test_square_crops_are_spread_evenly_over_the_long_side() -> None:
    draws = draw(0, np.zeros(20_000, int), np.arange(20_000))
    for width, height in ((96, 48), (48, 96)):
        left, top, _, _ = crop_boxes(
            AugmentConfig(crop="square"), np.full(20_000, width), np.full(20_000, height), draws, 32
        ).T
        long, short = (left, top) if width > height else (top, left)
        assert (short == 0).all()
        counts = np.bincount(long, minlength=33)
        assert len(counts) == 33  # 0 .. 64 - 32, as torch.randint(0, 33)
        assert counts.min() > 450
        assert counts.max() < 780
    padded = crop_boxes(AugmentConfig(crop="square", pad=4), np.full(500, 32), np.full(500, 32), draws[:500], 32)
    assert padded[:, :2].min() == 0
    assert padded[:, :2].max() == 8


def test_square_crops_of_very_long_and_of_scaled_images() -> None:
    long = np.zeros((16, 1600, 3), np.uint8)
    long[:] = np.linspace(0, 250, 1600).astype(np.uint8)[None, :, None]
    config = AugmentConfig(crop="square")
    draws = draw(0, np.zeros(200, int), np.arange(200))
    means = []
    for box in crop_boxes(config, np.full(200, 1600), np.full(200, 16), draws, 32).tolist():
        out = empty_images(1, 32)[0]
        crop_into(open_image(long), box, out, config, jpeg_scaling=False)
        means.append(out.float().mean().item())
    assert min(means) < 10
    assert max(means) > 240
    y, x = np.mgrid[0:427, 0:641]
    content = encoded(Image.fromarray(np.stack([x * 0.39, y * 0.59, (x + y) * 0.2], axis=2).astype(np.uint8)), "JPEG")
    exact, scaled = empty_images(2, 48)
    for out, scaling in ((exact, False), (scaled, True)):
        crop_into(open_image(content), [20, 0, 48, 48], out, config, jpeg_scaling=scaling)
    assert not torch.equal(exact, scaled)
    assert (exact.float() - scaled.float()).abs().mean() < 2
