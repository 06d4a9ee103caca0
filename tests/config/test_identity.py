"""The science of a run: what enters its hash, and what never does."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_lightning.config import compose, identity
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError

OPTIONS = Path(__file__).parent / "options"


@pytest.fixture(scope="module")
def config() -> Config:
    return compose.load("train", [f"--config-dir={OPTIONS}", "data=mine"], check=False)


def changed(config: Config, change: Callable[[Config], object]) -> str:
    other = copy.deepcopy(config)
    change(other)
    return identity.science_hash(other)


def test_the_name_holds_model_data_compute_and_hash(config: Config) -> None:
    name = identity.run_name(config)
    assert name == f"mine-mine-mine-{identity.science_hash(config)}"
    assert len(name.rsplit("-", 1)[1]) == 8


def test_a_pair_is_named_by_its_towers(config: Config) -> None:
    pair = copy.deepcopy(config)
    pair.model.name = "pair"
    assert identity.run_name(pair).startswith("small_short-mine-mine-")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.compute, "seed", 1),
        lambda c: setattr(c.compute, "precision", "fp32"),
        lambda c: setattr(c.optimizer, "beta1", 0.8),
        lambda c: setattr(c.loss, "logit_bias_init", -1.0),
        lambda c: setattr(c.data.augment, "flip", 0.5),
        lambda c: setattr(c.data.validation, "num_samples", 7),
        lambda c: c.model.vision.options.update(patch_size=8),
        lambda c: setattr(c.debug, "overfit_samples", 512),
    ],
)
def test_science_changes_the_hash(config: Config, change: Callable[[Config], object]) -> None:
    assert changed(config, change) != identity.science_hash(config)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.data, "path", "elsewhere"),
        lambda c: setattr(c.data.cache, "max_gib", 1.0),
        lambda c: setattr(c.data, "tasks", ["other"]),
        lambda c: setattr(c.data, "model", "other"),
        lambda c: setattr(c.loss, "chunk", 1),
        lambda c: setattr(c.cluster, "devices", 8),
        lambda c: setattr(c.cluster, "micro_batch", 8),
        lambda c: setattr(c.eval, "every", "1%"),
        lambda c: c.logger.update(csv={"_target_": "lightning.pytorch.loggers.CSVLogger"}),
        lambda c: setattr(c.debug, "profile", True),
        lambda c: setattr(c, "runs", "elsewhere"),
        lambda c: setattr(c, "experiment", "study"),
    ],
)
def test_the_hardware_never_changes_the_hash(config: Config, change: Callable[[Config], object]) -> None:
    assert changed(config, change) == identity.science_hash(config)


def test_a_path_is_science_where_nothing_else_names_the_data(config: Config, tmp_path: Path) -> None:
    nameless = copy.deepcopy(config)
    nameless.data.num_samples = None
    nameless.data.path = str(tmp_path / "a")
    first = identity.science_hash(nameless)
    assert changed(nameless, lambda c: setattr(c.data, "path", str(tmp_path / "b"))) != first
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert changed(nameless, lambda c: setattr(c.data, "path", str(tmp_path / "link"))) == first
    assert changed(nameless, lambda c: setattr(c.data, "path", "s3://bucket/a")) != first


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(-5, 5) | st.booleans(), min_size=2), st.randoms())
def test_order_of_keys_and_spelling_of_numbers_never_matter(
    config: Config, options: dict[str, int], random: object
) -> None:
    names = list(options)
    random.shuffle(names)  # type: ignore[attr-defined]
    first, second = copy.deepcopy(config), copy.deepcopy(config)
    first.model.vision.options = dict(options)
    second.model.vision.options = {
        name: options[name] if isinstance(options[name], bool) else float(options[name]) for name in names
    }
    assert identity.science_hash(first) == identity.science_hash(second)


def test_a_difference_is_readable(config: Config) -> None:
    other = copy.deepcopy(config)
    other.compute.learning_rate = 1e-3
    other.model.vision.options["patch_size"] = 8
    assert identity.diff(identity.science(config), identity.science(other)) == [
        "compute.learning_rate: 3e-4 -> 0.001",
        "model.vision.options.patch_size: (absent) -> 8",
    ]


@pytest.mark.slow
def test_a_teacher_is_identified_by_its_science_not_its_path(config: Config, tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(compose.dump(config))
    (tmp_path / "latest").symlink_to("here")
    words = [f"--config-dir={OPTIONS}", "data=mine", "loss=distill"]
    students = [
        compose.load("train", [*words, f"loss.teacher={tmp_path / name}"], check=False) for name in ("here", "there")
    ]
    assert students[0].loss.teacher_science == identity.science_hash(config)
    assert identity.science(students[0]) == identity.science(students[1])
    assert identity.science(students[0])["loss"]["teacher_science"] == identity.science_hash(config)
    for word, sentence in (
        ("latest", "is a link"),
        ("nowhere", "is not a run's directory"),
        ("her", "did you mean here?"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            compose.load("train", [*words, f"loss.teacher={tmp_path / word}"], check=False)
    with pytest.raises(UserError, match=r"loss\.teacher_science=0 is not that of"):
        compose.load("train", [*words, f"loss.teacher={tmp_path / 'here'}", "loss.teacher_science=0"], check=False)


@pytest.mark.slow
def test_what_changes_the_samples_is_in_the_science(config: Config) -> None:
    separate = copy.deepcopy(config)
    separate.data.validation.path = "elsewhere"
    assert identity.science_hash(separate) != identity.science_hash(config)
    words = ["data=mixture", "data.mixture={webdataset:1.0,cc3m:1.0}", "model=vit_b32", "compute=openclip_cc12m"]
    places = [f"data.mixture_paths={{webdataset:{a},cc3m:{b}}}" for a, b in (("A", "A"), ("B", "A"), ("A", "B"))]
    mixtures: list[Config] = [compose.load("train", [*words, place], check=False) for place in places]
    first, other, moved = map(identity.science_hash, mixtures)
    assert first != other
    assert first == moved  # cc3m has a published number of pairs and may lie anywhere


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
        ("https://host/a.tar?X-Token=b", "https://host/a.tar?***"),
        ("path: s3://bucket/a", "path: s3://bucket/a"),
        ("/a/b@c?d", "/a/b@c?d"),
    ],
)
def test_credentials_are_left_out(url: str, shown: str) -> None:
    assert identity.redacted(url) == shown
