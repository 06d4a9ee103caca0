"""The path of the data against the peers': open_clip's transform and loader, webdataset's reader, Python's tarfile.

    python -m experiments.benchmarks.data --quick --json data.json

The photographs are cut from the two that scikit-learn ships. `reader` reads ours in random order and theirs in the
order of the tar, which is the only one that it has. One thread a process.
"""

import argparse
import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import simplejpeg
import torch
import webdataset
from open_clip_train import data as peers_data
from PIL import Image
from sklearn.datasets import load_sample_images

from clip_lightning.config.schema import AugmentConfig, DataConfig, TextConfig, ValidationConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.images.augment import crop_boxes, cut, draw, empty_images
from clip_lightning.data.images.decode import open_image, pixels_of, resize_into
from clip_lightning.data.layouts.layout import build_layout
from clip_lightning.data.layouts.tar_index import index_tar
from clip_lightning.errors import run_command
from clip_lightning.tokenizer import build_tokenizer
from experiments.benchmarks.alternation import Cases, Row, alternate, parser, run

SIZE = 224
CAPTIONS = ("a photo of a temple by the water", "flowers", "the roof of an old house in the mountains, in summer")


def photographs(count: int, short_side: int | None, quality: int) -> list[bytes]:
    """JPEGs near 500 x 375, each cut elsewhere; enlarged to a short side where one is given."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        image = load_sample_images().images[number % 2]
        width, height = generator.integers((460, 340), (540, 410))
        left, top = generator.integers(0, (640 - width, 427 - height))
        picture = Image.fromarray(image[top : top + height, left : left + width])
        if short_side is not None:
            scale = short_side / min(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        found.append(stream.getvalue())
    return found


def write_shards(folder: Path, images: list[bytes], num_shards: int, per_shard: int) -> list[Path]:
    """Tars as img2dataset writes them: jpg, json and txt of each sample."""
    folder.mkdir(parents=True)
    paths = []
    for shard in range(num_shards):
        paths.append(folder / f"{shard:05d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(per_shard):
                key, text = f"{shard:05d}{number:04d}", CAPTIONS[number % len(CAPTIONS)]
                document = f'{{"key": "{key}", "caption": "{text}", "status": "success"}}'
                image = images[(shard * per_shard + number) % len(images)]
                for kind, content in (("jpg", image), ("json", document.encode()), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{key}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


def open_clips_transform() -> Any:
    """Its transform for training, as its own trainer makes it."""
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return open_clip.image_transform(SIZE, is_train=True, mean=mean, std=std, aug_cfg={"scale": (0.9, 1.0)})


def transform(name: str, images: list[bytes], rounds: int) -> Row:
    """Bytes to what a batch holds: decode, random crop of 0.9 to 1, resize; ours is normalised later, on the device."""
    peer = open_clips_transform()
    config = AugmentConfig(crop_scale=[0.9, 1.0])
    numbers = np.arange(len(images))

    def ours() -> int:
        opened = [open_image(content) for content in images]
        sizes = np.array([(one.width, one.height) for one in opened])
        boxes = crop_boxes(config, sizes[:, 0], sizes[:, 1], draw(0, numbers * 0, numbers), SIZE).tolist()
        batch = empty_images(len(images), SIZE)
        for one, box, out in zip(opened, boxes, batch, strict=True):
            resize_into(cut(pixels_of(one), box, 0), out)
        return len(batch)

    def theirs() -> int:
        batch = torch.empty(len(images), 3, SIZE, SIZE)
        for out, content in zip(batch, images, strict=True):
            out.copy_(peer(Image.open(io.BytesIO(content)).convert("RGB")))
        return len(batch)

    return alternate(name, ours, theirs, rounds=rounds, note="against open_clip's training transform, one core")


def reader(paths: list[Path], rounds: int) -> Row:
    """Bytes of image and caption of every sample."""
    layout = build_layout(DataConfig(name="bench", kind="webdataset", path=str(paths[0].parent)))
    order = np.random.default_rng(0).permutation(layout.num_samples)

    def ours() -> int:
        return sum(len(layout.read_many(order[start : start + 1024])) for start in range(0, len(order), 1024))

    def theirs() -> int:
        samples = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
        return sum(1 for sample in samples if sample["jpg"] and sample["txt"])

    return alternate("reader", ours, theirs, rounds=rounds, note="random order against webdataset's sequential order")


def index(path: Path, rounds: int) -> Row:
    """Offsets, sizes, width and height, caption length, and a digest, of one shard."""

    def ours() -> int:
        return len(index_tar(path, ["jpg", "jpeg", "png", "webp"], ["txt", "caption"]).records)

    def theirs() -> int:
        return len(index_with_tarfile(path))

    return alternate("index", ours, theirs, rounds=rounds, note="against tarfile doing the same")


def index_with_tarfile(path: Path) -> dict[str, dict[str, Any]]:
    """What `index_tar` finds, by Python's tarfile."""
    samples: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()
    with tarfile.open(path) as tar:
        for member in tar:
            digest.update(f"{member.name} {member.size} {member.mtime} {member.chksum}".encode())
            key, _, kind = member.name.partition(".")
            sample = samples.setdefault(key, {})
            if not member.isfile() or kind in sample:
                raise ValueError(member.name)
            content = tar.extractfile(member)
            assert content is not None
            if kind == "jpg":
                height, width, _, _ = simplejpeg.decode_jpeg_header(content.read(4096))
                sample[kind] = (member.offset_data, member.size, width, height)
            elif kind == "txt":
                text = content.read()
                digest.update(text)
                sample[kind] = (member.offset_data, member.size, len(text.decode().strip()))
            else:
                sample[kind] = (member.offset_data, member.size)
    return samples


def loader(paths: list[Path], per_shard: int, batch: int, rounds: int) -> Row:
    """Batches of images and tokens from tars, end to end, two worker processes each side."""
    tokenizer = build_tokenizer(TextConfig(name="clip"), None, None)
    data = DataConfig(
        name="bench",
        kind="webdataset",
        path=str(paths[0].parent),
        augment=AugmentConfig(crop_scale=[0.9, 1.0]),
        validation=ValidationConfig(num_samples=0),
    )
    total = len(paths) * per_shard // batch * batch
    module = ContrastiveDataModule(
        data, image_size=SIZE, tokenizer=tokenizer, seed=0, global_batch=batch, total_samples=total, workers=2
    )
    settings = SimpleNamespace(
        train_data=f"{paths[0].parent}/{{00000..{len(paths) - 1:05d}}}.tar",
        train_num_samples=total,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=batch,
        workers=2,
        world_size=1,
    )
    peer = open_clips_transform()
    words = open_clip.SimpleTokenizer()
    # open_clip 3.3.0 was written for webdataset 0.2; 1.0 puts a mark behind each shard, on which it stumbles.
    peers_data.tar_file_expander = partial(webdataset.tariterators.tar_file_expander, eof_value=None)

    def ours() -> Iterator[int]:
        return (len(made.images) for made in module.train_dataloader())

    def theirs() -> Iterator[int]:
        info = peers_data.get_wds_dataset(settings, peer, True, tokenizer=words)
        return (len(images) for images, _ in info.dataloader)

    return alternate(
        "loader",
        lambda: sum(ours()),
        lambda: sum(theirs()),
        rounds=rounds,
        note="against open_clip's get_wds_dataset, 2 workers each, whole passes, their start included",
        clock=time.perf_counter,
    )


def cases(settings: argparse.Namespace) -> Cases:
    """All comparisons."""
    quick = settings.quick
    rounds, count, per_shard = (5, 32, 512) if quick else (15, 128, 2048)
    return {
        "transform": lambda: [transform("transform", photographs(count, None, 90), rounds)],
        "transform_512": lambda: [transform("transform_512", photographs(count, 512, 95), rounds)],
        "reader": lambda: with_small_tars(reader, 4000 if quick else 10_000, rounds),
        "index": lambda: with_small_tars(
            lambda paths, rounds: index(paths[0], rounds), 4000 if quick else 10_000, rounds
        ),
        "loader": lambda: with_photographs(per_shard, 3 if quick else 7),
    }


def with_small_tars(measure: Callable[[list[Path], int], Row], per_shard: int, rounds: int) -> Iterator[Row]:
    """A comparison on two tars of small images."""
    with tempfile.TemporaryDirectory() as folder:
        small = [small_image(number) for number in range(256)]
        yield measure(write_shards(Path(folder) / "small", small, 2, per_shard), rounds)


def with_photographs(per_shard: int, rounds: int) -> Iterator[Row]:
    """The loaders on four tars of photographs."""
    with tempfile.TemporaryDirectory() as folder:
        tars = write_shards(Path(folder) / "photographs", photographs(128, None, 90), 4, per_shard)
        yield loader(tars, per_shard, 128, rounds)


def small_image(number: int) -> bytes:
    """A JPEG of 32 x 32 pixels, as CIFAR's are."""
    image = load_sample_images().images[number % 2]
    left, top = np.random.default_rng(number).integers(0, (640 - 128, 427 - 128))
    picture = Image.fromarray(image[top : top + 128, left : left + 128]).resize((32, 32))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=75)
    return stream.getvalue()


def main() -> None:
    """Prints and writes the ratios."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    run(
        "experiments.benchmarks.data", parser("The path of the data, against open_clip, webdataset and tarfile."), cases
    )


if __name__ == "__main__":
    run_command(main)
