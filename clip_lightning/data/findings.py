"""What some samples of a data set are like: sizes, lengths, repeats, damage, a page of images, and reading speed.

The samples are the first of training's order, so that a look at a billion samples takes no longer than at a million.
"""

import hashlib
import re
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np

from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.images.decode import decode_eval, open_image, pixels_of
from clip_lightning.data.layouts.layout import BadSample, Pixels, causes, damaged_shards
from clip_lightning.tokenizer import Tokenizer, build_tokenizer

_PIECE = 256  # samples read at a time
_PAGE_ROWS, _PAGE_COLUMNS, _PAGE_PIXELS = 5, 8, 160
_LINE = 26  # characters of a caption on a line of the page
_SECONDS = 3.0  # that the loader is timed for


@dataclass
class Findings:
    """What some samples are like.

    Attributes:
        num: samples that were read.
        bad: those that cannot be read or decoded, by cause.
        widths, heights, sizes: pixels and bytes of the others; bytes are 0 for images that are drawn, not stored.
        characters, tokens: of one caption of each.
        num_captions: captions of each.
        num_cut: captions longer than the context.
        captions, images: how often each content occurred, by digest.
    """

    num: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    num_captions: list[int] = field(default_factory=list)
    num_cut: int = 0
    captions: Counter[bytes] = field(default_factory=Counter)
    images: Counter[bytes] = field(default_factory=Counter)


def look(module: ContrastiveDataModule, tokenizer: Tokenizer, num: int) -> Findings:
    """Decodes the first `num` samples of training's order, at most one epoch, and measures them."""
    found = Findings(num=min(num, module.num_samples))
    for start in range(0, found.num, _PIECE):
        positions = np.arange(start, min(start + _PIECE, found.num), dtype=np.int64)
        texts = []
        for raw in module.layout.read_many(module.order.locate(positions).sample_ids):
            try:
                if isinstance(raw, BadSample):
                    raise raw
                opened = open_image(raw.image, max_pixels=module.data.max_pixels)
                pixels_of(opened)
            except BadSample as bad:
                found.bad[bad.cause] += 1
                continue
            content = raw.image if isinstance(raw.image, bytes) else raw.image.tobytes()
            found.widths.append(opened.width)
            found.heights.append(opened.height)
            found.sizes.append(len(raw.image) if isinstance(raw.image, bytes) else 0)
            found.num_captions.append(len(raw.captions))
            found.images[hashlib.sha256(content).digest()] += 1
            texts.append(raw.captions[0])
        batch = tokenizer(texts)
        found.characters += [len(text) for text in texts]
        found.tokens += batch.lengths.tolist()
        found.num_cut += batch.num_cut
        found.captions.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts)
    return found


def describe(module: ContrastiveDataModule, found: Findings) -> list[str]:
    """The findings as lines of text."""
    layout = module.layout
    shards = len(layout.shard_sizes)
    lines = [
        f"data        {layout.num_samples:,} samples in {shards:,} shards: {module.num_samples:,} to train on, "
        f"{len(module.held_out):,} held out; fingerprint {module.fingerprint}",
        f"left out    {causes(layout.problems) or 'nothing'} (by the index)",
        *(f"damaged     {phrase}" for phrase in damaged_shards(layout.problems)),
        f"looked at   {found.num:,} samples; bad: "
        + (", ".join(f"{cause}: {count:,}" for cause, count in found.bad.most_common()) or "none"),
    ]
    if not found.widths:
        return lines
    per_image = f"{np.mean(found.num_captions):.2f} captions an image"
    pixels = f"{_spread(found.widths)} wide, {_spread(found.heights)} high"
    cut = f"{found.num_cut / len(found.tokens):.2%} are cut to the context"
    return [
        *lines,
        f"images      {pixels} in pixels (5 % .. median .. 95 %), {_spread(found.sizes)} bytes",
        f"captions    {_spread(found.characters)} characters, {_spread(found.tokens)} tokens; {cut}; {per_image}",
        f"twice       {_repeated(found.captions)} captions, {_repeated(found.images)} images",
    ]


def draw_page(module: ContrastiveDataModule, path: Path) -> None:
    """Writes the first images of training's order with a caption of each, as a PNG."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = min(_PAGE_ROWS * _PAGE_COLUMNS, module.num_samples)
    sample_ids = module.order.locate(np.arange(count, dtype=np.int64)).sample_ids
    figure, axes = pyplot.subplots(_PAGE_ROWS, _PAGE_COLUMNS, figsize=(16, 13), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, raw in zip(axes.flat, module.layout.read_many(sample_ids), strict=False):
        try:
            if isinstance(raw, BadSample):
                raise raw
            image: Pixels = decode_eval(raw.image, _PAGE_PIXELS).permute(1, 2, 0).numpy()
        except BadSample as bad:
            axis.set_title(bad.cause, fontsize=9, color="firebrick")
            continue
        axis.imshow(image)
        # A dollar sign would begin a formula.
        text = "\n".join(textwrap.wrap(raw.captions[0].replace("$", r"\$"), _LINE, max_lines=3, placeholder=" ..."))
        axis.set_title(text, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def rates(module: ContrastiveDataModule, workers: int) -> tuple[float, float]:
    """Samples a second: of one core (CPU time of this process), and of the loader with `workers` processes."""
    module.workers = 0
    first = iter(module.train_dataloader())
    next(first)
    begin, made = time.process_time(), 0
    while time.process_time() - begin < _SECONDS and (batch := next(first, None)) is not None:
        made += len(batch.positions)
    core = made / (time.process_time() - begin)
    module.workers = workers
    batches = iter(module.train_dataloader())
    for _ in range(2 * workers):  # what was made while the processes started
        next(batches)
    begin, made = time.perf_counter(), 0
    while time.perf_counter() - begin < _SECONDS and (batch := next(batches, None)) is not None:
        made += len(batch.positions)
    return core, made / (time.perf_counter() - begin)


def training_flops(model: str, root: Path) -> float | None:
    """Operations to train a named model on one pair, three times a forward pass; None where there is no such model.

    The package `model` has the count; since packages of one tier do not import each other, its command is run.
    """
    command = [sys.executable, "-m", "clip_lightning.model.flops", model]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False).stdout
    row = re.search(rf"^{re.escape(model)}\s+[\d.]+\s+[\d.]+\s+([\d.]+)", printed, re.M)
    return 3e9 * float(row[1]) if row else None


def build(config: Config) -> tuple[ContrastiveDataModule, Tokenizer]:
    """The data and the tokenizer of a config."""
    module = ContrastiveDataModule(
        config.data,
        image_size=config.model.vision.image_size,
        tokenizer=None,
        seed=config.compute.seed,
        global_batch=_PIECE,
        total_samples=1 << 40,
        workers=0,
    )
    module.tokenizer = build_tokenizer(
        config.model.text, None, module.tokenizer_captions(config.model.text.tokenizer.vocab_size)
    )
    return module, module.tokenizer


def _spread(values: list[int]) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{low:,.0f} .. {middle:,.0f} .. {high:,.0f}"


def _repeated(counts: Counter[bytes]) -> str:
    """How many of the items occur more than once, as number and share."""
    repeated = sum(count for count in counts.values() if count > 1)
    return f"{repeated:,} ({repeated / max(counts.total(), 1):.1%})"
