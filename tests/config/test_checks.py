"""Cross-field checks: each kind of fault is reported in one sentence with key, value, rule and fix."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from clip_lightning.config import checks, compose
from clip_lightning.config.schema import Config, EvaluateConfig, PhaseConfig

OPTIONS = Path(__file__).parent / "options"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A config without a fault."""
    folder = tmp_path_factory.mktemp("shards")
    words = [f"--config-dir={OPTIONS}", "data=mine", f"data.path={folder}", "loss=other"]
    config: Config = compose.load("train", words)
    return config


def problems_of(base: Config, **changes: object) -> list[str]:
    """The problems after keys like compute__seed were changed."""
    tree = OmegaConf.structured(base)
    for key, value in changes.items():
        OmegaConf.update(tree, key.replace("__", "."), value, merge=False, force_add=True)
    return checks.check(OmegaConf.to_object(tree))  # type: ignore[arg-type]


FAULTS: list[tuple[dict[str, object], str]] = [
    ({"compute__schedule": "cosin"}, "compute.schedule=cosin must be one of cosine, constant, constant_cooldown; did"),
    ({"cluster__strategy": "dp"}, "cluster.strategy=dp must be one of"),
    ({"compute__gradient_clip": 0.0}, "compute.gradient_clip=0.0 must be above 0"),
    ({"optimizer__beta2": 1.0}, "optimizer.beta2=1.0 must be 0 or more and below 1"),
    ({"data__augment__crop_scale": [0.9, 1.1]}, "data.augment.crop_scale=[0.9, 1.1] must be two shares"),
    ({"data__augment__flip": 2.0}, "data.augment.flip=2.0 must be 0 or more and at most 1"),
    ({"eval__every": "often"}, 'eval.every: "often" is not a duration'),
    ({"compute__global_batch": 510, "cluster__devices": 4, "cluster__strategy": "ddp"}, "write 508 or 512"),
    ({"cluster__micro_batch": 300}, "cluster.micro_batch=300 must divide the 512 pairs of a rank; write 256"),
    ({"cluster__devices": 2}, "cluster.strategy=single is one process"),
    ({"cluster__strategy": "fsdp"}, "cluster.strategy=fsdp shares weights among ranks and there is 1"),
    ({"cluster__strategy": "fsdp", "cluster__devices": 2, "compute__precision": "fp16"}, "cannot be scaled under"),
    ({"cluster__strategy": "hsdp", "cluster__devices": 4}, "write cluster.shard_size=2, or cluster=fsdp for one group"),
    ({"cluster__shard_size": 2}, "cluster.shard_size=2 has no effect without cluster=hsdp"),
    ({"cluster__keep_every": "1%"}, "cluster.keep_every=1% is no longer than cluster.checkpoint_every=10%"),
    ({"cluster__slurm__partition": "gpu"}, "cluster.slurm.partition=gpu has no effect with cluster.scheduler=none"),
    (
        {"cluster__scheduler": "slurm", "cluster__time_limit_minutes": 5.0},
        "cluster.slurm.signal_seconds=300 must be less than the 300 seconds of cluster.time_limit_minutes=5",
    ),
    (
        {"cluster__scheduler": "slurm", "cluster__accelerator": "cpu", "cluster__slurm__gpus_per_node": 1},
        "cluster.slurm.gpus_per_node=1 has no effect with cluster.accelerator=cpu",
    ),
    ({"compute__precision": "fp16", "cluster__accelerator": "cpu"}, "compute.precision=fp16 needs a GPU"),
    ({"compute__warmup": "9 epochs"}, "compute.warmup=9 epochs take 900,096 samples and the whole run has 200,192"),
    (
        {"compute__schedule": "constant_cooldown", "compute__warmup": "60%", "compute__cooldown": "60%"},
        "compute.warmup=60% and compute.cooldown=60% take",
    ),
    ({"compute__duration": "5%"}, "compute.duration=5% cannot be a share of itself"),
    ({"compute__duration": "0 steps"}, "compute.duration=0 steps must be at least one step"),
    ({"compute__schedule": "constant_cooldown"}, "compute.cooldown is 0; write compute.cooldown=20%"),
    ({"compute__cooldown": "5%"}, "compute.cooldown=5% has no effect with compute.schedule=cosine"),
    ({"compute__schedule": "constant", "compute__final_learning_rate": 0.1}, "compute.final_learning_rate=0.1 has no"),
    ({"compute__phases": [PhaseConfig(start="soon")]}, 'compute.phases[0].start: "soon" is not a duration'),
    ({"compute__phases": [PhaseConfig(image_size=32)]}, 'compute.phases[0].start: "" is not a duration'),
    (
        {"compute__phases": [PhaseConfig(start="50%", image_size=128)]},
        "must be from 1 to model.vision.image_size=64, the",
    ),
    (
        {"compute__phases": [PhaseConfig(start="50%", image_size=40)]},
        "must be a multiple of 16 for vit_tiny_patch16_224; ",
    ),
    (
        {"compute__phases": [PhaseConfig(start="50%", context_length=78)]},
        "to model.text.context_length=77, the largest",
    ),
    (
        {"compute__phases": [PhaseConfig(start="50%", patch_dropout=1.0)]},
        "patch_dropout=1.0 must be 0 or more and below 1",
    ),
    (
        {"model__vision__timm": "resnet50", "compute__phases": [PhaseConfig(start="50%", patch_dropout=0.5)]},
        "compute.phases[0].patch_dropout=0.5 has no effect: resnet50 has no patches; write null",
    ),
    (
        {"model__vision__locked": True, "compute__phases": [PhaseConfig(start="50%", patch_dropout=0.5)]},
        "compute.phases[0].patch_dropout=0.5 has no effect: model.vision.locked=true",
    ),
    ({"compute__phases": [PhaseConfig(start="50%")]}, "compute.phases[0].start=50% has no effect: nothing differs"),
    (
        {"compute__phases": [PhaseConfig(start="50%", image_size=32), PhaseConfig(start="49%")]},
        "compute.phases[1].start=49% is sample 98,304, and the phase before starts at 100,352; put them in order",
    ),
    (
        {"compute__phases": [PhaseConfig(start="2 epochs", image_size=32)]},
        "compute.phases[0].start=2 epochs is sample 200,192, and the run ends at 200,192; write an earlier one",
    ),
    (
        {"compute__batch_norm_samples": 128},
        "compute.batch_norm_samples=128 has no effect: model=mine has no batch norm",
    ),
    ({"model__text__context_length": 78}, "model.text.context_length=78 is beyond the 77 positions"),
    ({"model__text__tokenizer__vocab_size": 9}, "model.text.tokenizer.vocab_size=9 differs from the 49408 rows"),
    ({"model__vision__image_size": 65}, "multiple of the patch size 16 of vit_tiny_patch16_224; write 64 or 80"),
    ({"model__vision__image_size": 256}, "model.vision.image_size=256 is beyond the 224 pixels"),
    ({"model__vision__timm": "resnet50", "model__vision__patch_dropout": 0.5}, "resnet50 has no patches"),
    ({"model__vision__timm": None}, "neither is set, and exactly one of them builds the tower"),
    ({"model__vision__locked": True}, "model.vision.locked=true freezes random weights"),
    ({"model__vision__locked": True, "model__vision__drop_path": 0.1}, "model.vision.drop_path=0.1 has no effect"),
    ({"cluster__cache_locked": True}, "cluster.cache_locked=true has no effect: neither"),
    (
        {
            "cluster__cache_locked": True,
            "model__text__locked": True,
            "cluster__strategy": "fsdp",
            "cluster__devices": 2,
        },
        "cluster.cache_locked=true cannot be with cluster.strategy=fsdp",
    ),
    (
        {"cluster__cache_locked": True, "model__vision__locked": True, "data__augment__flip": 0.5},
        "write data.augment.crop_scale=[1.0,1.0] data.augment.crop_ratio=[1.0,1.0] data.augment.flip=0.0, or leave",
    ),
    ({"model__text__config": {}}, "model.text names no encoder"),
    ({"model__text__projection": "none", "model__text__projection_bias": True}, "model.text.projection_bias=true has"),
    ({"model__name": "a/b"}, "model.name=a/b names the run's directory"),
    ({"loss__name": "softmax"}, "loss.logit_bias_init=-10.0 has no effect: a bias cancels in the softmax"),
    ({"loss__logit_scale_max": 1.0}, "loss.logit_scale_max=1.0 is below loss.logit_scale_init"),
    ({"loss__teacher_science": "ab"}, "loss.teacher_science=ab has no effect without loss.teacher"),
    ({"loss___target_": "no_such_package_here.Loss"}, "there is no package no_such_package_here; install it"),
    ({"loss___target_": "os; system"}, "must be an import path like"),
    ({"data__kind": "scenes"}, "has no effect with data=mine; write data=folder as well"),
    ({"data__mixture": {"cc3m": 1.0}}, "data.mixture={'cc3m': 1.0} has no effect with data.kind=webdataset"),
    ({"data__kind": "mixture", "data__path": None}, "data.mixture={} must give each data option a weight above 0"),
    ({"data__options": {"a": 1}}, "data.options has no effect without data._target_"),
    ({"data__path": None}, "data.path is not set and data=mine needs one; Ask the person who keeps the birds"),
    ({"data__path": "nowhere"}, "data.path=nowhere does not exist: Ask the person who keeps the birds"),
    ({"data__path": "nowhere/{0..9}.tar"}, "data.path=nowhere/{0..9}.tar does not exist"),
    ({"data__validation__path": "nowhere"}, "data.validation.path=nowhere does not exist"),
    ({"eval__folders": ["nowhere"]}, "eval.folders: nowhere does not exist"),
    ({"trainer": {"precision": 16}}, "trainer.precision=16 is not taken: write compute.precision"),
    ({"trainer": {"limit_train_batch": 2}}, "did you mean trainer.limit_train_batches"),
    ({"compute__on_divergence": "continue"}, "compute.on_divergence=continue must be one of stop, rollback"),
    ({"compute__spike_threshold": 0.0}, "compute.spike_threshold=0.0 must be above 0"),
    ({"compute__spike_limit": 2}, "compute.spike_limit=2 has no effect with compute.spike_threshold=null"),
    ({"compute__rollback_limit": 9}, "compute.rollback_limit=9 has no effect with compute.on_divergence=stop"),
    ({"compute__rollback_margin": "a bit"}, 'compute.rollback_margin: "a bit" is not a duration'),
    ({"compute__batch_norm_samples": 1}, "compute.batch_norm_samples=1 must be 2 or more"),
    (
        {"compute__global_batch": 1, "cluster__devices": 2, "cluster__strategy": "ddp"},
        "2 ranks (cluster.nodes x cluster.devices); write 2",
    ),
    ({"debug__overfit_samples": 3}, "debug.overfit_samples=3 must be at least compute.global_batch=512"),
    ({"allow_changed": ["compute.sede"]}, "allow_changed: there is no key compute.sede; did you mean compute.seed"),
    ({"model__name": "vit_l14_336", "compute__learning_rate": 2e-5}, "model.text.pretrained=PATH compute.duration="),
    ({"compute__duration": "5"}, 'compute.duration: "5" has no unit; write "5 epochs", "5 steps" or "5 samples"'),
]


def test_a_sound_config_has_no_problem(base: Config) -> None:
    assert problems_of(base) == []


@pytest.mark.parametrize(("changes", "sentence"), FAULTS, ids=[sentence[:40] for _, sentence in FAULTS])
def test_a_fault_is_one_sentence(base: Config, changes: dict[str, object], sentence: str) -> None:
    problems = problems_of(base, **changes)
    assert any(sentence in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_faults_are_reported_together(base: Config) -> None:
    assert (
        len(problems_of(base, compute__global_batch=0, compute__schedule="x", data__path="nowhere", cluster__nodes=2))
        == 4
    )


@pytest.mark.parametrize(
    ("ranks", "micro", "fix"),
    [
        (1, None, None),
        (2, None, None),
        (4, None, None),
        (4, 128, None),
        (1, 128, "write cluster.micro_batch=256"),
        (2, 128, "write cluster.micro_batch=256"),
        (2, 1, "write cluster.micro_batch=256"),
        (4, 64, "write cluster.micro_batch=null"),
    ],
)
def test_batch_norm_needs_groups_that_the_ranks_can_form(
    base: Config, ranks: int, micro: int | None, fix: str | None
) -> None:
    changes = {"cluster__devices": ranks, "cluster__strategy": "ddp", "cluster__micro_batch": micro}
    problems = problems_of(base, model__vision__timm="resnet50", model__vision__batch_norm=True, **changes)
    assert len(problems) == (fix is not None), problems
    assert fix is None or problems[0].endswith(fix)


def test_what_is_remote_or_behind_braces_is_left_to_the_preflight(base: Config, tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    assert problems_of(base, data__path="s3://bucket/{0..9}.tar") == []
    assert problems_of(base, data__path=f"{tmp_path}/{{0..9}}.tar") == []


def test_epochs_of_data_that_is_not_yet_counted_are_allowed(base: Config) -> None:
    assert problems_of(base, data__num_samples=None, compute__duration="3 epochs") == []


def test_roberta_counts_its_positions_behind_its_padding(base: Config) -> None:
    roberta = {"model_type": "roberta", "vocab_size": 49408, "max_position_embeddings": 514, "pad_token_id": 1}
    assert problems_of(base, model__text__config=roberta, model__text__context_length=512) == []
    assert len(problems_of(base, model__text__config=roberta, model__text__context_length=513)) == 1


def test_an_evaluation_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "vit_b32-yfcc-paper-3f9a1c2e").mkdir()
    (tmp_path / "vit_b32-yfcc-paper-3f9a1c2e/config.yaml").touch()
    good = compose.load("evaluate", [f"run={tmp_path}/vit_b32-yfcc-paper-3f9a1c2e"])
    assert isinstance(good, EvaluateConfig)
    good.run += "x"
    (problem,) = checks.check(good)
    assert "is not a run's directory" in problem
    assert "did you mean vit_b32-yfcc-paper-3f9a1c2e?" in problem


def test_torchrun_must_start_what_the_cluster_has(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    found = problems_of(base, cluster__strategy="ddp", cluster__devices=4)
    assert len(found) == 1
    assert "write cluster.nodes=2 cluster.devices=2" in found[0]
    assert not problems_of(base, cluster__strategy="ddp", cluster__devices=2, cluster__nodes=2)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "nodes"), [(48, 3), (64, 4)])
def test_torchrun_may_start_fewer_nodes_where_they_divide_the_batch(
    monkeypatch: pytest.MonkeyPatch, batch: int, nodes: int
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    four = ["cluster=ddp", "cluster.nodes=4", "cluster.devices=2", f"compute.global_batch={batch}"]
    assert compose.load("train", four, check=False).cluster.nodes == nodes


def test_a_key_below_an_open_key_may_be_allowed_to_change(base: Config) -> None:
    assert problems_of(base, allow_changed=["data", "model.text.config.hidden_dropout_prob", "compute.seed"]) == []


def test_the_right_rates_of_the_larger_image_size_are_no_problem(base: Config) -> None:
    assert problems_of(base, model__name="vit_l14_336", compute__learning_rate=4e-4) == []


@pytest.mark.parametrize(
    ("file", "option"), [("a.tar", "webdataset"), ("a.csv", "csv"), ("a.parquet", "parquet"), ("a.jpg", "folder")]
)
def test_a_path_without_data_names_the_option_that_reads_it(
    base: Config, file: str, option: str, tmp_path: Path
) -> None:
    (tmp_path / file).touch()
    found = problems_of(base, data__kind="scenes", data__path=str(tmp_path))
    assert any(f"write data={option} as well" in problem for problem in found)
