"""Figure 17: near-duplicates by hash and embeddings, the test of their effect, and the list that a run leaves out."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import binom

from clip_lightning.data.images.resize import SHORTEST
from clip_lightning.errors import UserError
from experiments.figures import fig17_overlap
from experiments.figures.fig17_overlap import corrected, effect
from experiments.figures.near_duplicates import SIDE, Pictures, hash_images, near, near_duplicates, perceptual_hash
from tests.support.small_data import encoded, write_tar
from tests.support.small_run import IMAGE_SIZE, small_config, small_module

NUM = 24


def picture(seed: int) -> Image.Image:
    """Smooth random colours, 64 x 48 pixels."""
    noise = np.random.default_rng(seed).normal(size=(48, 64, 3))
    smooth = gaussian_filter(noise, (5, 5, 0))
    pixels = 127 + 60 * smooth / smooth.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def copies(image: Image.Image) -> list[bytes]:
    """The picture re-encoded, smaller, larger as PNG, and mirrored."""
    return [
        encoded(image, "JPEG", quality=40),
        encoded(image.resize((40, 30)), "JPEG", quality=90),
        encoded(image.resize((128, 96)), "PNG"),
        encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "WEBP", quality=80),
    ]


def in_list(images: list[bytes]) -> Pictures:
    return Pictures("pictures", lambda k: images[k])


def test_copies_have_near_hashes_and_other_pictures_do_not() -> None:
    originals = [encoded(picture(k), "JPEG", quality=95) for k in range(NUM)]
    copied = [copy for k in range(NUM) for copy in copies(picture(k))]
    first = hash_images(in_list(originals), np.arange(NUM))
    second = hash_images(in_list(copied), np.arange(len(copied)))
    found = near(first, second, 8)
    assert sorted(zip(found["first"], found["second"], strict=True)) == [(k // 4, k) for k in range(4 * NUM)]


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_of_a_mirror_image_is_that_of_the_mirrored_coefficients(seed: int) -> None:
    """To two bits: rounding may change the sign of a coefficient near 0."""
    grey = np.random.default_rng(seed).uniform(0, 255, (2, SIDE, SIDE)).astype(np.float32)
    (bits, mirrored), (again, back) = perceptual_hash(grey), perceptual_hash(np.ascontiguousarray(grey[:, :, ::-1]))
    assert np.bitwise_count(mirrored ^ again).max() <= 2
    assert np.bitwise_count(bits ^ back).max() <= 2
    assert np.bitwise_count(bits ^ mirrored).min() > 10


def test_an_image_that_cannot_be_read_has_no_hash() -> None:
    images = [encoded(picture(0), "PNG"), b"no image", encoded(picture(1), "PNG")]
    assert hash_images(in_list(images), np.arange(3)).numbers.tolist() == [0, 2]
    assert len(hash_images(in_list(images), np.array([1])).bits) == 0


def test_a_near_duplicate_is_near_by_both_measures() -> None:
    torch.manual_seed(0)
    model = small_module(small_config()).model
    first = in_list([encoded(picture(k), "PNG") for k in range(4)])
    second = in_list([copies(picture(2))[0], encoded(picture(9), "PNG"), copies(picture(0))[3]])
    hashes = (first, hash_images(first, np.arange(4))), (second, hash_images(second, np.arange(3)))

    def found(**limits: float) -> list[tuple[int, int]]:
        rows = near_duplicates(model, *hashes, image_size=IMAGE_SIZE, resize=SHORTEST, **limits)  # type: ignore[arg-type]
        return list(zip(rows.image, rows.sample_id, strict=True))

    assert found() == [(0, 2), (2, 0)]
    assert len(found(cosine=-1, distance=63)) == 12
    assert found(distance=63, cosine=1.1) == []


def test_the_effect_is_that_of_the_counts() -> None:
    correct = np.array([1.0] * 60 + [0.0] * 40 + [1.0] * 9 + [0.0])
    overlap = np.arange(110) >= 100
    found = effect(correct, overlap)
    assert (found["n"], found["overlap"]) == (110, 10)
    assert found["all"] == pytest.approx(69 / 110)
    assert found["clean"] == pytest.approx(0.6)
    assert found["overlap_accuracy"] == pytest.approx(0.9)
    assert found["p"] == pytest.approx(binom.sf(8, 10, 0.6))
    # Clopper-Pearson: each end has a quarter of a percent beyond it.
    assert binom.sf(8, 10, found["low"]) == pytest.approx(0.0025)
    assert binom.cdf(9, 10, found["high"]) == pytest.approx(0.0025)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_nothing_or_all_overlaps_there_is_no_test(share: float) -> None:
    found = effect(np.ones(5), np.full(5, bool(share)))
    assert np.isnan(found["p"])
    assert found["share"] == share
    shown = corrected(pd.DataFrame([found]))
    assert np.isnan(shown.p_corrected[0])
    assert shown.kind[0] == "none"


def test_p_is_corrected_for_the_data_sets_that_were_tested() -> None:
    rows = [effect(np.ones(3), np.zeros(3, bool))] * 3  # without overlap: not tested
    rows += [{**rows[0], "p": p, "overlap_accuracy": 0.9} for p in (0.01, 0.03, 0.6)]
    shown = corrected(pd.DataFrame(rows))
    assert shown.p_corrected[3:].tolist() == pytest.approx([0.03, 0.09, 1.0])
    assert shown.kind[3:].tolist() == ["corrected", "alone", "none"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    def draw(*words: object) -> None:
        fig17_overlap.COMMAND.draw(fig17_overlap.COMMAND.parser().parse_args([str(word) for word in words]))

    with pytest.raises(UserError, match="there is nothing to draw"):
        draw()
    with pytest.raises(UserError, match="is of one run, and there are 2"):
        draw(tmp_path, tmp_path)
    with pytest.raises(UserError, match="has no config"):
        draw(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="must be 0 to 63"):
        draw(tmp_path, "--distance", 64)
    with pytest.raises(UserError, match="must be -1 to 1"):
        draw(tmp_path, "--cosine", 2)
    with pytest.raises(UserError, match="must be at least 1"):
        draw(tmp_path, "--samples", 0)


@pytest.mark.ci
def test_planted_copies_are_found_and_left_out_of_the_next_run(root: Path, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        done = subprocess.run([sys.executable, *map(str, words)], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    folder = tmp_path / "set"
    write_tar(
        folder / "test/0.tar",
        [(f"{k}.{end}", content) for k in range(NUM)
         for end, content in (("jpg", encoded(picture(k), "JPEG", quality=95)), ("cls", str(k % 2).encode()))],
    )  # fmt: skip
    (folder / "test/nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("first\nsecond\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    training = [encoded(picture(1000 + k), "JPEG", quality=90) for k in range(96)]
    planted = {
        5: copies(picture(3))[0],
        50: copies(picture(7))[1],
        51: copies(picture(7))[3],
        95: copies(picture(20))[0],
    }
    for place, image in planted.items():
        training[place] = image
    write_tar(
        tmp_path / "tars/0.tar",
        [(f"{k:03d}.{end}", content) for k, image in enumerate(training)
         for end, content in (("jpg", image), ("txt", f"picture {k}".encode()))],
    )  # fmt: skip
    data = ["data=webdataset", f"data.path={tmp_path / 'tars'}", "model=tiny", "compute=cpu_minutes"]
    short = ["compute.duration=4 steps", "compute.global_batch=16", "logger=none", "data.validation.num_samples=0"]
    evaluated = ["eval.tasks=[]", f"eval.folders=[{folder}]", "cluster.workers=0"]
    run("train.py", f"runs={tmp_path / 'runs'}", *data, *short, *evaluated)
    first = (tmp_path / "runs/latest").resolve()
    out = tmp_path / "figures"
    printed = run("-m", "experiments.figures.fig17_overlap", first, "--out", out)
    assert "3 (12.50 %)" in printed
    pairs = pd.read_csv(out / "fig17_overlap_pairs.csv")
    assert sorted(zip(pairs.image, pairs.sample_id, strict=True)) == [(3, 5), (7, 50), (7, 51), (20, 95)]
    assert pairs.name.tolist() == [f"{k:03d}.jpg" for k in pairs.sample_id]
    exclude = f"data.exclude={out / 'fig17_overlap_exclude.txt'}"
    printed = run("train.py", f"runs={tmp_path / 'runs'}", *data, *short, *evaluated, exclude)
    assert "data.exclude leaves out 4 of 96 pairs" in printed
    assert (tmp_path / "runs/latest").resolve() != first
    again = run("-m", "experiments.figures.fig17_overlap", tmp_path / "runs/latest", "--out", out)
    assert "3 (12.50 %)" in again  # all training data is searched, also what a run leaves out
    assert Image.open(io.BytesIO((out / "fig17_overlap.png").read_bytes())).width > 1000
