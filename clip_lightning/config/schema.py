"""The typed schema of a run: one dataclass per Hydra group. Imports no torch: a mistake is told in under a second.

What stands in `model`, `data`, `compute`, `loss` and `optimizer` is the science of a run and enters its hash; fields
marked `machine(...)` are the exceptions. `cluster`, `eval`, `tracker` and `debug` never change what is learned
(but `debug.overfit_samples`, which is part of the science). A field of `None` is either off or, where its comment says
so, filled by `compose.resolve` before anything reads it.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def machine(default: Any = None, factory: Any = None) -> Any:
    """A field that may differ between machines without changing the science."""
    if factory is not None:
        return field(default_factory=factory, metadata={"machine": True})
    return field(default=default, metadata={"machine": True})


# --- model ------------------------------------------------------------------------------------------------------------


@dataclass
class TokenizerConfig:
    """How captions become token ids."""

    kind: str = "paper"  # paper (CLIP's BPE), hub (a Hugging Face tokenizer), trained (on the run's own captions)
    path: str | None = None  # paper: another merges file; hub: hub name or local folder; trained: null
    vocab_size: int = 49408  # what the encoder's embedding holds; trained: the size to train
    clean: str = "none"  # hub: none, canonical (SigLIP: no punctuation, lower case); paper, trained: their own


@dataclass
class VisionConfig:
    """The image tower: a timm backbone, or the user's own."""

    name: str = MISSING  # the tower's name in messages and in the name of a pair
    timm: str | None = None  # timm architecture; null only with _target_
    image_size: int = MISSING  # pixels, square
    mean: list[float] = field(default_factory=lambda: list(OPENAI_MEAN))  # of pixels in 0..1
    std: list[float] = field(default_factory=lambda: list(OPENAI_STD))  # of pixels in 0..1
    pool: str | None = None  # timm's global_pool (token, avg, map, ...); null: the architecture's own
    projection: str = "linear"  # linear (no bias), none (the tower itself gives embed_dim, see options.num_classes)
    init: str = "timm"  # openai_vit, openai_resnet, timm
    batch_norm: bool = False  # the tower normalises over the batch (checked before the run, verified after the build)
    patch_dropout: float = 0.0  # share of patches left out in training (FLIP)
    drop_path: float = 0.0  # share of residual branches left out in training (stochastic depth)
    pretrained: bool | str = False  # false, true (timm's weights, needs the hub), or a path
    locked: bool = False  # LiT: frozen, in evaluation mode, without a graph; its linear projection still learns
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model or of _target_
    _target_: str | None = None  # import path of the user's own builder; never taken from a checkpoint


@dataclass
class TextConfig:
    """The text tower: a Hugging Face encoder by name, folder or inline configuration."""

    name: str = MISSING  # the tower's name in messages and in the name of a pair
    huggingface: str | None = None  # hub name or local folder, of the configuration or, beside `config`, of the weights
    config: dict[str, Any] = field(default_factory=dict)  # of Hugging Face (whole: has model_type), or of _target_
    context_length: int = 77  # tokens, start and end token included
    pool: str = "eot"  # eot, cls, mean, last
    mask_padding: bool = False  # padding is masked in attention (bidirectional encoders)
    pad_to_context: bool = False  # every text is padded to context_length (SigLIP); otherwise to the batch's longest
    projection: str = "linear"  # linear, mlp, none
    projection_bias: bool = False  # the linear projection has a bias
    init: str = "huggingface"  # openai, huggingface
    pretrained: bool | str = False  # false, true (needs the hub), or a path
    locked: bool = False  # as model.vision.locked
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    _target_: str | None = None  # import path of the user's own builder; never taken from a checkpoint


@dataclass
class ModelConfig:
    """Two towers and the width of the space they share."""

    name: str = MISSING  # first part of the run's name; picks the recipe of compute
    embed_dim: int = MISSING  # width of the space that images and texts share
    loss: str = "softmax"  # the loss option taken when `loss=` is not given
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass
class AugmentConfig:
    """Random changes of training images, drawn by (seed, epoch, sample id)."""

    crop: str = "area"  # area (a random share of the area and ratio), square (short side resized, then a random square)
    crop_scale: list[float] = field(default_factory=lambda: [0.9, 1.0])  # share of the area (paper: section 2.3)
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])  # width over height of the crop
    pad: int = 0  # pixels of reflected border added before the crop (small images)
    flip: float = 0.0  # probability
    color_jitter: list[float] = field(default_factory=list)  # brightness, contrast, saturation, hue; empty: off
    grey: float = 0.0  # probability


@dataclass
class ValidationConfig:
    """Pairs that training never sees."""

    path: str | None = machine()  # held-out pairs in the same layout; null: the tail of every shard, never trained on
    num_samples: int = 1024  # candidates of val_loss_1024 and recall; 0: no validation


@dataclass
class CacheConfig:
    """Where and how remote shards are kept on this machine."""

    folder: str | None = machine()  # where remote shards are kept; null: ~/.cache/clip_lightning
    max_gib: float = machine(200.0)  # largest size of that folder; the oldest shards leave first
    retries: int = machine(8)  # attempts at a shard before the run stops
    ahead: int = machine(4)  # shards downloaded before they are needed


@dataclass
class DataConfig:
    """The pairs a run learns from."""

    name: str = MISSING  # second part of the run's name
    kind: str = MISSING  # scenes, webdataset, parquet, table, folder, coco, mixture
    path: str | None = machine()  # folder, file or fsspec URL; braces {00000..00099} are expanded
    num_samples: int | None = None  # published number of pairs; null: counted by the index
    how_to_get: str = machine("")  # one sentence, shown when the path is missing
    model: str = "vit_b32"  # the model option taken when `model=` is not given
    compute: str = "paper"  # the compute option taken when `compute=` is not given
    tasks: list[str] = machine(factory=list)  # zero-shot tasks taken when `eval.tasks` is null
    image_keys: list[str] = field(default_factory=lambda: ["jpg", "jpeg", "png", "webp"])  # as caption_keys
    caption_keys: list[str] = field(default_factory=lambda: ["txt", "caption"])  # member, column, json key: first found
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    window_shards: int | None = None  # shards mixed in one shuffle window; null: all (local), 32 (remote)
    resampled: bool = False  # draw with replacement
    exif_rotation: bool = False  # images are turned upright by their EXIF tag
    jpeg_scaling: bool = False  # decode at 1/2, 1/4, 1/8 where the crop allows it (training only; inexact)
    max_pixels: int = 178_956_970  # larger images are refused from their header
    max_bad_share: float = 0.01  # more bad samples than this stop the run
    index_folder: str | None = machine()  # where sidecars go when the data's folder is read-only
    mixture: dict[str, float] = field(default_factory=dict)  # data option: weight per sample
    mixture_paths: dict[str, str] = machine(factory=dict)  # data option: path
    parts: dict[str, Any] = machine(factory=dict)  # the data options of `mixture`, filled in by the composition
    quotes: bool | None = None  # table: fields may be in quotes; null: in .csv they may, in .tsv quotes are text
    options: dict[str, Any] = field(default_factory=dict)  # arguments of _target_
    _target_: str | None = None  # the user's own layout


# --- science of a run -------------------------------------------------------------------------------------------------


@dataclass
class Recipe:
    """What depends on the model in a preset; fills the keys of that name in `compute` and `optimizer` that are null."""

    learning_rate: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None


@dataclass
class PhaseConfig:
    """A part of a run that trains on other images and texts; holds until the next one starts."""

    start: str = ""  # any duration from the run's begin, rounded to whole steps: "80%", "400M samples", "0 steps"
    image_size: int | None = None  # pixels, square; null: the model's own, which is the largest
    context_length: int | None = None  # tokens at which captions are cut; null: the model's own, which is the largest
    patch_dropout: float | None = None  # share of patches left out (FLIP); null: the model's own


@dataclass
class ComputeConfig:
    """How long, how fast and how exactly a run learns."""

    name: str = MISSING  # third part of the run's name
    duration: str = MISSING  # "32 epochs", "400M samples", "1000 steps"
    global_batch: int = MISSING  # pairs per optimizer step over all ranks
    learning_rate: float | None = None  # peak; null: recipes
    recipes: dict[str, Recipe] = field(default_factory=dict)  # by model name, and `default`; emptied when resolved
    warmup: str = "0 samples"  # any duration; "5%" is of the run
    schedule: str = "cosine"  # cosine, constant, constant_cooldown
    cooldown: str = "0 samples"  # constant_cooldown only
    cooldown_power: float = 1.0  # exponent of the cool-down; 1 is linear
    final_learning_rate: float = 0.0  # where cosine and cool-down end
    gradient_clip: float | None = None  # largest global norm
    precision: str = "bf16"  # fp32, bf16, fp16 (towers; logits are float32 always)
    seed: int = 0  # of weights, order of the data and augmentation
    phases: list[PhaseConfig] = field(default_factory=list)  # smaller images, shorter texts, fewer patches; empty: none
    batch_norm_samples: int = 256  # samples that share batch statistics (towers with batch norm)
    deterministic: bool = False  # deterministic GPU kernels
    ema_decay: float | None = None  # per step; null: no average of weights
    nonfinite_limit: int = 10  # skipped steps in a row (loss or gradient not finite) that are a divergence
    spike_threshold: float | None = None  # MADs above its median at which loss or gradient norm is a spike; null: off
    spike_window: int = 128  # steps before it that median and MAD (median absolute deviation) are of
    spike_limit: int = 3  # spikes in a row that are a divergence
    on_divergence: str = machine("stop")  # stop (with its sample ids), rollback (and pass over its samples)
    rollback_margin: str = "100 steps"  # passed over before and after the steps of a divergence as well
    rollback_limit: int = machine(3)  # rollbacks after which a divergence stops the run


@dataclass
class OptimizerConfig:
    """AdamW's own numbers; the learning rate is `compute`'s."""

    name: str = "adamw"  # the option's name
    beta1: float = 0.9  # decay of the mean of gradients
    beta2: float | None = None  # null: recipes
    eps: float | None = None  # null: recipes
    weight_decay: float | None = None  # null: recipes; not on gains, biases, position embeddings, scale


@dataclass
class LossConfig:
    """The objective, and where the logit scale and bias begin."""

    name: str = MISSING  # a name of the registry: softmax, sigmoid, ...; or the user's own with _target_
    logit_scale_init: float = 2.6592600369327779  # ln(1 / 0.07) (paper section 2.5)
    logit_scale_max: float | None = 4.605170185988092  # ln 100 (paper section 2.5); null: not clamped
    logit_bias_init: float | None = None  # null: no bias
    chunk: int = machine(256)  # rows of logits held at a time
    duplicates: str = "none"  # positives: equal captions or images of a batch are positives of each other; or none
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of the loss
    teacher: str | None = machine()  # distill: directory of a finished run
    teacher_science: str | None = None  # the teacher's science hash; null: read from its directory
    _target_: str | None = None  # import path of the user's own loss; never taken from a checkpoint


# --- machine of a run -------------------------------------------------------------------------------------------------


@dataclass
class SlurmConfig:
    """What a job asks of SLURM."""

    partition: str | None = None  # sbatch --partition
    account: str | None = None  # sbatch --account
    qos: str | None = None  # sbatch --qos
    constraint: str | None = None  # sbatch --constraint
    array_parallelism: int = 16  # jobs of a sweep that run at once
    gpus_per_node: int | None = None  # sbatch --gpus-per-node; null: cluster.devices
    cpus_per_task: int | None = None  # sbatch --cpus-per-task; null: cluster.workers + 1
    memory: str | None = None  # sbatch --mem
    signal_seconds: int = 300  # warning before the time limit
    requeue: bool = True  # a job that meets its time limit, or loses a node, starts again and resumes
    setup: list[str] = field(default_factory=list)  # shell lines before srun: modules, environment
    container: list[str] = field(default_factory=list)  # words before python, like [apptainer,exec,--nv,clip.sif]
    srun: list[str] = field(default_factory=list)  # further arguments of srun
    extra: list[str] = field(default_factory=list)  # further options of sbatch, like [--exclusive,--reservation=x]
    submit: bool = True  # false: writes the job's files and says how to submit them


@dataclass
class ClusterConfig:
    """Where a run computes; never what it learns."""

    name: str = MISSING  # the option's name
    scheduler: str = "none"  # none, slurm: outside an allocation the run is submitted as a job, inside it trains
    accelerator: str = "auto"  # auto, cpu, gpu
    nodes: int = 1  # machines
    devices: int = 1  # per node
    strategy: str = "single"  # single, ddp, fsdp (weights in shards over all ranks), hsdp (shards, repeated)
    shard_size: int | None = None  # hsdp: neighbouring ranks that hold the weights once; null: cluster.devices
    timeout_minutes: float = 10.0  # a collective that takes longer ends the run; the first step may take 30
    micro_batch: int | None = None  # pairs per forward on a rank; null: the rank's whole share
    workers: int = 2  # loader processes per rank
    threads: int | None = None  # torch threads per rank; null: cores / local ranks - workers
    cache_locked: bool = False  # features of locked towers are kept in the run's directory, float32, while it runs
    activation_checkpointing: str = "none"  # none, full, selective
    compile: bool = False  # torch.compile of the towers' blocks
    time_limit_minutes: float | None = None  # of one start: the run saves and leaves before it; null: no limit
    checkpoint_every: str = "10%"  # duration between checkpoints
    keep_last: int = 2  # newest checkpoints kept
    keep_every: str | None = None  # duration; the first checkpoint past each multiple is never removed; null: none
    device_memory_gib: float | None = None  # of one device, to plan for other machines; null: this machine's
    device_peak_tflops: float | None = None  # dense 16-bit peak of one device; null: known by the name of the GPU here
    assumed_mfu: float | None = None  # share of the peak that a dry run's hours assume; null: measured, or 0.3
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class EvalConfig:
    """What is measured during and after training."""

    name: str = MISSING  # the option's name
    tasks: list[str] | None = None  # registered tasks; null: data.tasks
    folders: list[str] = field(default_factory=list)  # folders in CLIP_benchmark's layout, each a task
    every: str = "20%"  # duration between evaluations during training; "0 samples": only at the end
    batch: int = 256  # images per forward on a rank


@dataclass
class TrackerConfig:
    """Where numbers are shown besides the run's own records."""

    name: str = MISSING  # wandb, none
    mode: str = "auto"  # auto, online, offline
    project: str = "clip_lightning"  # W&B project
    entity: str | None = None  # W&B team or user
    log_every: str = "1%"  # duration between logged lines


@dataclass
class DebugConfig:
    """Settings for looking into a run."""

    name: str = "none"  # the option's name
    overfit_samples: int = 0  # > 0: the run sees only the first so many samples, in every epoch
    profile: bool = False  # torch profiler trace into the run's directory


@dataclass
class Config:
    """A training run. Composed in the order: schema, groups, _self_, experiment, local, debug."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    experiment: str | None = None  # name of the preset, for the record
    runs: str = "runs"  # folder of all runs
    fresh: bool = False  # start over although the run's directory exists
    allow_changed: list[str] = field(default_factory=list)  # data, or science keys, that may differ from the run's
    dry_run: bool = False  # check, cost and stop


@dataclass
class EvaluateConfig:
    """An evaluation of a finished or running run."""

    run: str = MISSING  # directory of the run
    checkpoint: str = "last"  # last, or a path below the run's checkpoints
    weights: str = "raw"  # raw, or ema: their running average, which the run kept
    eval: EvalConfig = field(default_factory=EvalConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    allow_target: list[str] = field(default_factory=list)  # import paths in the run's config that may be called
